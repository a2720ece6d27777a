"""Memory of the input pipeline: that of the index for many pictures, time to the first batch, and whether it stays flat.

    python benchmarks/memory.py index [--count 1281167]
    python benchmarks/memory.py epochs [--photos DIR] [--epochs 20]

``index`` writes a manifest with as many rows as ImageNet (names and hashes of the usual length), and in a new process
reads it and makes the first batch's specification: memory beyond the imports, and seconds. ``epochs`` reads photographs
for many passes and prints the memory (anonymous, resident) after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import hex_strings
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data


def resident() -> float:
    """Anonymous resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def plan_of(manifest: Manifest) -> Plan:
    plain = {"model": {"name": "resnet18"}, "image_size": 224, "batch_size": 256, "epochs": "90ep"}
    return resolve(recipes.from_dict(plain), manifest.info())


def write_manifest(count: int, path: Path) -> None:
    """A manifest of ``count`` pictures in 1,000 classes."""
    labels = (np.arange(count) * 1000 // count).astype(np.int32)
    classes = tuple(f"n{at:08d}" for at in range(1000))
    names = pa.array([f"train/n{label:08d}/n{label:08d}_{row:07d}.JPEG" for row, label in enumerate(labels.tolist())])
    digests = np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)
    splits = np.where(np.arange(count) % 26 == 0, 1, 0).astype(np.int8)
    widths, heights = np.full(count, 500, np.int32), np.full(count, 375, np.int32)
    Manifest("/data", "imagenet", classes, names, hex_strings(digests), labels, splits, widths, heights).write(path)


def read_index(path: Path) -> None:
    """In a process of its own: prints what reading the manifest and making the first specification take."""
    plan_of(Manifest.read(path.with_name("small.parquet")))  # imports and caches are not the index's
    gc.collect()
    before, began = resident(), time.perf_counter()
    manifest = Manifest.read(path)
    read = time.perf_counter()
    specs = train_specs(plan_of(manifest), manifest, 0)
    next(specs)
    ready = time.perf_counter()
    gc.collect()
    pa.default_memory_pool().release_unused()
    columns = sum(
        getattr(manifest, name).nbytes for name in ("paths", "hashes", "labels", "splits", "widths", "heights")
    )
    found = {
        "pictures": len(manifest),
        "columns_mb": round(columns / 2**20, 1),
        "resident_mb": round(resident() - before, 1),
        "read_seconds": round(read - began, 2),
        "first_batch_seconds": round(ready - began, 2),
    }
    print(json.dumps(found))


def epochs(photos: Path, count: int) -> None:
    """Reads ``photos`` ``count`` times and prints the memory after each pass."""
    dataset = load_dataset(str(photos), Data(val=0.01, test=0))
    plan = plan_of(dataset.manifest)
    each, seen = plan.stages[0].num_images, 0
    with closing(load_batches(dataset.images, train_specs(plan, dataset.manifest, 0), workers=2)) as batches:
        for epoch in range(1, count + 1):
            while seen < epoch * each:
                seen += len(next(batches).labels)
            print(f"epoch {epoch:2d}: {resident():,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["index", "epochs", "read"])
    parser.add_argument("--count", type=int, default=1_281_167)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if options.what == "read":
        read_index(options.photos)
    elif options.what == "epochs":
        epochs(options.photos, options.epochs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_manifest(1000, Path(folder, "small.parquet"))
            write_manifest(options.count, Path(folder, "index.parquet"))
            subprocess.run([sys.executable, __file__, "read", "--photos", f"{folder}/index.parquet"], check=True)


if __name__ == "__main__":
    main()
