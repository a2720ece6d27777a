"""Memory and first epoch of processes that train on the same small images, with and without shared memory.

    python benchmarks/shared_pictures.py DATA [--rounds 3] [--threads 1] [--folder /dev/shm/x] [--out results.json]

DATA is a folder of small pictures, as CIFAR's. Each process reads all batches of one epoch of the recipe cifar-resnet, without a
network, so that the time is that of decoding. Memory is PSS (proc(5), smaps_rollup), in which a page that n processes share
counts 1/n in each, added up, once all have read their epoch; what the same processes have before the first batch is given too.
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
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch

from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import load_dataset
from stagewright.data.images.memory_cache import SharedImages, cache_for_plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.environment import environment


def pss_mb() -> float:
    """The proportional set size of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1024


def refuse(text: str) -> None:
    raise SystemExit(text)


def process(data: str, shared: bool, seed: int, threads: int) -> None:
    """One of the processes: it says that it is ready, waits for the word to begin, and for the word to look at its memory."""
    recipe = recipes.override(recipes.load("cifar-resnet"), [f"seed={seed}", "data.val=0.1"])
    dataset = load_dataset(data, recipe.data)
    plan = resolve(recipe, dataset.manifest.info())
    images = cache_for_plan(plan, dataset.manifest, dataset.images, not_shared=refuse if shared else None)
    assert isinstance(images, SharedImages) == shared
    before = pss_mb()
    print("ready", flush=True)
    sys.stdin.readline()
    began, stage = time.perf_counter(), plan.stages[0]
    specs = islice(train_specs(plan, dataset.manifest, 0), stage.num_images // stage.batch_size)
    checked = 0
    with closing(load_batches(images, specs, workers=threads)) as batches:
        for batch in batches:
            checked += int(batch.images.sum())
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "before_mb": before, "sum": checked}), flush=True)
    sys.stdin.readline()
    print(pss_mb(), flush=True)
    sys.stdin.readline()


def together(data: str, shared: bool, seeds: list[int], threads: int) -> dict[str, float]:
    """Runs a process for each of ``seeds`` at the same time; returns the longest epoch and all their memory."""
    flags = ["--process", "--threads", str(threads), *(["--shared"] if shared else [])]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, __file__, data, *flags, "--seed", str(seed)], text=True, stdin=pipe, stdout=pipe
        )
        for seed in seeds
    ]

    def answers() -> list[str]:
        found = [one.stdout.readline() for one in running if one.stdout is not None]
        for one in running:
            if one.stdin is not None:
                one.stdin.write("\n")
                one.stdin.flush()
        return found

    assert answers() == ["ready\n"] * len(seeds)
    epochs = [json.loads(line) for line in answers()]
    memory = [float(line) for line in answers()]
    for one in running:
        one.communicate()
    return {
        "epoch_seconds": max(one["seconds"] for one in epochs),
        "before_mb": sum(one["before_mb"] for one in epochs),
        "pss_mb": sum(memory),
        "sum": epochs[0]["sum"],
    }


def main() -> None:
    """Measures all ways in turn, several times, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache lies; by default a temporary folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        process(given.data, given.shared, given.seed, given.threads)
        return
    ways = {
        f"{what}, {'shared' if shared else 'each its own'}": (shared, seeds)
        for what, seeds in (
            ("1 process", [0]),
            ("3 processes, one seed", [0, 0, 0]),
            ("3 processes, three seeds", [0, 1, 2]),
        )
        for shared in (False, True)
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=given.folder) as cache:
        os.environ["STAGEWRIGHT_CACHE"] = cache
        load_dataset(given.data, recipes.load("cifar-resnet").data)  # scanned once, so that no process does it
        for _ in range(given.rounds):
            for name, (shared, seeds) in ways.items():
                found[name].append(together(given.data, shared, seeds, given.threads))
    medians = {
        name: {
            key: round(statistics.median(row[key] for row in rows), 2)
            for key in ("epoch_seconds", "before_mb", "pss_mb")
        }
        for name, rows in found.items()
    }
    assert max(Counter(row["sum"] for rows in found.values() for row in rows).values()) == given.rounds * len(ways)
    for name, row in medians.items():
        print(f"{name:40} {row['epoch_seconds']:7.2f} s  {row['before_mb']:7.0f} MB before  {row['pss_mb']:7.0f} MB")
    if given.out is not None:
        env = environment(given.data, sys.argv, "cpu", platform.processor())
        kept = {
            key: env[key]
            for key in ("stagewright", "git_commit", "python", "numpy", "pillow", "cpu", "cores", "ram_gb")
        }
        name = Path(given.data).name
        command = f"python benchmarks/shared_pictures.py {name} --rounds {given.rounds} --threads {given.threads}"
        content = {"command": command, "device": "cpu", "environment": {**kept, "torch": torch.__version__}}
        given.out.write_text(json.dumps({**content, "medians": medians, "rounds_of": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
