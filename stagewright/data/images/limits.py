"""The limits within which an image file is decoded, checked before any pixel is.

A small file can claim any number of pixels, scans or blocks. Within these limits one image takes at most some seconds, and
memory of 12 bytes for each of ``max_pixels``: 2 GiB at its default. No limit is a time: the same file must be readable on
a slow machine and on a fast one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MOST_PIXELS = 178_956_970
"""Pixels of an image, by default (``data.max_pixels``): Pillow's own limit."""
MOST_SIDE = 1 << 20
"""Pixels of one side. Pillow packs no row above 89 million pixels, and the native decoder takes none above 16 million."""
MOST_SCANS = 100
"""Scans of a JPEG. Files have about 10; each further scan costs a pass over all pixels."""
MOST_SCANNED_PIXELS = 1 << 32
"""Pixels times scans of a JPEG."""
MOST_BLOCKS = 100_000
"""Segments, chunks or blocks before the pixels (of a PNG, in the whole file), and strips or tiles."""
MOST_FILL = 1 << 16
"""Bytes without content before the pixels."""
MOST_EXIF = 1 << 20
"""Bytes of EXIF in a JPEG. One segment holds 65,533; Pillow joins several, and reads them whole."""
MOST_SLOW_PIXELS = 1 << 21
"""Pixels of an image that Pillow decodes in Python, at up to 5 microseconds each."""
MOST_SOLID_PIXELS = 1 << 25
MOST_PIXELS_PER_BYTE = 10_000
"""Pixels for each byte of the file, of an image with more than ``MOST_SOLID_PIXELS``. Deflate reaches 8,256."""

_MEMORY_PER_PIXEL = 12
# Measured: peak bytes per pixel of decoding and conversion to an array. All other formats stay below 12.
_HUNGRY = {"WEBP": 20, "JPEG2000": 20, "AVIF": 13}
_HUNGRY_MODES = {"I": 17, "F": 17}
# Pillow's decoders that are written in Python.
_SLOW = frozenset({"BLP1", "BLP2", "MSP", "bmp_rle", "dds_rgb", "fits_gzip", "ppm", "ppm_plain", "qoi", "xpm"})

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_PNM_HEAD = re.compile(rb"P[1-6f](?:(?:\s|#[^\r\n]*[\r\n])+[0-9.+-]+){2,3}\s")


def too_many_pixels(pixels: int, most: int) -> OSError:
    """Returns the error for an image of more than ``most`` pixels. :data:`ABOVE_MAX_PIXELS` is part of its text."""
    return OSError(f"it has {pixels:,} pixels; at most {most:,} {ABOVE_MAX_PIXELS}")


ABOVE_MAX_PIXELS = "are read (max_pixels)"


def check_structure(data: bytes | memoryview) -> None:
    """Raises OSError for a file with too many blocks or fill bytes before its pixels, through which Pillow goes in Python."""
    head = bytes(data[:8])
    if head[:3] == b"\xff\xd8\xff":
        _check_jpeg_head(data)
    elif head[:4] == b"\x89PNG":
        _check_png_chunks(data)
    elif head[:4] == b"GIF8":
        _check_gif_head(data)
    elif head[:1] == b"P" and head[1:2] in b"123456f" and len(data) > MOST_FILL:
        _check_pnm_head(data)


def check_header(image: ImageFile, data: bytes | memoryview, most_pixels: int) -> None:
    """Raises OSError if ``image``, opened from ``data`` and not decoded yet, is above a limit; the error names the limit."""
    width, height = image.size
    pixels = width * height
    form = image.format or ""
    if pixels > most_pixels:
        raise too_many_pixels(pixels, most_pixels)
    if max(width, height) > MOST_SIDE:
        raise OSError(f"it is {width:,} x {height:,} pixels; a side of at most {MOST_SIDE:,} is read")
    each = _HUNGRY.get(form, _HUNGRY_MODES.get(image.mode, 0))
    if each * pixels > _MEMORY_PER_PIXEL * most_pixels:
        needed, most = each * pixels / 1e9, _MEMORY_PER_PIXEL * most_pixels / 1e9
        raise OSError(
            f"a {form} file of {pixels:,} pixels takes {needed:.1f} GB to decode; at most {most:.1f} GB are used, "
            f"{_MEMORY_PER_PIXEL} bytes for each of max_pixels"
        )
    if pixels > MOST_SOLID_PIXELS and pixels > MOST_PIXELS_PER_BYTE * len(data):
        raise OSError(
            f"its {len(data):,} bytes stand for {pixels:,} pixels; above {MOST_SOLID_PIXELS:,} pixels, at most "
            f"{MOST_PIXELS_PER_BYTE:,} for each byte are read"
        )
    if form in ("JPEG", "MPO"):
        _check_scans(data, pixels)
        return
    tiles = getattr(image, "tile", ())
    if len(tiles) > MOST_BLOCKS:
        raise OSError(f"it has {len(tiles):,} strips or tiles; at most {MOST_BLOCKS:,} are read")
    if pixels > MOST_SLOW_PIXELS and any(tile[0] in _SLOW for tile in tiles):
        raise OSError(
            f"it has {pixels:,} pixels, and this kind of {form} is decoded slowly; at most {MOST_SLOW_PIXELS:,} are read: "
            "save it as PNG"
        )


def accepted(widths: NDArray[np.int32] | int, heights: NDArray[np.int32] | int) -> int:
    """Returns ``max_pixels`` for images of these sizes in pixels, which have been read before: at least the default."""
    return max(MOST_PIXELS, int((np.asarray(widths, np.int64) * heights).max(initial=0)))


def has_many_scans(data: bytes | memoryview) -> bool:
    """Whether a JPEG may have more scans than are read; quick, and True for some files that have fewer."""
    return bytes(data).count(b"\xff\xda") > MOST_SCANS


def raise_pillows_limit(most_pixels: int) -> None:
    """Raises ``Image.MAX_IMAGE_PIXELS`` if Pillow would refuse an image of ``most_pixels``; never lowers it."""
    if Image.MAX_IMAGE_PIXELS is not None and most_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-most_pixels // 2)


def _check_scans(data: bytes | memoryview, pixels: int) -> None:
    content = bytes(data)
    scans = content.count(b"\xff\xda")  # an upper bound: an embedded preview has scans of its own
    if scans > MOST_SCANS or scans * pixels > MOST_SCANNED_PIXELS:
        scans = _num_scans(content)
    if scans > MOST_SCANS:
        raise OSError(f"it has {scans:,} progressive scans; at most {MOST_SCANS} are read")
    if scans * pixels > MOST_SCANNED_PIXELS:
        raise OSError(
            f"it has {scans:,} progressive scans of {pixels:,} pixels; at most {MOST_SCANNED_PIXELS // pixels:,} of this "
            "size are read"
        )


def _num_scans(data: bytes) -> int:
    """Returns the number of scans of the first image of a JPEG file."""
    at, scans = 2, 0
    while found := _JPEG_MARKER.search(data, at):
        at, kind = found.start(), data[found.start() + 1]
        if kind == 0xD9:
            break
        if kind == 0xDA:
            scans += 1
            end = _SCAN_END.search(data, at + 2 + _word(data, at + 2))
            at = end.start() if end else len(data)
        else:
            at += 2 if _stands_alone(kind) else 2 + max(_word(data, at + 2), 2)
    return scans


def _check_jpeg_head(data: bytes | memoryview) -> None:
    at, blocks, fill, exif = 2, 0, 0, 0
    while found := _JPEG_MARKER.search(data, at):
        fill += found.start() - at
        at, kind = found.start(), data[found.start() + 1]
        blocks += 1
        if kind == 0xE1 and bytes(data[at + 4 : at + 8]) == b"Exif":
            exif += _word(data, at + 2)
        if fill > MOST_FILL or kind == 0xDA or blocks > MOST_BLOCKS:
            break
        at += 2 if _stands_alone(kind) else 2 + _word(data, at + 2)
    else:
        fill += max(len(data) - at, 0)
    _check_counts(blocks, fill)
    if exif > MOST_EXIF:
        raise OSError(f"it has {exif:,} bytes of EXIF; at most {MOST_EXIF:,} are read")


def _check_png_chunks(data: bytes | memoryview) -> None:
    at, chunks, size = 8, 0, len(data)
    while at + 8 <= size and chunks <= MOST_BLOCKS:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        chunks += 1
    _check_counts(chunks, 0)


def _check_gif_head(data: bytes | memoryview) -> None:
    if len(data) < 14:
        return
    at, blocks, fill = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0, 0
    while found := _GIF_BLOCK.search(data, at):
        fill += found.start() - at
        at = found.start()
        if fill > MOST_FILL or data[at] != 0x21 or blocks > MOST_BLOCKS:
            break
        at += 2
        while at < len(data) and data[at] and blocks <= MOST_BLOCKS:
            at += 1 + data[at]
            blocks += 1
        at, blocks = at + 1, blocks + 1
    else:
        fill += max(len(data) - at, 0)
    _check_counts(blocks, fill)


def _check_pnm_head(data: bytes | memoryview) -> None:
    if not _PNM_HEAD.match(bytes(data[:MOST_FILL])):
        raise OSError(f"its header has more than {MOST_FILL:,} bytes, the most that are read")


def _check_counts(blocks: int, fill: int) -> None:
    if blocks > MOST_BLOCKS:
        raise OSError(f"it consists of more than {MOST_BLOCKS:,} blocks, the most that are read")
    if fill > MOST_FILL:
        raise OSError(f"it has more than {MOST_FILL:,} bytes without content before its pixels, the most that are read")


def _stands_alone(kind: int) -> bool:
    """Whether a JPEG marker has no length and no content."""
    return kind == 0x01 or 0xD0 <= kind <= 0xD9


def _word(data: bytes | memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
