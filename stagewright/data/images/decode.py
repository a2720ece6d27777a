"""Decodes the bytes of image files to upright RGB images with Pillow and simplejpeg, and crops them.

Two conventions hold everywhere. An image is upright (EXIF orientation applied), RGB with 8 bits per channel, and the first
frame of its file. Every problem of a file raises an OSError with a message of one line, although Pillow itself raises a
dozen kinds of errors. Pillow decodes everything except plain JPEGs: the PNG decoder of torchvision 0.29 crashes the process
on some damaged files.

All functions may be called from many threads at once, on different images. Pillow's warnings about unusual files are
ignored, because a user cannot act on them. Files that cannot be read are reported instead.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import numpy as np
import pyarrow as pa
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from stagewright.data.images import limits
from stagewright.data.images.depth import to_8_bit
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.stored import Stored, read_file, read_stored

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

NOT_IDENTIFIED = "not a picture in any format that Pillow reads"

# Formats that Pillow knows by name but does not decode itself: most have no reader. EPS files are programs, which Pillow
# would run with Ghostscript.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_USUAL_BYTES = 1 << 26
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# The orientations of TIFF 6.0, tag 274. Pillow's ImageOps.exif_transpose does the same, but it also writes the EXIF block
# back, which fails for images with a valid orientation and other damaged tags.
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
    """A source of images, indexed by the row of a manifest. All methods may be called from many threads."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def load(self, row: int) -> Image.Image:
        """Returns the upright RGB image of ``row``. Raises OSError if it cannot be read."""
        ...

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the images of ``rows`` (N,) in their stored form, from which crops are made."""
        ...

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Converts ``boxes`` (N, 4) from pixels of the sizes in the manifest to pixels of the stored images."""
        ...


class FileImages:
    """Images in files: ``paths`` are relative to the folder ``root`` and have ``/`` as separator.

    Images with more than ``max_pixels`` cannot be read.
    """

    def __init__(self, root: str, paths: pa.StringArray, max_pixels: int = MOST_PIXELS) -> None:
        self.root = root
        self.paths = paths
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> bytes:
        """Returns the bytes of the file of ``row``. Raises OSError if it is missing, or cannot be read after several attempts."""
        return read_file(self.path(row))

    def path(self, row: int) -> str:
        """Returns the path of the file of ``row``."""
        return os.path.join(self.root, self.paths[row].as_py())

    def load(self, row: int) -> Image.Image:
        """Returns the upright RGB image of ``row``. Raises OSError if it cannot be read."""
        return decode(self.read(row), self.max_pixels)

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Reads the files of ``rows``."""
        return read_stored([self.path(row) for row in rows.tolist()], self.max_pixels)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ``boxes`` unchanged: files have the sizes of the manifest."""
        return boxes


class ArrayImages:
    """Images in memory: ``array`` is uint8 of shape (N, H, W, 3). Raises ValueError for other arrays."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ValueError(f"pictures in memory must be uint8 (N, H, W, 3), not {array.dtype} {array.shape}")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def load(self, row: int) -> Image.Image:
        """Returns the image of ``row``."""
        return Image.fromarray(self.array[row])

    def ensure(self, rows: NDArray[np.int64]) -> dict[int, Exception]:
        """Returns no failures: all images are in memory already."""
        return {}

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the images of ``rows`` as positions in the array, without a copy."""
        height, width = self.array.shape[1:3]
        count, each = len(rows), height * width * 3
        sizes = np.tile(np.array([width, height], np.int32), (count, 1))
        lengths, flat = np.full(count, each, np.int64), self.array.reshape(-1)
        return Stored("raw", [flat], np.zeros(count, np.int32), rows.astype(np.int64) * each, lengths, sizes)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ``boxes`` unchanged: the array has the sizes of the manifest."""
        return boxes


def decode(data: bytes | memoryview, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decodes the first frame of an image file, given as bytes, to an upright RGB image.

    An alpha channel is dropped: transparent pixels keep the colour that they store. Grey values with 16 or 32 bits and
    floats are converted with :func:`~stagewright.data.images.depth.to_8_bit`. Raises OSError with a reason of one line for
    damaged files, and for images above ``max_pixels`` or another limit of :mod:`stagewright.data.images.limits`.
    """
    try:
        return upright_rgb(open_image(data, max_pixels))
    except Exception as error:
        raise read_error(error, max_pixels) from error


def decode_for(
    data: bytes | memoryview, scale: int, max_pixels: int = MOST_PIXELS
) -> tuple[Image.Image, int, tuple[int, int]]:
    """Decodes as :func:`decode`, but a JPEG at 1 / ``scale`` (1, 2, 4 or 8) of its size.

    Returns the image, the scale that was used (1 if the file is not a JPEG), and its full (width, height).
    """
    try:
        image = open_image(data, max_pixels)
        size = image.size
        # Decoded in one piece: Pillow's usual pieces of 64 KB are a few percent slower.
        image.decodermaxblock = len(data)
        if scale > 1 and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (max(size[0] // scale, 1), max(size[1] // scale, 1)))
            scale = scale if image.size != size else 1
        else:
            scale = 1
        upright = upright_rgb(image)
        return upright, scale, upright.size if scale == 1 else turned(size, image)
    except Exception as error:
        raise read_error(error, max_pixels) from error


def decode_plain(data: bytes | memoryview, scale: int) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Decodes a plain JPEG at 1 / ``scale`` of its size with simplejpeg, which is up to 1.3 times as fast as Pillow.

    Returns the pixels, uint8 (H, W, 3), and the full (width, height). Returns None for every other file, and if the decoder
    reports an error or a warning: Pillow then decides whether the file is readable.
    """
    size = _plain_jpeg_size(data)
    if size is None or size[0] * size[1] > MOST_PIXELS or limits.has_many_scans(data):
        return None
    height, width = -(-size[1] // scale), -(-size[0] // scale)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=scale)
    except ValueError:
        return None
    return (pixels, size) if pixels.shape == (height, width, 3) else None


def _plain_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Returns (width, height) if the headers describe an upright JPEG with 8 bits and 1 or 3 channels, else None.

    Also returns None if the file does not end with the end marker of JPEG.
    """
    if bytes(data[:2]) != b"\xff\xd8" or b"\xff\xd9" not in bytes(data[-4096:]):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if kind in (0xC0, 0xC1, 0xC2):
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return (width, height) if data[at + 4] == 8 and data[at + 9] in (1, 3) else None
        if kind == 0xE1:  # EXIF or XMP, which may contain an orientation
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


def turned(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """Returns the (width, height) of ``image`` of this ``size`` when it is upright."""
    return (size[1], size[0]) if orientation_of(image) >= 5 else size


def measure(data: bytes, max_pixels: int = MOST_PIXELS) -> tuple[int, int]:
    """Returns the upright (width, height) of the image in ``data``, and checks that all of it can be decoded.

    Raises OSError exactly if :func:`decode` does. JPEGs are decoded to grey at 1/8 of their size: this still reads every
    byte of the entropy-coded data, so it detects truncated files, and skips most of the other work.
    """
    try:
        image = open_image(data, max_pixels)
        if image.format not in ("JPEG", "MPO"):
            return upright_rgb(image).size
        size = image.size
        image.draft("L", (1, 1))
        image.load()
        return turned(size, image)
    except Exception as error:
        raise read_error(error, max_pixels) from error


def identified(file: str | BinaryIO) -> bool:
    """Returns True if a file, its path or open, begins like an image, damaged or not. OSError if it cannot be opened."""
    if isinstance(file, str):
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
            return identified(opened)
    _silence_pillow()
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
    """Crops ``box`` out of an RGB ``image`` and resizes it to ``size``; returns read-only uint8 (height, width, 3).

    ``box`` is (left, top, right, bottom) in pixels of ``image`` and may have fractions; ``size`` is (width, height). The
    resize is antialiased, and uses only pixels that the box touches. With ``exact``, the bits are the same with every version
    of Pillow, which takes a second call. A box that exceeds the image by less than 1/1000 pixel (rounding) is clamped. Raises
    ValueError for a box that exceeds the image by more, or is empty, and for images that are not RGB.
    """
    left, top, right, bottom = box
    width, height = image.size
    slack = 1e-3
    if image.mode != "RGB":
        raise ValueError(f"crop_resize needs an RGB picture, not {image.mode}")
    if not (-slack <= left < right <= width + slack and -slack <= top < bottom <= height + slack):
        raise ValueError(f"the box {box} is not within a picture of {width} x {height} pixels")
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    whole = whole_pixels(inside, image.size)
    part = image if whole == (0, 0, width, height) else image.crop(whole)  # which copies, also the whole of it
    left, top, right, bottom = inside[0] - whole[0], inside[1] - whole[1], inside[2] - whole[0], inside[3] - whole[1]
    # The exact resize is horizontal first, then vertical. In a single call, some versions of Pillow use the other order for
    # tall images, which rounds differently. The native decoder gives the same bits as the two calls.
    if not exact:
        return np.asarray(part.resize(size, _FILTERS[interpolation], box=(left, top, right, bottom)))
    across = part.resize((size[0], part.height), _FILTERS[interpolation], box=(left, 0, right, part.height))
    return np.asarray(across.resize(size, _FILTERS[interpolation], box=(0, top, size[0], bottom)))


def whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of the pixels that ``box`` touches in an image of ``size`` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    return (
        max(math.floor(left), 0),
        max(math.floor(top), 0),
        min(math.ceil(right), width),
        min(math.ceil(bottom), height),
    )


@cache
def _formats() -> tuple[str, ...]:
    """Returns Pillow's formats in the order in which they are tried: first the common ones.

    Formats without a signature (such as TGA) come last, since their readers accept arbitrary bytes.
    """
    Image.preinit()  # registers the common formats first
    Image.init()  # then all others
    known = [name for name in Image.ID if name not in _NOT_DECODED]
    return tuple(sorted(known, key=lambda name: Image.OPEN[name][1] is None))


@cache
def image_extensions() -> frozenset[str]:
    """Returns the file extensions of all image formats that Pillow decodes: lower case, with the dot."""
    formats = _formats()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def open_image(data: bytes | memoryview, max_pixels: int = MOST_PIXELS) -> ImageFile:
    """Opens the bytes of a file with Pillow, without decoding the pixels. Errors of Pillow are not converted.

    Raises OSError for an image above ``max_pixels`` or another limit of :mod:`stagewright.data.images.limits`.
    """
    _silence_pillow()
    if not data:
        raise OSError("the file is empty")
    limits.check_structure(data)
    limits.raise_pillows_limit(max_pixels)
    image = Image.open(io.BytesIO(data), formats=_formats())
    limits.check_header(image, data, max_pixels)
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes ``image`` and returns it as upright RGB with 8 bits, rotated according to its EXIF orientation."""
    # Read the orientation after loading: in a PNG it may follow the pixels, and loading a TIFF already applies it.
    image.load()
    orientation = orientation_of(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bit(np.asarray(image)))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8. It is 1 if EXIF is missing or damaged, since the pixels are usable anyway."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def read_error(error: Exception, max_pixels: int = MOST_PIXELS) -> OSError | MemoryError:
    """Converts ``error`` to the exception to raise: an OSError, or the MemoryError itself if the machine has no memory left."""
    if isinstance(error, Image.DecompressionBombError) and (pixels := re.search(r"\((\d+) pixels", str(error))):
        return limits.too_many_pixels(int(pixels[1]), max_pixels)
    if isinstance(error, UnidentifiedImageError):
        return UnidentifiedImageError(NOT_IDENTIFIED)
    if isinstance(error, MemoryError):
        return OSError("it needs more memory than there is") if _has_memory() else error
    text = str(error).strip().splitlines()
    return OSError(text[0] if text else type(error).__name__)


def _has_memory() -> bool:
    """Returns True if the memory for an image of usual size is available now."""
    try:
        bytearray(_USUAL_BYTES)
    except MemoryError:
        return False
    return True


def _silence_pillow() -> None:
    """Ignores all warnings of Pillow's modules, which ``python -W error`` would turn into errors while an image is decoded.

    ``warnings.catch_warnings`` is not thread-safe, because it replaces the filters of the whole process. Therefore one filter
    is inserted before all others. It is inserted again if another filter has been put before it.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", None) != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW)


_PILLOW = r"PIL\."
_silence_pillow()
