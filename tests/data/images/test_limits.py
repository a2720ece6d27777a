"""Tests that a file above a limit is unreadable by the limit's name, wherever images are read, and at once."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stagewright.augment.geometry import Geometry
from stagewright.data.dataset import load_dataset
from stagewright.data.images import crop, limits
from stagewright.data.images.crop import crop_into
from stagewright.data.images.decode import FileImages, decode, decode_plain, identified, measure
from stagewright.data.inspect.fingerprint import fingerprint
from stagewright.data.inspect.inspect import inspect
from stagewright.data.pack.build import pack
from stagewright.data.sources.scan import scan
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, before: bytes = b"", *, grey: bool = True) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scans(count: int, size: int = 64) -> bytes:
    """A progressive JPEG with the last scan repeated until it has ``count`` scans."""
    data = encoded(Image.new("L", (size, size)), "JPEG", progressive=True)
    last, own = data.rindex(b"\xff\xda"), data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - own) + b"\xff\xd9"


SMALL = encoded(Image.new("L", (64, 64)), "JPEG")
GIF = encoded(Image.new("P", (8, 8)), "GIF")
GIF_BODY = GIF.index(b"\x2c")

EXIF = b"\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0" + b"\xff" * 65519

HOSTILE = {
    "pixels": (png(60_000, 60_000, b""), "it has 3,600,000,000 pixels; at most 178,956,970 are read (max_pixels)"),
    "pixels of a little more": (png(13_378, 13_378, b""), "it has 178,970,884 pixels; at most 178,956,970"),
    "a row": (png(1 << 27, 1, zlib.compress(bytes(1 << 27))), "134,217,728 x 1 pixels; a side of at most 1,048,576"),
    "a column": (png(1, 1 << 27, b""), "1 x 134,217,728 pixels; a side of at most 1,048,576"),
    "scans": (scans(3000), "it has 3,000 progressive scans; at most 100 are read"),
    "fill bytes": (SMALL[:2] + b"\xff" * 10_000_000 + SMALL[2:], "more than 65,536 bytes without content"),
    "junk bytes": (SMALL[:20] + b"\0" * 10_000_000 + SMALL[20:], "more than 65,536 bytes without content"),
    "comments": (SMALL[:2] + b"\xff\xfe\0\2" * 1_000_000 + SMALL[2:], "more than 100,000 blocks"),
    "chunks": (png(8, 8, b"", chunk(b"IDAT", b"") * 200_000), "more than 100,000 blocks"),
    "extensions": (GIF[:GIF_BODY] + b"\x21\xfe\1a\0" * 1_000_000 + GIF[GIF_BODY:], "more than 100,000 blocks"),
    "junk in a GIF": (GIF[:GIF_BODY] + bytes(10_000_000) + GIF[GIF_BODY:], "more than 65,536 bytes without content"),
    "blanks in a PPM": (b"P6\n" + b" " * 10_000_000 + b"8 8 255\n" + bytes(192), "header has more than 65,536 bytes"),
    "an empty WebP": (encoded(Image.new("L", (8, 8)), "WEBP", lossless=True), ""),
    "a slow decoder": (encoded(Image.new("RGB", (1450, 1450)), "DDS"), "decoded slowly; at most 2,097,152 are read"),
    "EXIF": (SMALL[:2] + EXIF * 500 + SMALL[2:], "it has 32,767,500 bytes of EXIF; at most 1,048,576 are read"),
    "one colour": (png(10_000, 10_000, b"x" * 100), "stand for 100,000,000 pixels; above 33,554,432 pixels"),
}
# A lossless WebP states its size in 14 bits each, and needs no further bytes for the pixels of one colour.
WEBP, _ = HOSTILE.pop("an empty WebP")
AT = WEBP.index(b"VP8L") + 9
WIDE = WEBP[:AT] + struct.pack("<I", struct.unpack("<I", WEBP[AT : AT + 4])[0] | (16382 | 10899 << 14)) + WEBP[AT + 4 :]
HOSTILE["memory"] = (WIDE, "takes 3.6 GB to decode; at most 2.1 GB are used, 12 bytes for each of max_pixels")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_unreadable_by_name_and_at_once(kind: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[kind]
    began = time.thread_time()  # a thread that another test has left may be busy
    for read in (decode, measure):
        with pytest.raises(OSError) as found:
            read(data)
        assert reason in str(found.value) and "\n" not in str(found.value)
    assert fingerprint(data).reason == str(found.value)
    in_c = kind in ("fill bytes", "comments")  # libjpeg goes through these in a moment, but Pillow in Python
    assert in_c or decode_plain(data, 1) is None
    (tmp_path / "a.png").write_bytes(data)
    images = FileImages(str(tmp_path), pa.array(["a.png"]))
    assert scan(str(tmp_path), images.paths).reasons == {0: str(found.value)}
    out, box = np.ones((1, 8, 8, 3), np.uint8), np.array([[0.0, 0.0, 4.0, 4.0]])
    for exact in (False, True):
        whole = Geometry(box, np.zeros((1, 2), np.int64), np.zeros(1, bool))
        bad = crop_into(images, np.array([0]), whole, "bilinear", exact, out)
        assert in_c or (len(bad) == 1 and reason in bad[0][1])
    # Seven readings. In a process that keeps its memory, as a training does, Pillow clears 1.4 GB each time it opens "memory".
    assert time.thread_time() - began < 14


def test_files_within_the_limits_are_read() -> None:
    assert measure(scans(100)) == decode(scans(100)).size == (64, 64)
    assert measure(SMALL[:2] + b"\xff" * 60_000 + SMALL[2:]) == (64, 64)
    assert measure(SMALL[:2] + b"\xff\xfe\0\2" * 90_000 + SMALL[2:]) == (64, 64)
    assert measure(png(limits.MOST_SIDE, 1, zlib.compress(bytes(limits.MOST_SIDE + 1)))) == (limits.MOST_SIDE, 1)
    assert measure(GIF[:GIF_BODY] + b"\x21\xfe\1a\0" * 40_000 + GIF[GIF_BODY:]) == (8, 8)
    assert measure(b"P6\n#" + b"a" * 60_000 + b"\n8 8 255\n" + bytes(192)) == (8, 8)
    assert measure(encoded(Image.new("RGB", (200, 200)), "DDS")) == (200, 200)
    assert measure(SMALL[:2] + EXIF * 15 + SMALL[2:]) == (64, 64)


def test_scans_of_previews_do_not_count() -> None:
    """EXIF may hold a preview, and a multi-picture file many images, each with scans of its own."""
    preview = scans(60)
    data = SMALL[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + SMALL[2:]
    assert measure(data * 200) == (64, 64)
    with pytest.raises(OSError, match=r"it has 70 progressive scans of 100,000,000 pixels; at most 42 of this size"):
        measure(scans(70).replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 10_000, 10_000)) + bytes(20_000))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of small pictures, one picture of 90,000 pixels among them."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(8):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{at}.png")
    Image.fromarray(rng.integers(0, 256, (300, 300), dtype=np.uint8)).save(tmp_path / "photos" / "cat" / "wide.png")
    return tmp_path / "photos"


def test_max_pixels_of_a_recipe_counts_in_every_command(photos: Path, tmp_path: Path) -> None:
    few, many = Data(max_pixels=89_999), Data(max_pixels=90_000)
    reason = "it has 90,000 pixels; at most 89,999 are read (max_pixels)"
    everything = load_dataset(str(photos), many)
    assert len(everything.manifest) == 17
    fewer = load_dataset(str(photos), few)  # now from the cache, which knows the size of the picture
    assert [(one.path, one.reason) for one in fewer.excluded] == [("cat/wide.png", reason)]
    assert any("--set data.max_pixels=N" in note for note in fewer.notes)
    assert inspect(str(photos), few).evidence.fingerprints.reasons == {8: reason}
    assert not inspect(str(photos), many).evidence.fingerprints.reasons
    assert pack(str(photos), tmp_path / "few.pack", few, size=16).records == 16
    assert pack(str(photos), tmp_path / "many.pack", many, size=16).records == 17
    with pytest.raises(DataError, match=r"read large ones too: --set data\.max_pixels=N"):
        load_dataset(str(photos), few.model_copy(update={"bad_images": "fail"}))


def test_pictures_above_pillows_limit_are_read_where_the_recipe_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    data = png(120, 120, zlib.compress(bytes(121 * 120)))
    with pytest.raises(OSError, match=r"it has 14,400 pixels; at most 10,000 are read \(max_pixels\)"):
        decode(data, 10_000)
    assert decode(data, 20_000).size == (120, 120)


def test_the_default_is_that_of_the_recipe() -> None:
    assert Data().max_pixels == limits.MOST_PIXELS


@pytest.mark.parametrize(
    ("kind", "reason"), [("pipe", "it is a pipe"), ("device", "it is a device"), ("sparse", "1,024 MiB")]
)
def test_what_is_no_regular_file_of_sane_size_is_refused_when_it_replaces_an_image(
    kind: str, reason: str, tmp_path: Path
) -> None:
    """The native decoder opens the files of a batch itself, after the scan: a pipe would keep it waiting for ever."""
    place = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        with place.open("wb") as file:
            file.truncate(3 << 40)
    whole = Geometry(np.array([[0.0, 0.0, 4.0, 4.0]]), np.zeros((1, 2), np.int64), np.zeros(1, bool))
    images = FileImages(str(tmp_path), pa.array(["a.jpg"]))
    ((_, why),) = crop_into(images, np.array([0]), whole, "bilinear", False, np.ones((1, 8, 8, 3), np.uint8))
    assert reason in why
    assert reason in scan(str(tmp_path), images.paths).reasons[0]
    assert not identified(str(place))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_images_are_resized_to_the_same_bits(
    interpolation: Literal["bilinear", "bicubic"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)).save(tmp_path / "a.png")
    images, found = FileImages(str(tmp_path), pa.array(["a.png"])), []
    for large in (1, 1 << 25):
        monkeypatch.setattr(crop, "_LARGE", large)
        for box in ([0.0, 0.0, 90.0, 70.0], [10.5, 3.25, 80.75, 69.5]):
            view = Geometry(np.array([box]), np.zeros((1, 2), np.int64), np.ones(1, bool))
            found.append(out := np.empty((1, 16, 16, 3), np.uint8))
            assert not crop_into(images, np.array([0]), view, interpolation, True, out)
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])
