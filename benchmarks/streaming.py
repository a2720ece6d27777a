"""Loading and training from a pack in an object store behind a slow link, against the same pack on the disk.

    python benchmarks/streaming.py loader DATA [--pictures 2000] [--rounds 3] [--cache 0.25] [--out results.json]
    python benchmarks/streaming.py training DATA ...

DATA is a folder of class folders. The store is ``range_store.py``, with a round trip of 50 ms and 1 Gbit/s. It runs on the same
cores; its user and system time is given. ``loader``: all batches of eight passes, without a network, in each round

- from the disk (images/s from the first batch on),
- from the store, with an empty cache of a quarter of the pack,
- from the disk, while another process asks the server as often for as many bytes as the store's round did, and throws them away:
  what the disk gives if the machine carries the server too.

``training`` trains one epoch on the disk, then from the store with an empty cache; the steps must be equal. Images/s are those
that the run's summary gives for its updates. ``order`` is ``blocked``. Results are added to the file of ``--out``.
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
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from range_store import RangeStore, reading_beside, start_range_store  # pyright: ignore[reportMissingImports]

from stagewright.data.batches.blocked_order import Updates, pass_order, places_by_block
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import in_blocks, load_dataset
from stagewright.data.pack.build import pack
from stagewright.data.remote.cache import cache_of
from stagewright.data.remote.eviction import fewest_fetches
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.plan.execution import Execution
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


PASSES = 8
SIZES = (64, 160, 224)


def load_all(source: str, size: int, cache_bytes: int, server: RangeStore, passes: int = PASSES) -> dict[str, float]:
    """Loads all batches of ``passes`` passes of images of ``size`` pixels; returns images/s and processor time after the first
    batch, and the traffic."""
    dataset = in_blocks(load_dataset(source, Data()))
    plan = resolve(recipes.from_dict({**FIELDS, "image_size": size, "epochs": f"{passes}ep"}), dataset.manifest.info())
    specs, cache = train_specs(plan, dataset.manifest, 0), cache_of(dataset.images)
    if cache is not None:
        cache.cache_gb = cache_bytes / 1e9
        needs = Needs(plan, dataset.manifest, cache.table, HostRanks())
        specs = told_ahead(cache, needs, specs, Execution().prefetch)
    rows = list[np.ndarray]()
    start = time.perf_counter()
    with closing(load_batches(dataset.images, specs, workers=2)) as batches:
        rows.append(next(batches).rows)
        began, own, others = time.perf_counter(), time.process_time(), server.cpu_seconds()
        for batch in batches:
            assert not batch.bad_rows
            rows.append(batch.rows)
    seconds, count = time.perf_counter() - began, sum(map(len, rows[1:]))
    found = {
        "images/s": count / seconds,
        "seconds to the first batch": began - start,
        "processor us/image": (time.process_time() - own) / count * 1e6,
        "processor us/image of the server": (server.cpu_seconds() - others) / count * 1e6,
    }
    if cache is not None:
        used = [block for batch in rows for block in sorted(set(cache.table.block_of[batch].tolist()))]
        best = cache.table.sizes[fewest_fetches(used, cache.table.sizes, cache.capacity)].sum()
        found["requests/s"] = cache.download.num_requests / seconds
        found["bytes/request"] = cache.download.num_bytes / cache.download.num_requests
        found["traffic over the optimum"] = cache.fetched_bytes / float(best)
        cache.close()
    return found


def loader_round(local: Path, size: int, cache_bytes: int, server: RangeStore) -> dict[str, dict[str, float]]:
    """One round of ``loader`` with images of ``size`` pixels."""
    url, part = (
        f"s3://{local.parent.name}/{local.name}",
        max(local.glob("*.arrow"), key=lambda file: file.stat().st_size),
    )
    path = f"{local.parent.name}/{local.name}/{part.name}"
    found = {"disk": load_all(str(local), size, 0, server)}
    with tempfile.TemporaryDirectory() as folder, variables(STAGEWRIGHT_CACHE=folder):
        found["store"] = load_all(url, size, cache_bytes, server)
    with reading_beside(server.port, path, int(found["store"]["bytes/request"]), found["store"]["requests/s"]):
        time.sleep(0.5)
        found["disk beside the server"] = load_all(str(local), size, 0, server)
    return found


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Context with more environment variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def train(
    source: str, folder: Path, recipe: Path, cache_bytes: int, more_variables: Mapping[str, str]
) -> dict[str, Any]:
    """Trains in a process of its own; returns the run's summary."""
    more = ["--cache-gb", str(cache_bytes / 1e9)]
    command = [sys.executable, "-m", "stagewright", "train", source, "--recipe", str(recipe), "--out", str(folder)]
    subprocess.run(
        [*command, "-q", "--no-pages", "-j", "1", "--threads", "1", *more],
        env={**os.environ, **more_variables},
        check=True,
    )
    return json.loads((folder / "summary.json").read_text())


def order_seconds(records: int = 14_000_000, each: int = 400) -> float:
    """Processor seconds for the order of a pass of so many records."""
    blocks = places_by_block(np.repeat(np.arange(records // each), each))
    found = []
    for number in range(3):
        began = time.process_time()
        pass_order(0, blocks, Updates(1024, 8), 0, number)
        found.append(time.process_time() - began)
    return statistics.median(found)


def measure_loader(local: Path, cache_bytes: int, rounds: int, server: RangeStore) -> dict[str, Any]:
    """All rounds of ``loader``, the sizes one after the other in each of them."""
    rows: dict[str, list[dict[str, dict[str, float]]]] = {str(size): [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            rows[str(size)].append(loader_round(local, size, cache_bytes, server))
            print(size, json.dumps(rows[str(size)][-1]), file=sys.stderr, flush=True)
    found: dict[str, Any] = {}
    for size, own in rows.items():
        ways = {way: {key: statistics.median(row[way][key] for row in own) for key in own[0][way]} for way in own[0]}
        ratios = {
            f"store over {way}": statistics.median(row["store"]["images/s"] / row[way]["images/s"] for row in own)
            for way in ("disk", "disk beside the server")
        }
        found[f"{size} pixels"] = {**ratios, "medians": ways, "rounds": own}
    with tempfile.TemporaryDirectory() as folder, variables(STAGEWRIGHT_CACHE=folder):
        found["if all fits"] = load_all(f"s3://{local.parent.name}/{local.name}", 160, 1 << 30, server)
    return {"loader": found, "seconds for the order of 14 M records": order_seconds()}


def measure_training(local: Path, cache_bytes: int, rounds: int, root: Path) -> dict[str, Any]:
    """All rounds of ``training``."""
    rows: dict[str, list[float]] = {"disk": [], "store": []}
    (root / "recipe.yaml").write_text(json.dumps({**FIELDS, "epochs": "1ep", "eval": {"every": "1ep"}}))
    for number in range(rounds):
        ends = {}
        for name, source in (("disk", str(local)), ("store", f"s3://{local.parent.name}/{local.name}")):
            run = root / f"run-{number}-{name}"
            own = {"STAGEWRIGHT_CACHE": str(root / f"cache-{number}-{name}")}
            rows[name].append(train(source, run, root / "recipe.yaml", cache_bytes, own)["images_per_second"])
            ends[name] = (run / "steps.csv").read_text()
            print(name, rows[name][-1], file=sys.stderr, flush=True)
        assert ends["disk"] == ends["store"], "the steps differ"
    ratio = statistics.median(store / disk for store, disk in zip(rows["store"], rows["disk"], strict=True))
    return {"training": {"store over disk": ratio, "images/s": rows}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["loader", "training"])
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=float, default=0.25)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        local = make(Path(given.data), root, given.pictures)
        size = sum(file.stat().st_size for file in local.glob("*.arrow"))
        before = os.getloadavg()[0]
        with start_range_store(root) as server, variables(**server.environment()):
            if given.what == "loader":
                results = measure_loader(local, int(given.cache * size), given.rounds, server)
            else:
                results = measure_training(local, int(given.cache * size), given.rounds, root)
    results[f"load average before {given.what}"] = before
    print(json.dumps(results, indent=1))
    if given.out is not None:
        env = environment(given.data, sys.argv, "cpu", platform.processor())
        kept = {key: env[key] for key in ("stagewright", "git_commit", "python", "numpy", "cpu", "cores", "ram_gb")}
        command = f"python benchmarks/streaming.py {given.what} {Path(given.data).name} --rounds {given.rounds}"
        there = json.loads(given.out.read_text()) if given.out.exists() else {}
        commands = {**there.get("commands", {}), given.what: command}
        results = {**there, "commands": commands, "environment": kept, "pack_mb": round(size / 1e6, 1), **results}
        given.out.write_text(json.dumps(results, indent=1) + "\n")


def make(source: Path, root: Path, pictures: int) -> Path:
    """Packs the first pictures of each class, so many in all, as an object of the bucket ``bucket`` below ``root``."""
    chosen, classes = root / "pictures", sorted(path for path in source.iterdir() if path.is_dir())
    for folder in classes:
        (chosen / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[: pictures // len(classes)]:
            (chosen / folder.name / file.name).symlink_to(file.resolve())
    (root / "bucket").mkdir()
    return pack(str(chosen), root / "bucket" / "photos.pack", Data()).folder


if __name__ == "__main__":
    main()
