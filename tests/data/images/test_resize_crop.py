"""The views of torchvision's and timm's evaluations, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from stagewright.augment.geometry import eval_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.images.decode import ArrayImages, FileImages
from stagewright.data.images.resize_crop import ResizeCrop, ViewedImages
from stagewright.recipe.recipe import Evaluation

SIZES = [(64, 64), (65, 64), (64, 97), (301, 97), (97, 301), (20, 30), (500, 375), (1, 40), (33, 2)]


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (57, 56), (56, 56), (40, 56), (73, 64)])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_center_is_torchvisions_preset(size: tuple[int, int], resize: int, crop: int, filter_: str) -> None:
    image = picture(*size)
    theirs = tv.center_crop(tv.resize(image, [resize], InterpolationMode(filter_)), [crop])  # pyright: ignore
    ours = ResizeCrop(resize, crop, "center", filter_).view(image)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("size", SIZES[:7])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.875, 0.95, 1.0])
def test_every_mode_is_timms(size: tuple[int, int], mode: str, share: float) -> None:
    image = picture(*size)
    theirs = transforms_imagenet_eval(56, share, crop_mode=mode, interpolation="bicubic", use_prefetcher=True)(image)
    # timm fills borders with the mean of ImageNet
    fill = (124, 116, 104) if mode == "border" else (0, 0, 0)
    ours = ResizeCrop(int(56 / share), 56, mode, "bicubic", fill).view(image)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(ours.transpose(2, 0, 1), np.asarray(theirs))


def test_a_loader_delivers_the_views(tmp_path: Path) -> None:
    import pyarrow as pa

    for at, size in enumerate(SIZES[:6]):
        picture(*size).save(tmp_path / f"{at}.png")
    (tmp_path / "5.png").write_bytes(b"junk")
    view = ResizeCrop(40, 32)
    images = ViewedImages(FileImages(str(tmp_path), pa.array([f"{at}.png" for at in range(6)])), view)
    rows = np.array([3, 0, 5, 1])
    boxes = eval_geometry(Evaluation(), *np.array(SIZES)[rows].T)
    spec = BatchSpec(0, rows, np.zeros(4, np.int64), boxes, 32, "bilinear")
    batch = next(load_batches(images, [spec], workers=0))
    assert batch.valid.tolist() == [True, True, False, True] and [row for row, _ in batch.bad_rows] == [5]
    for at, row in enumerate(rows.tolist()):
        wanted = view.view(picture(*SIZES[row])) if row != 5 else np.zeros((32, 32, 3), np.uint8)
        assert np.array_equal(batch.images[at].permute(1, 2, 0).numpy(), wanted)
    assert images.load(0).size == (32, 32) and len(images) == 6


def test_arrays_have_views_too() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    images = ViewedImages(ArrayImages(array), ResizeCrop(16, 16))
    assert images.stored(np.array([2])).sizes is not None
    assert np.array_equal(np.asarray(images.load(2)), ResizeCrop(16, 16).view(Image.fromarray(array[2])))
