from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from stagewright.augment.geometry import train_geometry
from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.images import memory_cache
from stagewright.data.images.decode import ArrayImages, FileImages
from stagewright.data.images.memory_cache import CachedImages, cache_if_small
from stagewright.recipe.recipe import Augment, Evaluation

COUNT = 24


def folder(path: Path, sizes: list[tuple[int, int]]) -> tuple[FileImages, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    for row, (width, height) in enumerate(sizes):
        small = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(path / f"{row:02}.{'jpg' if row % 3 else 'png'}", quality=90)
    names = pa.array([f"{row:02}.{'jpg' if row % 3 else 'png'}" for row in range(len(sizes))])
    widths, heights = np.array(sizes, np.int32).T
    return FileImages(str(path), names), widths, heights


def specs(widths: np.ndarray, heights: np.ndarray, size: int, crop: str, *, exact: bool) -> list[BatchSpec]:
    made = []
    for step in range(7):
        rows = (np.arange(10) * 5 + step * 10) % COUNT
        augment = Augment.model_validate({"crop": crop})
        passes = np.full(10, step)
        geometry = train_geometry(augment, 0, rows, passes, widths[rows], heights[rows], size, Evaluation())
        made.append(BatchSpec(step, rows, rows, geometry, size, "bilinear", exact))
    return made


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images) and one.bad_rows == other.bad_rows and torch.equal(one.valid, other.valid)
    )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("crop", ["pad", "random_resized", "none"])
@pytest.mark.parametrize("sizes", [[(32, 32)] * COUNT, [(30 + row, 60 - row) for row in range(COUNT)]])
def test_keeping_changes_no_bit(tmp_path: Path, sizes: list[tuple[int, int]], crop: str, exact: bool) -> None:
    images, widths, heights = folder(tmp_path, sizes)
    wanted = specs(widths, heights, 32, crop, exact=exact)
    expected = list(load_batches(images, wanted, workers=0))
    for workers in (0, 1, 3):
        held = cache_if_small(images, widths, heights, 32, exact=exact)
        assert isinstance(held, CachedImages) and (held.array is not None) == (len(set(sizes)) == 1)
        for _ in range(2):  # the second time, all images come from the cache
            assert all(map(same, load_batches(held, wanted, workers=workers), expected))


def test_files_are_read_once(tmp_path: Path) -> None:
    images, widths, heights = folder(tmp_path, [(32, 32)] * COUNT)
    held, wanted = (
        cache_if_small(images, widths, heights, 32, exact=False),
        specs(widths, heights, 32, "pad", exact=False),
    )
    expected = list(load_batches(held, wanted, workers=2))
    for file in tmp_path.iterdir():
        file.unlink()
    assert all(map(same, load_batches(held, wanted, workers=2), expected))


@pytest.mark.parametrize("sizes", [[(32, 32)] * COUNT, [(30 + row, 60 - row) for row in range(COUNT)]])
def test_what_cannot_be_read_is_named_each_time(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    images, widths, heights = folder(tmp_path, sizes)
    (tmp_path / "05.png").unlink(missing_ok=True)
    (tmp_path / "05.jpg").unlink(missing_ok=True)
    Image.new("RGB", (300, 200)).save(tmp_path / "10.jpg")
    held = cache_if_small(images, widths, heights, 32, exact=False)
    for _ in range(2):
        batches = list(load_batches(held, specs(widths, heights, 32, "pad", exact=False), workers=2))
        bad = {row: reason for batch in batches for row, reason in batch.bad_rows}
        assert bad.keys() == {5, 10}
        assert "No such file" in bad[5] and "now 300 x 200 pixels" in bad[10]
        for batch in batches:
            assert not batch.images[~batch.valid].any() and batch.images[batch.valid].any()
    with pytest.raises(OSError, match="No such file"):
        held.load(5)
    assert held.load(4).size == sizes[4]


def test_large_sets_and_those_that_are_decoded_smaller_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, widths, heights = folder(tmp_path, [(64, 48)] * COUNT)
    assert isinstance(cache_if_small(images, widths, heights, 25, exact=False), CachedImages)
    assert cache_if_small(images, widths, heights, 24, exact=False) is images
    assert isinstance(cache_if_small(images, widths, heights, 24, exact=True), CachedImages)
    monkeypatch.setattr(memory_cache, "MOST_BYTES", 3 * 64 * 48 * COUNT - 1)
    assert cache_if_small(images, widths, heights, 25, exact=False) is images
    arrays = ArrayImages(np.zeros((2, 8, 8, 3), np.uint8))
    assert cache_if_small(arrays, np.full(2, 8), np.full(2, 8), 8, exact=False) is arrays
