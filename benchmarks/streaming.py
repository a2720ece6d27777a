"""Training and loading from a pack in an object store behind a slow link, against the same pack on the disk.

    python benchmarks/streaming.py DATA [--pictures 2000] [--rounds 3] [--cache 0.25] [--out results.json]

DATA is a folder of class folders. The store is moto's server, and between them lies a proxy with a round trip of 50
ms and 1 Gbit/s. Server and proxy run on the same machine and take processor time from the training, and each request
opens a connection, which takes another 50 ms: the figures for the store are worse than those of a real one. Each
round trains on the disk, then from the store with an empty cache of a quarter of the pack, with ``order: blocked``;
images/s are those that the run's summary gives for its updates, and the steps must be equal. The loader alone is
measured too: all batches of the same plan, without a network. At last the same with room for all: what the second
pass reads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from object_server import start_object_server  # pyright: ignore[reportMissingImports]
from slow_link import slow_link  # pyright: ignore[reportMissingImports]

from stagewright.data.batches.blocked_order import Updates, pass_order, places_by_block
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import in_blocks, load_dataset
from stagewright.data.pack.build import pack
from stagewright.data.remote.cache import cache_of
from stagewright.data.remote.eviction import fewest_fetches
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.rundir.environment import environment
from stagewright.training.streaming import told_ahead

FIELDS: dict[str, Any] = {
    "order": "blocked",
    "model": {"name": "cifar_resnet18", "options": {"width": 8}},
    "image_size": 64,
    "batch_size": 64,
    "lr": 0.01,
    "epochs": "2ep",
    "eval": {"every": "2ep"},
    "augment": {"crop": "random_resized", "flip": 0.5},
}


def load_all(source: str, cache_bytes: int, passes: int = 3) -> dict[str, float]:
    """Loads all batches of ``passes`` passes; returns images/s, and what came from the store in each pass."""
    dataset = in_blocks(load_dataset(source, Data()))
    recipe = recipes.from_dict({**FIELDS, "epochs": f"{passes}ep"})
    plan = resolve(recipe, dataset.manifest.info())
    specs, cache = train_specs(plan, dataset.manifest, 0), cache_of(dataset.images)
    stage = plan.stages[0]
    used: list[int] = []
    if cache is not None:
        cache.cache_gb = cache_bytes / 1e9
        specs = told_ahead(cache, Needs(plan, dataset.manifest, cache.table, HostRanks()), specs)
    found: dict[str, float] = {}
    began, per_pass = time.perf_counter(), stage.num_images // stage.batch_size
    with closing(load_batches(dataset.images, specs, workers=2)) as batches:
        for number in range(passes):
            before = 0 if cache is None else cache.fetched_bytes
            for batch in islice(batches, per_pass):
                if cache is not None:
                    used += sorted(set(cache.table.block_of[batch.rows].tolist()))
            if cache is not None:
                found[f"MB in pass {number + 1}"] = (cache.fetched_bytes - before) / 1e6
    found["images/s"] = passes * per_pass * stage.batch_size / (time.perf_counter() - began)
    if cache is not None:
        best = cache.table.sizes[fewest_fetches(used, cache.table.sizes, cache.capacity)].sum()
        found["traffic over the optimum"] = cache.fetched_bytes / float(best)
        cache.close()
    return found


def train(source: str, folder: Path, recipe: Path, cache_bytes: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """Trains in a process of its own; returns the run's summary."""
    more = ["--cache-gb", str(cache_bytes / 1e9)]
    command = [sys.executable, "-m", "stagewright", "train", source, "--recipe", str(recipe), "--out", str(folder)]
    subprocess.run(
        [*command, "-q", "--no-pages", "-j", "1", "--threads", "1", *more], env={**os.environ, **variables}, check=True
    )
    return json.loads((folder / "summary.json").read_text())


def order_seconds(records: int = 14_000_000, each: int = 400) -> float:
    """Processor seconds for the order of a pass of so many records."""
    blocks = places_by_block([0])
    import numpy as np

    blocks = places_by_block(np.repeat(np.arange(records // each), each))
    found = []
    for number in range(3):
        began = time.process_time()
        pass_order(0, blocks, Updates(1024, 8), 0, number)
        found.append(time.process_time() - began)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=float, default=0.25)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("disk", "store", "loader, disk", "loader, store")}
    with tempfile.TemporaryDirectory() as place, ExitStack() as opened:
        root = Path(place)
        local = make(Path(given.data), root, given.pictures)
        size = sum(file.stat().st_size for file in local.glob("*.arrow"))
        server = opened.enter_context(start_object_server(root / "log"))
        os.environ.update(server.environment())
        url = upload(local, server.new_bucket())
        port = opened.enter_context(slow_link(server.port))
        slow = server.environment(f"http://127.0.0.1:{port}")
        os.environ.update(slow)
        (root / "recipe.yaml").write_text(json.dumps(FIELDS))
        for number in range(given.rounds):
            load = os.getloadavg()[0]
            ends = {}
            for name, source in (("disk", str(local)), ("store", url)):
                own = {**slow, "STAGEWRIGHT_CACHE": str(root / f"cache-{number}-{name}")}
                run = root / f"run-{number}-{name}"
                summary = train(source, run, root / "recipe.yaml", int(given.cache * size), own)
                ends[name] = (run / "steps.csv").read_text()
                rows[name].append({"images/s": summary["images_per_second"], "load": load})
                print(name, rows[name][-1], file=sys.stderr, flush=True)
            assert ends["disk"] == ends["store"], "the steps differ"
            for name, source in (("loader, disk", str(local)), ("loader, store", url)):
                os.environ["STAGEWRIGHT_CACHE"] = str(root / f"loader-{number}-{name}")
                rows[name].append(load_all(source, int(given.cache * size)))
                print(name, rows[name][-1], file=sys.stderr, flush=True)
        os.environ["STAGEWRIGHT_CACHE"] = str(root / "all")
        fits = load_all(url, 2 * size, 2)
    medians = {name: statistics.median(row["images/s"] for row in found) for name, found in rows.items()}
    results = {
        "pack_mb": round(size / 1e6, 1),
        "images_per_second": medians,
        "training, store over disk": medians["store"] / medians["disk"],
        "loader, store over disk": medians["loader, store"] / medians["loader, disk"],
        "if all fits": fits,
        "seconds for the order of 14 M records": order_seconds(),
        "rounds": rows,
    }
    print(json.dumps(results, indent=1))
    if given.out is not None:
        env = environment(given.data, sys.argv, "cpu", platform.processor())
        kept = {key: env[key] for key in ("stagewright", "git_commit", "python", "numpy", "cpu", "cores", "ram_gb")}
        command = f"python benchmarks/streaming.py {Path(given.data).name} --rounds {given.rounds}"
        given.out.write_text(json.dumps({"command": command, "environment": kept, **results}, indent=1) + "\n")


def make(source: Path, root: Path, pictures: int) -> Path:
    """Packs the first pictures of each class, so many in all, in parts of 2 MB: moto reads a whole part for each request."""
    chosen, classes = root / "pictures", sorted(path for path in source.iterdir() if path.is_dir())
    for folder in classes:
        (chosen / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[: pictures // len(classes)]:
            (chosen / folder.name / file.name).symlink_to(file.resolve())
    return pack(str(chosen), root / "photos.pack", Data(), part_bytes=1 << 21).folder


def upload(folder: Path, bucket: str) -> str:
    import obstore

    from stagewright.storage.objects import open_store

    url = f"{bucket}/{folder.name}"
    for file in folder.iterdir():
        obstore.put(open_store(url), file.name, file)
    return url


if __name__ == "__main__":
    main()
