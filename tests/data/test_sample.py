from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stagewright.data import dataset
from stagewright.data.dataset import load_dataset, open_images
from stagewright.data.images.decode import ArrayImages
from stagewright.data.manifest import Manifest
from stagewright.data.sample import sample, sample_manifest, spread
from stagewright.data.sources.builtin import Arrays
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.scan import Scan
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def manifest_of(labels: list[int], splits: list[int]) -> Manifest:
    count = len(labels)
    return Manifest(
        root="",
        source="made up",
        classes=tuple(f"class{at:03d}" for at in range(max(labels) + 1)),
        paths=pa.array([f"{at:05d}.png" for at in range(count)]),
        hashes=pa.array([f"{at:032x}" for at in range(count)]),
        labels=np.array(labels, np.int32),
        splits=np.array(splits, np.int8),
        widths=np.full(count, 30, np.int32),
        heights=np.full(count, 20, np.int32),
        groups=pa.array([f"site{at % 7}" for at in range(count)]),
    )


@pytest.mark.parametrize("limit", [1, 7, 16, 60, 500])
@pytest.mark.parametrize("counts", [(50, 50), (1000, 3, 3), (1, 1, 1, 1, 400), (12,)])
def test_a_sample_has_every_class_in_equal_numbers_if_possible(limit: int, counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    rows = np.random.default_rng(0).permutation(len(labels)).astype(np.int64)
    chosen = spread(rows, labels, limit)
    assert len(chosen) == min(len(labels), max(limit, len(counts)))
    assert np.array_equal(chosen, np.unique(chosen))
    found = np.bincount(labels[chosen], minlength=len(counts))
    assert (found >= 1).all()
    # A class has fewer images than another only if it has no more (except for one image of the last round).
    for own, there in zip(found, counts, strict=True):
        assert own == there or own >= found.max() - 1


def test_pictures_of_a_class_come_from_all_over_it() -> None:
    rows, labels = np.arange(1000), np.zeros(1000, np.int32)
    assert spread(rows, labels, 5).tolist() == [0, 249, 499, 749, 999]


def test_all_columns_are_of_the_sample_and_it_is_the_same_every_time() -> None:
    whole = manifest_of([0, 1, 2] * 40, [0] * 60 + [1] * 30 + [2] * 30)
    part = sample_manifest(whole, train=12, val=6, test=3)
    assert [len(part.rows(split)) for split in ("train", "val", "test")] == [12, 6, 3]
    assert part.groups is not None and whole.groups is not None
    at = [int(path.removesuffix(".png")) for path in part.paths.to_pylist()]
    assert part.labels.tolist() == whole.labels[at].tolist() and part.splits.tolist() == whole.splits[at].tolist()
    assert part.groups.to_pylist() == whole.groups.take(at).to_pylist()
    assert part.hashes.to_pylist() == whole.hashes.take(at).to_pylist() and part.classes == whole.classes
    assert sample_manifest(whole, train=12, val=6, test=3).digest == part.digest != whole.digest


def test_pictures_of_a_sample_are_those_of_its_rows(picture_folder: Path) -> None:
    whole = load_dataset(str(picture_folder), Data())
    part = sample(whole, train=9, val=3, test=3)
    assert len(part.manifest) == 15 and "9 of 42 train" in part.notes[-1]
    for row, path in enumerate(part.manifest.paths.to_pylist()):
        at = whole.manifest.paths.to_pylist().index(path)
        assert np.array_equal(np.asarray(part.images.load(row)), np.asarray(whole.images.load(at)))


def test_a_sample_of_arrays_opens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 30
    pictures = np.random.default_rng(0).integers(0, 255, (count, 4, 4, 3)).astype(np.uint8)
    whole = replace(manifest_of([0, 1, 2] * 10, [0] * 20 + [2] * 10), source="torchvision:CIFAR10")
    digests = np.frombuffer(bytes.fromhex("".join(whole.hashes.to_pylist())), np.uint8).reshape(count, 16)
    size = np.full(count, 4, np.int32)
    listing = Listing(root="", paths=whole.paths, labels=pa.array(["x"] * count), parts=whole.splits)
    arrays = Arrays(pictures, listing, Scan(digests, size, size))
    monkeypatch.setattr(dataset, "load_arrays", lambda source: arrays)
    part = sample_manifest(whole, train=6, val=0, test=3)
    images = open_images(part)
    assert isinstance(images, ArrayImages)
    at = [int(path.removesuffix(".png")) for path in part.paths.to_pylist()]
    assert np.array_equal(images.array, pictures[at])
    assert open_images(whole).array is pictures  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match="has changed since the run began"):
        open_images(replace(part, hashes=part.hashes.take(pa.array(range(len(part))[::-1]))))
