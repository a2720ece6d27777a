"""How long a pack with the index of a large data set takes until its first batch, and how much memory.

    python benchmarks/pack_index.py [--rows 1281167] [--out FILE.json]

The index is made by this script: as many rows as ImageNet-1k, in 1,000 classes, of which many share the bytes of a few images, so
that no data set is needed. Measured in a process of its own: the seconds from ``load_dataset`` to the first batch of 256 in
``order: blocked``, and the peak of its memory above that of the imports. From the disk, and from a store behind moto on this
machine, where the blocks of the window that are mapped into memory count too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

_CLASSES = 1000
_PARTS = 160

_MEASURED = """
import json, re, sys, time
from contextlib import closing
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import in_blocks, load_dataset
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
if sys.argv[1].startswith("s3:"):
    import obstore
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
imported, began = peak(), time.perf_counter()
dataset = in_blocks(load_dataset(sys.argv[1], Data()))
loaded = time.perf_counter() - began
manifest = dataset.manifest
recipe = recipes.from_dict({"order": "blocked", "image_size": 64, "batch_size": 256, "epochs": "1ep"})
specs = train_specs(resolve(recipe, manifest.info()), manifest, 0)
with closing(load_batches(dataset.images, specs, workers=2)) as batches:
    assert not next(batches).bad_rows
    first = time.perf_counter() - began
print(json.dumps({
    "rows": len(manifest), "load_seconds": round(loaded, 2), "first_batch_seconds": round(first, 2),
    "import_mb": round(imported), "peak_above_import_mb": round(peak() - imported),
}))
"""


def write_pack(folder: Path, rows: int) -> Path:
    """Writes a pack whose index has ``rows`` rows; the records of a part are the same few images."""
    from stagewright.data.pack.build import pack
    from stagewright.data.pack.format import HEAD, INDEX, INDEX_SCHEMA
    from stagewright.data.pack.reader import Pack
    from stagewright.data.pack.writer import write_head
    from stagewright.recipe.recipe import Data
    from stagewright.storage.parquet import pc, write_table

    photos = folder / "photos"
    for name in ("a", "b"):
        (photos / name).mkdir(parents=True)
        for at in range(8):
            x, y = np.meshgrid(np.arange(80), np.arange(72 + at))
            waves = np.stack([np.sin(x / (3 + c + at) + y / 7) for c in range(3)], axis=2)
            Image.fromarray((127 + 100 * waves).astype(np.uint8)).save(photos / name / f"{at}.jpg")
    small = Pack.open(pack(str(photos), folder / "small.pack", Data(), size=64).folder)
    (part,), places = small.head.parts, small.places()
    made = folder / "large.pack"
    made.mkdir()
    random, taken = np.random.default_rng(0), np.arange(rows) % len(places)
    which = np.sort(random.integers(0, _PARTS, rows)).astype(np.int32)
    random.shuffle(which)
    counts = np.bincount(which, minlength=_PARTS)
    ends = np.cumsum(counts)
    labels = np.arange(rows) * _CLASSES // rows
    columns: dict[str, Any] = {
        "path": pa.array([f"n{label:08d}/n{label:08d}_{at}.JPEG" for at, label in enumerate(labels.tolist())]),
        "label": pa.array([f"n{label:08d}" for label in labels.tolist()]),
        "split": pa.array(["undecided"] * rows),
        "group": pa.nulls(rows, pa.string()),
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), rows, [None, pa.py_buffer(random.bytes(16 * rows))]
        ),
        "width": pa.array(np.full(rows, 500, np.int32)),
        "height": pa.array(np.full(rows, 375, np.int32)),
        "stored_width": small._records("stored_width")["stored_width"].to_numpy()[taken],
        "stored_height": small._records("stored_height")["stored_height"].to_numpy()[taken],
        "file": which,
        "offset": places.offsets[taken],
        "length": places.lengths[taken],
        "crc32": None if places.crcs is None else places.crcs[taken],
        "reason": pa.nulls(rows, pa.string()),
        "picture": pa.array(np.ones(rows, bool)),
    }
    table = pa.table(columns, schema=INDEX_SCHEMA)
    table = table.take(pc.sort_indices(table["path"]))
    write_table(table, made / INDEX)
    parts = []
    for number, count in enumerate(counts.tolist()):
        name = f"part-{number:05d}.arrow"
        os.link(small.folder / part.file, made / name)
        parts.append(replace(part, file=name, first=int(ends[number] - count), rows=count))
    index_crc32 = zlib.crc32((made / INDEX).read_bytes())
    head = replace(
        *(small.head,), parts=tuple(parts), num_listed=rows, num_records=rows, index_crc32=index_crc32, grouped=False
    )
    write_head(made / HEAD, head)
    return made


def measured(source: str, cache: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the figures of a first and of a second opening."""
    variables = {**os.environ, **environment, "STAGEWRIGHT_CACHE": str(cache)}
    command = [sys.executable, "-c", _MEASURED, source]
    return [
        json.loads(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import obstore
    from object_server import start_object_server  # pyright: ignore[reportMissingImports]

    from stagewright.rundir.environment import environment
    from stagewright.storage.objects import open_store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write_pack(folder, given.rows)
        found: dict[str, Any] = {"index_mb": round((made / "index.parquet").stat().st_size / 1e6, 1)}
        found["disk"] = measured(str(made), folder / "cache", {})
        with start_object_server(folder / "log") as server:
            os.environ.update(server.environment())
            url = f"{server.new_bucket()}/large.pack"
            for file in made.iterdir():
                obstore.put(open_store(url), file.name, file)
            found["store"] = measured(url, folder / "cache", server.environment())
        shutil.rmtree(made)
    print(json.dumps(found, indent=1))
    if given.out:
        env = environment("a made index", sys.argv, "cpu", "")
        kept = ("stagewright", "git_commit", "python", "numpy", "pyarrow", "cpu", "cores", "ram_gb")
        command = f"python benchmarks/pack_index.py --rows {given.rows}"
        found = {"command": command, **{key: env[key] for key in kept}, **found}
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
