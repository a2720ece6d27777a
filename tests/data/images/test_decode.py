"""Tests that every format and unusual file gives an upright RGB image, or a reason of one line."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from stagewright.data.images.decode import (
    ArrayImages,
    FileImages,
    crop_resize,
    decode,
    decode_plain,
    identified,
    image_extensions,
    measure,
)

# Those of the 78 unusual files that Pillow 13 cannot read either.
UNREADABLE = {
    "broken.png",
    "broken_data_stream.png",
    "decompression_bomb.gif",
    "png_decompression_dos.png",
    "truncated_end_chunk.png",
    "truncated_image.png",
    "truncated_jpeg.jpg",
    "ultrahdr.jpg",
    "zero_width.gif",
}


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=2).astype(np.uint8))


@pytest.fixture(scope="module")
def awkward(shared_data: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(shared_data / "awkward-images.zip") as archive:
        return {Path(name).name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_awkward_files_are_decoded_or_explained(awkward: dict[str, bytes]) -> None:
    unreadable = set()
    for name, data in awkward.items():
        try:
            image = decode(data)
        except OSError as error:
            unreadable.add(name)
            assert "\n" not in str(error) and "0x" not in str(error) and str(error), name
            with pytest.raises(OSError) as measured:
                measure(data)
            assert str(measured.value) == str(error), name
        else:
            assert (image.mode, image.size) == ("RGB", measure(data)), name
    assert len(awkward) == 78
    assert unreadable == UNREADABLE


def test_all_eight_orientations_come_out_upright(awkward: dict[str, bytes]) -> None:
    small = [np.asarray(decode(awkward[f"Landscape_{at}.jpg"]).resize((30, 20)), np.int64) for at in range(1, 9)]
    for at, image in enumerate(small):
        assert image.shape == (20, 30, 3)
        assert np.abs(image - small[0]).mean() < 12, f"orientation {at + 1}"
        assert at == 0 or np.abs(image - small[0][::-1, ::-1]).mean() > 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_what_pillow_makes_of_it(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))
    assert measure(data) == expected.size


def test_orientation_counts_although_other_exif_is_damaged() -> None:
    """A text tag points outside the EXIF block, so exif_transpose would fail when it writes the block back."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x010F, 2, 5000, 100)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    data = encoded(photo(60, 40), "JPEG", exif=exif)
    assert decode(data).size == measure(data) == (40, 60)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_exif_that_is_no_exif_does_no_harm(form: str) -> None:
    data = encoded(photo(60, 40), form, exif=b"Exif\0\0garbage!!!!!")
    assert decode(data).size == measure(data) == (60, 40)


def grey(dtype: str, high: float) -> Image.Image:
    return Image.fromarray((np.linspace(0, high, 400).reshape(20, 20)).astype(dtype))


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (grey("u2", 65535), "PNG"),
        (grey("u2", 4095), "TIFF"),
        (grey("i4", 65535), "TIFF"),
        (grey("f4", 1), "TIFF"),
        (grey("f4", 255), "TIFF"),
        (grey("f4", 1e6), "TIFF"),
        (grey("u1", 255), "JPEG2000"),
    ],
)
def test_deep_grey_keeps_its_range(image: Image.Image, form: str) -> None:
    pixels = np.asarray(decode(encoded(image, form)))
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels[0, 0, 0] == 0 and pixels[-1, -1, 0] == 255
    assert np.abs(pixels[..., 0].ravel() - np.linspace(0, 255, 400)).max() <= 2


def test_modes_keep_their_colours() -> None:
    alpha = photo().convert("RGBA")
    alpha.putalpha(0)
    assert np.array_equal(
        np.asarray(decode(encoded(alpha, "PNG"))), np.asarray(photo())
    )  # the colours of transparent pixels
    palette = photo().quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(decode(encoded(palette, "PNG", transparency=bytes(64)))), expected)
    cmyk = np.asarray(decode(encoded(photo().convert("CMYK"), "JPEG", quality=95)), np.int64)
    assert np.abs(cmyk - np.asarray(photo())).mean() < 6
    bits = Image.fromarray(np.eye(16, dtype=bool))
    assert np.asarray(decode(encoded(bits, "PNG")))[..., 0].tolist() == (np.eye(16) * 255).astype(int).tolist()
    lab = np.asarray(decode(encoded(photo().convert("LAB"), "TIFF")), np.int64)
    assert np.abs(lab - np.asarray(photo())).mean() < 8


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_animations(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode(data), np.int64) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_measure_sees_truncation_where_decode_does(options: dict[str, Any]) -> None:
    data = encoded(photo(90, 70), "JPEG", **options)
    for length in range(0, len(data), 7):
        results = []
        for reader in (measure, decode):
            try:
                reader(data[:length])
                results.append("read")
            except OSError as error:
                results.append(str(error))
        assert results[0].split("(")[0] == results[1].split("(")[0], length
    with pytest.raises(OSError):
        measure(data[: len(data) * 3 // 4])
    assert measure(data) == (90, 70)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not a picture in any format that Pillow reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture in any format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a picture in any format"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        decode(data)
    with pytest.raises(OSError, match=reason):
        measure(data)


def test_bombs_are_refused_by_their_header() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with pytest.raises(OSError, match=r"it has 3,600,000,000 pixels; at most 178,956,970 are read \(max_pixels\)"):
        measure(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x"))


def test_warnings_of_pillow_are_no_concern(awkward: dict[str, bytes]) -> None:
    """Pillow's warnings stay hidden if all warnings become errors after the import, and in threads."""
    palette = encoded(photo().quantize(16), "PNG", transparency=bytes(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(palette).mode == "RGB"
        with ThreadPoolExecutor(4) as pool:
            bad_exif = awkward["hopper_bad_exif.jpg"]
            assert {image.size for image in pool.map(decode, [bad_exif] * 20)} == {(500, 500)}
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)


def test_threads_agree() -> None:
    files = [encoded(photo(50 + at, 40), form) for at in range(6) for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
    alone = [np.asarray(decode(data)).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda data: np.asarray(decode(data)).tobytes(), files)) == alone


def test_identified_reads_the_head_only(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(encoded(photo(), "JPEG")[:300])
    (tmp_path / "text").write_text("nothing to see")
    assert identified(str(tmp_path / "picture"))
    assert not identified(str(tmp_path / "text"))
    assert {".jpg", ".jpeg", ".png", ".tif", ".webp", ".gif"} <= image_extensions()
    assert not {".eps", ".h5", ".mpg", ".txt"} & image_extensions()


@pytest.fixture
def ramp() -> Iterator[Image.Image]:
    """An image whose pixels have their column as red and their row as green."""
    y, x = np.mgrid[:120, :200]
    yield Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("box", "size"),
    [((10.25, 20.5, 74.25, 84.5), (64, 64)), ((3.7, 8.1, 183.7, 98.1), (30, 15)), ((40, 40, 50, 45), (40, 20))],
)
def test_crop_resize_is_exact_to_the_fraction_of_a_pixel(
    ramp: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], interpolation: Any
) -> None:
    out = crop_resize(ramp, box, size, interpolation)
    assert out.shape == (size[1], size[0], 3) and out.dtype == np.uint8
    columns = box[0] + (np.arange(size[0]) + 0.5) * (box[2] - box[0]) / size[0] - 0.5
    rows = box[1] + (np.arange(size[1]) + 0.5) * (box[3] - box[1]) / size[1] - 0.5
    # The filter uses no pixel outside the box, so the outermost results leave the ramp.
    assert np.abs(out[..., 0] - columns).max() <= 1.25 and np.abs(out[:, 1:-1, 0] - columns[1:-1]).max() <= 0.75
    assert (
        np.abs(out[..., 1] - rows[:, None]).max() <= 1.25 and np.abs(out[1:-1, :, 1] - rows[1:-1, None]).max() <= 0.75
    )


def test_crop_resize_does_not_alias() -> None:
    stripes = Image.fromarray(
        np.repeat(np.tile([0, 255], 100)[None, :, None], 50, axis=0).repeat(3, 2).astype(np.uint8)
    )
    out = crop_resize(stripes, (0, 0, 200, 50), (20, 5), "bilinear")
    assert np.abs(out.astype(int) - 127.5).max() < 10


def test_crop_resize_clamps_rounding_and_refuses_more(ramp: Image.Image) -> None:
    whole = crop_resize(ramp, (0, 0, 200, 120), (20, 12), "bilinear")
    assert np.array_equal(crop_resize(ramp, (-1e-6, -1e-9, 200 + 1e-6, 120 + 1e-5), (20, 12), "bilinear"), whole)
    for box in [(-1, 0, 50, 50), (0, 0, 201, 50), (50, 0, 50, 20), (60, 0, 50, 20), (0, float("nan"), 9, 9)]:
        with pytest.raises(ValueError, match="is not within a picture of 200 x 120"):
            crop_resize(ramp, box, (8, 8), "bilinear")
    with pytest.raises(ValueError, match="RGB picture, not L"):
        crop_resize(ramp.convert("L"), (0, 0, 9, 9), (8, 8), "bilinear")


def test_file_images(tmp_path: Path) -> None:
    (tmp_path / "größe").mkdir()
    (tmp_path / "größe" / "日本.png").write_bytes(encoded(photo(), "PNG"))
    images = FileImages(str(tmp_path), pa.array(["größe/日本.png", "größe/gone.png"]))
    assert len(images) == 2
    assert images.read(0)[:4] == b"\x89PNG"
    assert np.array_equal(np.asarray(images.load(np.arange(1)[0])), np.asarray(photo()))
    with pytest.raises(FileNotFoundError):
        images.load(1)


def test_array_images() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    images = ArrayImages(array)
    assert len(images) == 3
    assert images.load(2).size == (7, 5)
    assert np.array_equal(np.asarray(images.load(2)), array[2])
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, 3\), not uint8 \(3, 5, 7\)"):
        ArrayImages(array[..., 0])


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_jpeg_has_the_pixels_that_pillow_finds(scale: int, mode: str) -> None:
    picture = photo(203, 131).convert(mode)
    data = encoded(picture, "JPEG", quality=92, exif=Image.Exif())
    for given in (data, memoryview(data)):
        decoded = decode_plain(given, scale)
        assert decoded is not None and decoded[1] == (203, 131)
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (203 // scale, 131 // scale))
            expected = np.asarray(image.convert("RGB"), np.int16)
        assert decoded[0].shape == expected.shape
        assert np.abs(decoded[0] - expected).max() <= 1  # two builds of one library


def test_what_is_no_plain_jpeg_is_left_to_pillow() -> None:
    turned = Image.Exif()
    turned[274] = 6
    good = encoded(photo(), "JPEG")
    left = {
        "turned": encoded(photo(), "JPEG", exif=turned),
        "png": encoded(photo(), "PNG"),
        "cmyk": encoded(photo().convert("CMYK"), "JPEG"),
        "cut": good[:-200],
        "cut, with an end": good[: len(good) // 2] + b"\xff\xd9",
        "nothing": b"",
        "begins": good[:12],
        "huge": good.replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 60000, 60000), 1),
    }
    assert decode_plain(good, 1) is not None
    assert {name: decode_plain(data, 1) for name, data in left.items()} == dict.fromkeys(left)


def test_damaged_jpegs_are_left_to_pillow_or_read_as_it_reads_them(awkward: dict[str, bytes]) -> None:
    random = np.random.default_rng(3)
    files = [data for name, data in awkward.items() if name.endswith((".jpg", ".jpeg"))]
    files += [encoded(photo(90, 70), "JPEG", quality=80, progressive=odd) for odd in (False, True)]
    read = 0
    for data in files:
        for _ in range(40):
            spoilt = bytearray(data)
            for at in random.integers(0, len(data), random.integers(0, 4)):
                spoilt[at] = random.integers(0, 256)
            decoded = decode_plain(bytes(spoilt), int(2 ** random.integers(0, 4)))
            if decoded is not None:
                read += 1
                assert decode(bytes(spoilt)).size == decoded[1]
    assert read > 100


NO_ROOM = """
import io, resource, sys
from PIL import Image
from stagewright.data.images.decode import decode
data = sys.stdin.buffer.read()
decode(data)  # load all modules before memory is limited
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), resource.RLIM_INFINITY))
try:
    decode(data)
except (MemoryError, OSError) as error:
    print(type(error).__name__)
"""


def test_memory_that_runs_out_is_no_damage_of_the_image() -> None:
    """Otherwise a scan on a machine with little memory would exclude intact images."""
    data = encoded(Image.new("RGB", (6000, 6000)), "PNG")
    ended = subprocess.run([sys.executable, "-c", NO_ROOM], input=data, capture_output=True, check=True)
    assert ended.stdout.decode().strip() == "MemoryError"
