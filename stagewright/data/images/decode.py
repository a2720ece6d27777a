"""From bytes to upright RGB pictures, and from those to crops: the one place where Pillow and simplejpeg are called.

Owns two conventions. A picture is upright (EXIF orientation applied), RGB, 8 bits, and the first frame of its file. And
whatever is wrong with a file arrives as an OSError that says so in one line: Pillow alone raises a dozen kinds. Reading
is Pillow's but for plain JPEGs, since torchvision 0.29's PNG decoder ends the process on some damaged files.

Everything here may be called from many threads at once, on different pictures. Pillow's warnings about odd files are
switched off for its own modules, as nobody can act on them; what cannot be read is reported instead.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from stagewright.data.images.stored import MOST_BYTES as MOST_BYTES
from stagewright.data.images.stored import Stored, read_file, read_stored

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

NOT_IDENTIFIED = "not a picture in any format that Pillow reads"


# Formats that Pillow knows by name but does not decode itself: stubs without a reader, and EPS, a program that it would
# hand to Ghostscript to run.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_USUAL_BYTES = 1 << 26
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# TIFF 6.0, tag 274. Pillow's ImageOps.exif_transpose does the same but writes the whole EXIF block back, which fails on
# pictures whose orientation is sound and whose other tags are not.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Images(Protocol):
    """Pictures by row of a manifest. All of it may be called from many threads."""

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def load(self, row: int) -> Image.Image:
        """The upright RGB picture of ``row``; OSError if it cannot be read."""
        ...

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """The pictures of ``rows`` as they are stored, to crop from."""
        ...

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """``boxes`` (N, 4) in pixels of the manifest's sizes, in pixels of what is stored."""
        ...


class FileImages:
    """Pictures in files: ``root`` joined with ``paths`` (relative, ``/`` separators)."""

    def __init__(self, root: str, paths: pa.StringArray) -> None:
        self.root = root
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> bytes:
        """The bytes of the file of ``row``; OSError if there is none or it cannot be read, after several attempts."""
        return read_file(self.path(row))

    def path(self, row: int) -> str:
        """Where the file of ``row`` lies."""
        return os.path.join(self.root, self.paths[row].as_py())

    def load(self, row: int) -> Image.Image:
        """The upright RGB picture of ``row``; OSError if it cannot be read."""
        return decode(self.read(row))

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """The bytes of the files of ``rows``."""
        return read_stored([self.path(row) for row in rows.tolist()])

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """``boxes`` as they are: files hold what the manifest says."""
        return boxes


class ArrayImages:
    """Pictures in memory: ``array`` is uint8 of shape (N, H, W, 3)."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ValueError(f"pictures in memory are uint8 (N, H, W, 3), not {array.dtype} {array.shape}")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def load(self, row: int) -> Image.Image:
        """The picture of ``row``."""
        return Image.fromarray(self.array[row])

    def ensure(self, rows: NDArray[np.int64]) -> dict[int, Exception]:
        """No failures: all pictures are there."""
        return {}

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """The pictures of ``rows`` within the array."""
        height, width = self.array.shape[1:3]
        count, each = len(rows), height * width * 3
        sizes = np.tile(np.array([width, height], np.int32), (count, 1))
        lengths, flat = np.full(count, each, np.int64), self.array.reshape(-1)
        return Stored("raw", [flat], np.zeros(count, np.int32), rows.astype(np.int64) * each, lengths, sizes)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """``boxes`` as they are."""
        return boxes


def decode(data: bytes | memoryview) -> Image.Image:
    """The picture in the bytes of a file: upright, RGB, first frame; OSError with a one-line reason if it is damaged.

    Alpha is dropped, which leaves the colours that transparent pixels have underneath. Grey of 16 or 32 bits and floats
    are brought to 8 bits as :func:`to_8_bit` says. Pictures of more than twice ``Image.MAX_IMAGE_PIXELS`` (179 million
    pixels) are refused as decompression bombs.
    """
    try:
        return upright_rgb(open_image(data))
    except Exception as error:
        raise read_error(error) from error


def decode_for(data: bytes | memoryview, scale: int) -> tuple[Image.Image, int, tuple[int, int]]:
    """As :func:`decode`, at 1 / ``scale`` of the size (1, 2, 4, 8) where the file is a JPEG. Returns the picture, the scale
    that it has, and its full size."""
    try:
        image = open_image(data)
        size = image.size
        image.decodermaxblock = len(data)  # all at once: Pillow's usual pieces of 64 KB cost a few percent
        if scale > 1 and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (max(size[0] // scale, 1), max(size[1] // scale, 1)))
            scale = scale if image.size != size else 1
        else:
            scale = 1
        upright = upright_rgb(image)
        return upright, scale, upright.size if scale == 1 else _turned(size, image)
    except Exception as error:
        raise read_error(error) from error


def decode_plain(data: bytes | memoryview, scale: int) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """A plain JPEG's pixels at 1 / ``scale`` of its size, uint8 (H, W, 3), and its full (width, height); None for every
    other file, and for one about which the decoder has something to say: Pillow judges those.

    simplejpeg hands libjpeg-turbo's pixels on as they are; through Pillow, decoding takes up to 1.3 times as long.
    """
    size = _plain_jpeg_size(data)
    if size is None or size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    height, width = -(-size[1] // scale), -(-size[0] // scale)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=scale)
    except ValueError:
        return None
    return (pixels, size) if pixels.shape == (height, width, 3) else None


def _plain_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height), if the file says that it is an upright JPEG of 8 bits in grey or three colours that ends where it
    should."""
    if bytes(data[:2]) != b"\xff\xd8" or b"\xff\xd9" not in bytes(data[-4096:]):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if kind in (0xC0, 0xC1, 0xC2):
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return (width, height) if data[at + 4] == 8 and data[at + 9] in (1, 3) else None
        if kind == 0xE1:  # EXIF or XMP, where an orientation may stand
            return _plain_size_to_pillow(data)
        if length < 2 or kind in (0xD8, 0xD9, 0xDA) or 0xF0 <= kind != 0xFE:
            return None
        at += 2 + length
    return None


def _plain_size_to_pillow(data: bytes | memoryview) -> tuple[int, int] | None:
    try:
        image = open_image(data)
    except Exception:
        return None
    plain = image.format == "JPEG" and image.mode in ("L", "RGB") and orientation_of(image) == 1
    return image.size if plain else None


def _turned(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    return (size[1], size[0]) if orientation_of(image) >= 5 else size


def measure(data: bytes) -> tuple[int, int]:
    """Upright (width, height) of the picture in ``data``, after reading all of it; OSError exactly where :func:`decode`
    raises one.

    JPEGs are decoded to grey at an eighth of their size: that still takes every byte of the entropy-coded stream, where
    truncation shows, and saves the rest of the work.
    """
    try:
        image = open_image(data)
        if image.format not in ("JPEG", "MPO"):
            return upright_rgb(image).size
        size = image.size
        image.draft("L", (1, 1))
        image.load()
        return _turned(size, image)
    except Exception as error:
        raise read_error(error) from error


def identified(path: str) -> bool:
    """Whether a file begins like a picture, damaged or not, without reading the rest; OSError if it cannot be opened."""
    _silence_pillow()
    with open(path, "rb") as file:
        try:
            Image.open(file, formats=_formats())
        except UnidentifiedImageError:
            return False
        except Exception:
            return True
    return True


def crop_resize(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: Literal["bilinear", "bicubic"],
    *,
    exact: bool = True,
) -> NDArray[np.uint8]:
    """The part ``box`` of an RGB ``image``, resized to ``size``: uint8 of shape (height, width, 3), read-only.

    ``box`` is (left, top, right, bottom) in pixels of ``image``, fractions allowed; ``size`` is (width, height). The
    filter is widened by the scale, so nothing aliases, and sees no pixel that the box does not touch. A box that leaves
    the picture by less than a thousandth of a pixel (rounding) is clamped; ValueError for one that leaves it by more, or
    is empty. ``exact``: the same bits with every version of Pillow, at the price of a second call.
    """
    left, top, right, bottom = box
    width, height = image.size
    slack = 1e-3
    if image.mode != "RGB":
        raise ValueError(f"crop_resize takes RGB pictures, not {image.mode}")
    if not (-slack <= left < right <= width + slack and -slack <= top < bottom <= height + slack):
        raise ValueError(f"the box {box} does not lie within a picture of {width} x {height} pixels")
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    whole = whole_pixels(inside, image.size)
    part = image.crop(whole)
    left, top, right, bottom = inside[0] - whole[0], inside[1] - whole[1], inside[2] - whole[0], inside[3] - whole[1]
    # Across, then down: in one call some versions of Pillow take the other order where the picture is tall, which rounds
    # differently. The native decoder gives the same bits.
    if not exact:
        return np.asarray(part.resize(size, _FILTERS[interpolation], box=(left, top, right, bottom)))
    across = part.resize((size[0], part.height), _FILTERS[interpolation], box=(left, 0, right, part.height))
    return np.asarray(across.resize(size, _FILTERS[interpolation], box=(0, top, size[0], bottom)))


def whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a picture of ``size`` (width, height) that ``box`` touches, as left, top, right, bottom."""
    left, top, right, bottom = box
    width, height = size
    return (
        max(math.floor(left), 0),
        max(math.floor(top), 0),
        min(math.ceil(right), width),
        min(math.ceil(bottom), height),
    )


def to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey ``values`` (H, W) of 16 or 32 bits or floats, brought to 0-255 by a rule that looks at this picture alone.

    Integers from 0 up are divided by the smallest of the usual full scales (8, 10, 12, 14, 16 bits) that holds the
    picture: 12-bit scans in 16-bit files keep their contrast. Floats within [0, 1] are multiplied by 255, floats within
    [0, 255] kept. All else (negative, beyond 16 bits) is stretched from its minimum to its maximum. NaN counts as 0.
    """
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = (float(grey.min()), float(grey.max())) if grey.size else (0.0, 0.0)
    if values.dtype.kind == "f":
        full_scale = 1.0 if high <= 1.0 else 255.0
    else:
        full_scale = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), 2.0**16 - 1)
    if low < 0 or high > full_scale:
        grey, full_scale = grey - low, max(high - low, np.finfo(np.float64).tiny)
    return np.rint(grey / full_scale * 255).astype(np.uint8)


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's formats in the order in which they are tried: common ones first, and last those without a signature (TGA
    and the like), which take arbitrary bytes for theirs."""
    Image.preinit()  # registers the common formats, before
    Image.init()  # all others
    known = [name for name in Image.ID if name not in _NOT_DECODED]
    return tuple(sorted(known, key=lambda name: Image.OPEN[name][1] is None))


@cache
def picture_extensions() -> frozenset[str]:
    """Extensions of file names that promise a picture Pillow decodes: lower case, with the dot."""
    formats = _formats()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def open_image(data: bytes | memoryview) -> ImageFile:
    """Pillow's image of the bytes of a file, its pixels not decoded yet. What Pillow raises passes."""
    _silence_pillow()
    if not data:
        raise OSError("the file is empty")
    return Image.open(io.BytesIO(data), formats=_formats())


def upright_rgb(image: Image.Image) -> Image.Image:
    """``image`` decoded, in RGB of 8 bits, turned as EXIF says."""
    # Orientation after loading: in PNG it may stand behind the pixels, and loading a TIFF already applies it.
    image.load()
    orientation = orientation_of(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bit(np.asarray(image)))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or EXIF is damaged: the pixels are good all the same."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def read_error(error: Exception) -> OSError | MemoryError:
    """What to raise for ``error``: an OSError where the picture is to blame, the MemoryError itself where the machine is."""
    if isinstance(error, UnidentifiedImageError):
        return UnidentifiedImageError(NOT_IDENTIFIED)
    if isinstance(error, MemoryError):
        return OSError("it needs more memory than there is") if _has_memory() else error
    text = str(error).strip().splitlines()
    return OSError(text[0] if text else type(error).__name__)


def _has_memory() -> bool:
    """Whether a usual picture would find room now."""
    try:
        bytearray(_USUAL_BYTES)
    except MemoryError:
        return False
    return True


def _silence_pillow() -> None:
    """Keeps Pillow's warnings from the user, and from becoming errors in the middle of a picture under ``-W error``.

    ``warnings.catch_warnings`` is not safe in threads: it swaps the filters of the whole process. So one filter for
    Pillow's modules is put in front of all others, and again where somebody has since put another there.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", None) != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW)


_PILLOW = r"PIL\."
_silence_pillow()
