"""A pack of small raw images in many blocks, in the bucket of the test's object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from uploaded import upload_folder

from stagewright.data.dataset import Dataset, in_blocks, load_dataset
from stagewright.data.pack.build import pack
from stagewright.data.remote.cache import BlockCache, cache_of
from stagewright.recipe.recipe import Data

SIDE = 48
BYTES = 3 * SIDE * SIDE
"""Of an image: 9 or 10 of them are a block of 64 KB."""


@dataclass(frozen=True)
class SmallPack:
    """The same pack on the disk and in a store."""

    folder: Path
    url: str


def make_folder(folder: Path, count: int, classes: int = 3) -> Path:
    """Writes class folders of ``count`` pictures in all that a network can tell apart: stripes by angle."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for at in range(count):
        label = at % classes
        wave = np.sin((x, y, (x + y) / 1.4)[label % 3] * random.uniform(0.5, 0.9) + random.uniform(0, 6))
        pixels = 128 + 70 * wave[..., None] + random.normal(0, 25, (SIDE, SIDE, 3))
        place = folder / f"class-{label:02d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{at:04d}.bmp")
    return folder


def make_pack(folder: Path, count: int) -> Path:
    """Packs ``count`` pictures into several parts; returns the pack."""
    source, made = make_folder(folder / "pictures", count), folder / "small.pack"
    pack(str(source), made, Data(), size=SIDE, encoding="raw", part_bytes=40 * BYTES)
    shutil.rmtree(source)
    return made


def upload(folder: Path, url: str) -> SmallPack:
    """Copies the pack ``folder`` into the bucket ``url``."""
    return SmallPack(folder, upload_folder(folder, f"{url}/{folder.name}"))


@contextmanager
def opened_in_blocks(url: str, capacity: int = 1 << 30) -> Iterator[tuple[Dataset, BlockCache]]:
    """The data set at ``url``, in blocks, and its cache of ``capacity`` bytes."""
    dataset = in_blocks(load_dataset(url, Data()))
    cache = cache_of(dataset.images)
    assert cache is not None
    cache.cache_gb = capacity / 1e9
    try:
        yield dataset, cache
    finally:
        cache.close()
