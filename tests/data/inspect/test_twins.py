"""Images that another data set has too, by content and by the measure of data inspect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from stagewright.data.images.decode import ArrayImages, FileImages
from stagewright.data.inspect.fingerprint import SIDE, near_pairs
from stagewright.data.inspect.twins import near_twins, read_thumbs, same_content
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import digest_of


def photo(seed: int, side: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def thumb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def test_the_first_image_with_the_content_is_named() -> None:
    found = same_content(pa.array(["b", "x", "a", "b"]), pa.array(["a", "b", "b"]))
    assert found.tolist() == [1, -1, 0, 1] and found.dtype == np.int64
    assert same_content(pa.array(["b"]), pa.array([], pa.string())).tolist() == [-1]


def test_near_twins_are_the_pairs_of_inspect() -> None:
    """Across two sets, exactly the pairs that a search of both together finds; pairs within a set do not count."""
    known = np.stack([thumb(photo(seed)) for seed in (0, 1, 2, 3, 3)])
    changed = [
        *(
            thumb(photo(7)),
            thumb(ImageOps.mirror(photo(2))),
            thumb(photo(3, 48)),
            thumb(photo(1).point(lambda p: p * 0.9)),
        ),
        *(thumb(photo(8)), thumb(photo(8, 60)), np.full((SIDE, SIDE, 3), 200, np.uint8)),
    ]
    thumbs = np.stack(changed)
    found = near_twins(thumbs, known)
    assert found.tolist() == [-1, 2, 3, 1, -1, -1, -1]
    pairs = near_pairs(np.concatenate([known, thumbs]))
    across = {int(b) - 5 for a, b in zip(pairs.first, pairs.second, strict=True) if a < 5 <= b}
    assert across == set(np.flatnonzero(found >= 0).tolist()) and (4 + 5, 5 + 5) in set(
        zip(pairs.first, pairs.second, strict=True)
    )
    assert near_twins(thumbs, known[:0]).tolist() == [-1] * 7 and near_twins(thumbs[:0], known).tolist() == []


def manifest(root: str, names: list[str], hashes: list[str]) -> Manifest:
    count = len(names)
    zeros = np.zeros(count, np.int32)
    return Manifest(
        root, root, ("a",), pa.array(names), pa.array(hashes), zeros, np.zeros(count, np.int8), zeros + 64, zeros + 64
    )


def test_files_that_are_others_now_are_not_compared(tmp_path: Path) -> None:
    for at in range(3):
        photo(at).save(tmp_path / f"{at}.png")
    hashes = [digest_of((tmp_path / f"{at}.png").read_bytes()).hex() for at in range(3)]
    photo(9).save(tmp_path / "1.png")
    (tmp_path / "2.png").unlink()
    own = manifest(str(tmp_path), [f"{at}.png" for at in range(3)], hashes)
    counts: list[tuple[int, int]] = []
    thumbs, read = read_thumbs(
        own, FileImages(str(tmp_path), own.paths), np.arange(3), workers=2, progress=lambda *n: counts.append(n)
    )
    assert read.tolist() == [True, False, False] and counts == [(3, 3)]
    assert np.abs(thumbs[0].astype(int) - thumb(photo(0))).mean() < 3 and not thumbs[1:].any()


@pytest.mark.parametrize("rows", [[0, 2], []])
def test_images_in_memory_have_thumbnails_too(rows: list[int]) -> None:
    array = np.stack([np.asarray(photo(at)) for at in range(3)])
    own = manifest("", ["a", "b", "c"], ["00" * 16] * 3)
    thumbs, read = read_thumbs(own, ArrayImages(array), np.array(rows, np.int64), workers=1)
    assert read.all() and thumbs.shape == (len(rows), SIDE, SIDE, 3)
    assert near_twins(thumbs, np.stack([thumb(photo(at)) for at in range(3)])).tolist() == rows
