"""Tests that the native decoder and Pillow agree on pixels, on boxes, and on which files are damaged."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagewright.augment.geometry import Geometry, jpeg_scale, train_geometry
from stagewright.data.images import crop, native
from stagewright.data.images.decode import ArrayImages, crop_resize, decode, decode_for
from stagewright.data.images.stored import Stored
from stagewright.recipe.recipe import Augment, Evaluation

pytestmark = pytest.mark.skipif(not native.available(), reason="the native decoder is not built on this machine")

UNUSUAL, DAMAGED, OUTSIDE = 1, 2, 3


def encoded(files: list[bytes]) -> Stored:
    lengths = np.array([len(data) for data in files], np.int64)
    return Stored("encoded", files, np.arange(len(files), dtype=np.int32), np.zeros(len(files), np.int64), lengths)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns a test image: smooth colours with texture, without symmetry."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (max(height // 24, 2), max(width // 24, 2), 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((large + random.normal(0, 6, large.shape)).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **({"quality": 88} | options))
    return buffer.getvalue()


def cropped(
    files: list[bytes], boxes: Any, size: int, *, flips: Any = None, exact: bool = True, interpolation: Any = "bilinear"
) -> tuple[np.ndarray, list[int]]:
    out = np.full((len(files), size, size, 3), 77, np.uint8)
    mirrored = np.zeros(len(files), bool) if flips is None else np.asarray(flips)
    codes = native.crop(encoded(files), np.asarray(boxes, float), mirrored, size, interpolation, exact, out)
    return out, codes.tolist()


def resized(
    pixels: np.ndarray,
    box: Any,
    size: int,
    *,
    flip: bool = False,
    interpolation: Any = "bilinear",
    exact: bool = False,
) -> np.ndarray:
    """Resizes decoded pixels with the native library, which other tests compare with Pillow."""
    out = np.empty((1, size, size, 3), np.uint8)
    codes = native.crop(
        Stored.of_array(pixels), np.array([box], float), np.array([flip]), size, interpolation, exact, out
    )
    assert codes.tolist() == [0]
    return out[0]


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[bytes]:
    with zipfile.ZipFile(shared_data / "photos-250.zip") as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        return [archive.read(name) for name in sorted(names)[::4]]


def views(files: list[bytes], size: int) -> Any:
    sides = np.array([Image.open(io.BytesIO(data)).size for data in files])
    rows = np.arange(len(files))
    return train_geometry(Augment(), 3, rows, np.zeros_like(rows), sides[:, 0], sides[:, 1], size, Evaluation())


@pytest.mark.parametrize(("size", "exact"), [(224, True), (224, False), (96, True), (96, False), (40, False)])
def test_a_part_has_the_pixels_of_the_whole(photos: list[bytes], size: int, exact: bool) -> None:
    """Decoding only the box gives the same bits as decoding the whole image and cropping it, at every scale."""
    geometry, scales = views(photos, size), set()
    out, codes = cropped(photos, geometry.boxes, size, flips=geometry.flips, exact=exact)
    for at, data in enumerate(photos):
        box = geometry.boxes[at]
        picture, scale, _ = decode_for(data, 1 if exact else int(jpeg_scale(box[2] - box[0], box[3] - box[1], size)))
        if codes[at] == 0:
            scales.add(scale)
            expected = resized(np.asarray(picture), box / scale, size, flip=bool(geometry.flips[at]), exact=exact)
            assert np.array_equal(out[at], expected), at
    assert sum(code != 0 for code in codes) <= 2, codes
    assert scales == ({1} if exact else {224: {1, 2}, 96: {1, 2, 4}, 40: {2, 4, 8}}[size]) or not exact


@pytest.mark.parametrize("size", [224, 96, 40, 12])
def test_the_faster_entropy_decoder_gives_the_coefficients_of_libjpegs(photos: list[bytes], size: int) -> None:
    module: Any = native._module()
    files, kinds = list(photos), ("L", "RGB")
    random = np.random.default_rng(5)
    for at in range(60):  # odd sizes, every subsampling, optimised tables, low to lossless quality
        noise = Image.fromarray(
            random.integers(0, 256, (int(random.integers(1, 90)), int(random.integers(1, 90)), 3), np.uint8)
        )
        picture = (noise if at % 3 else photo(noise.width, noise.height, at)).convert(kinds[at % 5 != 0])
        options = {"quality": int(random.integers(1, 101)), "optimize": bool(at % 2)}
        files.append(jpeg(picture, **options, **({"subsampling": at % 3} if picture.mode == "RGB" else {})))
    geometry = views(files, size)
    fast, codes = cropped(files, geometry.boxes, size, flips=geometry.flips, exact=False)
    module.library_entropy(True)
    try:
        slow, others = cropped(files, geometry.boxes, size, flips=geometry.flips, exact=False)
    finally:
        module.library_entropy(False)
    assert codes == others and codes.count(0) > len(files) - 3
    assert np.array_equal(fast[np.array(codes) == 0], slow[np.array(codes) == 0])


def test_damaged_entropy_data_is_never_done_where_libjpeg_complains(photos: list[bytes]) -> None:
    """With flipped bits, our decoder may refuse more files than libjpeg, which invents pixels, but never fewer."""
    module: Any = native._module()
    random, files = np.random.default_rng(1), []
    for data in photos[:20]:
        for _ in range(10):
            broken = bytearray(data)
            for place in random.integers(len(data) // 3, len(data) - 2, 3):
                broken[place] ^= 1 << int(random.integers(0, 8))
            files.append(bytes(broken))
    sides = np.array([Image.open(io.BytesIO(data)).size for data in files], float)
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1)
    fast, codes = cropped(files, boxes, 64, exact=False)
    module.library_entropy(True)
    try:
        slow, others = cropped(files, boxes, 64, exact=False)
    finally:
        module.library_entropy(False)
    done, wrong = np.array(codes) == 0, np.array(others) != 0
    assert wrong.sum() > 3 and (~done).sum() > wrong.sum()
    both = done & ~wrong
    assert np.array_equal(fast[both], slow[both])
    assert not (done & wrong).any()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(((one.astype(float) - other) ** 2).mean(), 1e-9)))


@pytest.mark.parametrize("path", ["native", "python"])
@pytest.mark.parametrize(
    ("size", "exact", "least"), [(224, False, 50.0), (224, True, 50.0), (128, True, 50.0), (128, False, 42.0)]
)
def test_crops_are_those_of_full_decoding_and_antialiased_resize(
    photos: list[bytes], monkeypatch: pytest.MonkeyPatch, path: str, size: int, exact: bool, least: float
) -> None:
    if path == "python":
        monkeypatch.setattr(native, "_module", lambda: None)
    geometry = views(photos, size)

    class Photos:
        def __len__(self) -> int:
            return len(photos)

        def load(self, row: int) -> Image.Image:
            return decode(photos[row])

        def stored(self, rows: np.ndarray) -> Stored:
            return encoded([photos[row] for row in rows])

        def to_stored(self, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
            return boxes

    out = np.empty((len(photos), size, size, 3), np.uint8)
    shifts = np.zeros((len(photos), 2), np.int64)
    rows = np.arange(len(photos))
    assert (
        crop.crop_into(Photos(), rows, Geometry(geometry.boxes, shifts, geometry.flips), "bilinear", exact, out) == []
    )
    found = []
    for at, data in enumerate(photos):
        left, top, right, bottom = geometry.boxes[at].astype(int).tolist()
        whole = decode(data).crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)
        expected = np.asarray(whole)[:, ::-1] if geometry.flips[at] else np.asarray(whole)
        found.append(psnr(out[at], expected))
    assert np.median(found) >= least


@settings(max_examples=200, deadline=None)
@given(data=st.data(), interpolation=st.sampled_from(["bilinear", "bicubic"]), size=st.integers(4, 70))
def test_the_resize_is_pillows_within_rounding(data: st.DataObject, interpolation: Any, size: int) -> None:
    width, height = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 200))
    # Pillow clips to black and white between its two passes, where the cubic filter overshoots. Mid greys are not clipped.
    low, high = (70, 186) if interpolation == "bicubic" else (0, 256)
    pixels = np.random.default_rng(width * 1000 + height).integers(low, high, (height, width, 3), dtype=np.uint8)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    mine = resized(pixels, (left, top, right, bottom), size, interpolation=interpolation)
    part = Image.fromarray(pixels).crop((left, top, right, bottom))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    theirs = np.asarray(part.resize((size, size), filters[interpolation]), int)
    assert np.abs(mine - theirs).max() <= 1


@settings(max_examples=300, deadline=None)
@given(data=st.data(), interpolation=st.sampled_from(["bilinear", "bicubic"]), size=st.integers(1, 70))
def test_the_exact_resize_is_pillows_to_the_bit(data: st.DataObject, interpolation: Any, size: int) -> None:
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    right, bottom = data.draw(st.floats(left + 0.25, width)), data.draw(st.floats(top + 0.25, height))
    box, flip = (left, top, right, bottom), data.draw(st.booleans())
    expected = crop_resize(Image.fromarray(pixels), box, (size, size), interpolation)
    for scalar in (False, True):
        native._module().force_scalar(scalar)
        try:
            mine = resized(pixels, box, size, flip=flip, interpolation=interpolation, exact=True)
        finally:
            native._module().force_scalar(False)
        assert np.array_equal(mine, expected[:, ::-1] if flip else expected)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), interpolation=st.sampled_from(["bilinear", "bicubic"]), size=st.integers(1, 70))
def test_vector_instructions_change_no_bit(data: st.DataObject, interpolation: Any, size: int) -> None:
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 200))
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    right, bottom = data.draw(st.floats(left + 0.25, width)), data.draw(st.floats(top + 0.25, height))
    flip = data.draw(st.booleans())
    fast = resized(pixels, (left, top, right, bottom), size, flip=flip, interpolation=interpolation)
    module: Any = native._module()
    module.force_scalar(True)
    try:
        slow = resized(pixels, (left, top, right, bottom), size, flip=flip, interpolation=interpolation)
    finally:
        module.force_scalar(False)
    assert np.array_equal(fast, slow)
    flat = resized(np.full_like(pixels, 201), (left, top, right, bottom), size, interpolation=interpolation)
    assert np.array_equal(flat, np.full((size, size, 3), 201))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flip", [False, True])
def test_pictures_are_upright(orientation: int, flip: bool) -> None:
    picture, exif = photo(201, 120), Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture, exif=exif.tobytes(), subsampling=0)
    upright = decode(data)
    box = (10.0, 22.0, upright.width - 31.0, upright.height - 13.0)
    out, codes = cropped([data], [box], 48, flips=[flip], exact=False)
    assert codes == [0]
    expected = resized(np.asarray(upright), box, 48, flip=flip).astype(int)
    assert np.abs(out[0] - expected).max() <= 1  # the two passes of the resize are in the other order
    # Therefore Pillow resizes rotated images if every bit must be the same.
    assert cropped([data], [box], 48, flips=[flip], exact=True)[1] == [0 if orientation == 1 else UNUSUAL]


def test_orientation_that_is_not_plainly_stated_is_left_to_pillow() -> None:
    picture, box = photo(64, 48), (0, 0, 40, 40)
    two_shorts = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x02\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    good = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    cases = {
        "nothing": (jpeg(picture), 0),
        "big-endian": (jpeg(picture, exif=good), 0),
        "two values": (jpeg(picture, exif=two_shorts), UNUSUAL),
        "cut short": (jpeg(picture, exif=good[:20]), UNUSUAL),
        "out of range": (jpeg(picture, exif=good.replace(b"\0\x06\0\0", b"\0\x09\0\0")), UNUSUAL),
        "directory outside": (jpeg(picture, exif=good.replace(b"\0\0\0\x08", b"\xff\0\0\x08")), UNUSUAL),
        "in XMP": (jpeg(picture, xmp=b"<x tiff:Orientation='6'/>"), UNUSUAL),
    }
    for name, (data, expected) in cases.items():
        assert (name, cropped([data], [box], 16, exact=False)[1]) == (name, [expected])


def test_unusual_files_are_left_to_pillow_and_usual_ones_are_not() -> None:
    picture, box = photo(160, 120), (5, 7, 150, 110)
    png = io.BytesIO()
    picture.save(png, "PNG")
    cases = {
        "4:4:4": (jpeg(picture, subsampling=0), 0),
        "4:2:2": (jpeg(picture, subsampling=1), 0),
        "4:2:0": (jpeg(picture, subsampling=2), 0),
        "progressive": (jpeg(picture, progressive=True), 0),
        "grey": (jpeg(picture.convert("L")), 0),
        "RGB": (jpeg(picture, keep_rgb=True), 0),
        "restart markers": (jpeg(picture, restart_marker_blocks=3), 0),
        "with bytes behind": (jpeg(picture) + b"camera" * 100, 0),
        "CMYK": (jpeg(picture.convert("CMYK")), UNUSUAL),
        "PNG": (png.getvalue(), UNUSUAL),
        "empty": (b"", UNUSUAL),
        "no picture": (b"\xff\xd8\xff\xd9", DAMAGED),
    }
    for name, (data, expected) in cases.items():
        out, codes = cropped([data], [box], 48)
        assert (name, codes) == (name, [expected])
        if expected == 0:
            assert np.array_equal(out[0], resized(np.asarray(decode(data)), box, 48, exact=True)), name


def test_damage_is_noticed_and_left_to_pillow_to_judge() -> None:
    whole = jpeg(photo(300, 200))
    cut, box = len(whole) // 2, (0, 0, 300, 200)
    cases = {"cut": whole[:cut], "an end put on": whole[:cut] + b"\xff\xd9", "header alone": whole[:100]}
    for name, data in cases.items():
        assert (name, cropped([data], [box], 48)[1]) == (name, [DAMAGED])
    assert cropped([whole, whole[:cut], whole], [box] * 3, 48)[1] == [0, DAMAGED, 0]


def test_boxes_outside_are_refused() -> None:
    data = jpeg(photo(100, 80))
    nan = float("nan")
    outside = [(-1, 0, 50, 50), (0, 0, 101, 50), (50, 0, 50, 20), (60, 0, 50, 20), (0, nan, 9, 9), (0, 0, 1e300, 1e300)]
    assert cropped([data] * len(outside), outside, 16)[1] == [OUTSIDE] * len(outside)
    assert cropped([data], [(-1e-6, 0, 100 + 1e-6, 80)], 16)[1] == [0]
    stored, out = Stored.of_array(np.zeros((8, 9, 3), np.uint8)), np.empty((1, 4, 4, 3), np.uint8)
    for box in [(0, 0, 9.5, 8), (-0.1, 0, 9, 8), (3, 3, 3, 4), (nan, 0, 9, 8)]:
        assert native.crop(stored, np.array([box]), np.zeros(1, bool), 4, "bilinear", True, out).tolist() == [OUTSIDE]


def test_arguments_that_do_not_fit_together_are_refused() -> None:
    module: Any = native._module()
    one, box, flip = jpeg(photo(32, 32)), np.array([[0, 0, 16, 16.0]]), np.zeros(1, bool)

    def call(**changes: Any) -> bytes:
        given = {
            "sources": [one],
            "which": np.zeros(1, np.int32),
            "offsets": np.zeros(1, np.int64),
            "lengths": np.array([len(one)], np.int64),
            "boxes": box,
            "flips": flip,
            "size": 8,
            "filter": 0,
            "exact": True,
            "out": np.empty((1, 8, 8, 3), np.uint8),
        }
        return module.crop_jpegs(*(given | changes).values())

    assert call() == b"\0"
    wrong: list[dict[str, Any]] = [
        {"which": np.ones(1, np.int32)},
        {"which": np.full(1, -1, np.int32)},
        {"offsets": np.ones(1, np.int64)},
        {"offsets": np.full(1, -1, np.int64)},
        {"lengths": np.full(1, 2**62, np.int64)},
        {"offsets": np.full(1, 2**62, np.int64), "lengths": np.full(1, 2**62, np.int64)},
        {"lengths": np.zeros(2, np.int64)},
        {"boxes": box[:, :3].copy()},
        {"size": 0},
        {"size": 9},
        {"size": 2**30},
        {"filter": 2},
        {"flips": np.zeros(3, bool)},
        {"sources": []},
    ]
    for changes in wrong:
        with pytest.raises(ValueError):
            call(**changes)
    read_only = np.empty((1, 8, 8, 3), np.uint8)
    read_only.flags.writeable = False
    for changes in ({"out": read_only}, {"sources": ["text"]}, {"sources": 3}):
        with pytest.raises((BufferError, TypeError, ValueError)):
            call(**changes)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 20), reach=st.integers(0, 25), seed=st.integers(0, 1000))
def test_gathering_is_the_same_in_numpy(size: int, reach: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, (9, size, size, 3), dtype=np.uint8)
    rows, flips = random.integers(0, 9, 30), random.random(30) < 0.5
    shifts = random.integers(-reach, reach + 1, (30, 2))
    one, other = np.empty((2, 30, size, size, 3), np.uint8)
    crop.gather(array, rows, shifts, flips, one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_module", lambda: None)
        crop.gather(array, rows, shifts, flips, other)
    assert np.array_equal(one, other)
    with pytest.raises(ValueError):
        native.gather(array, rows + 9, shifts, flips, one)


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STAGEWRIGHT_NATIVE", "0")
    native._module.cache_clear()
    yield
    monkeypatch.undo()
    native._module.cache_clear()


@pytest.mark.usefixtures("unavailable")
def test_it_can_be_switched_off() -> None:
    assert not native.available() and "switched off" in native.describe()
    images = ArrayImages(np.asarray(photo(40, 30))[None])
    out = np.empty((1, 16, 16, 3), np.uint8)
    flips, rows = np.zeros(1, bool), np.zeros(1, np.int64)
    box, shifts = np.array([[0, 0, 30.0, 30]]), np.zeros((1, 2), np.int64)
    assert crop.crop_into(images, rows, Geometry(box, shifts, flips), "bilinear", True, out) == [] and out.any()


def test_it_was_built_with_the_package() -> None:
    """If a compiler and libjpeg's headers are present, installing the package builds the decoder, and describe() names it."""
    environment = {name: value for name, value in os.environ.items() if name != "STAGEWRIGHT_NATIVE"}
    code = "from stagewright.data.images import native; print(native.describe())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.startswith("native: libjpeg")
