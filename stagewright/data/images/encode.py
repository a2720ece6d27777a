"""Encodes pixels for pages and records: small pictures as PNG, larger ones as JPEG."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITY = 82
_PLAIN_SIDE = 64
"""Pictures up to this side are PNGs, whose pixels a page enlarges without smoothing: JPEG would blur what is in them."""


def encoded(pixels: NDArray[np.uint8], side: int | None = None) -> bytes:
    """Returns ``pixels``, uint8 (H, W, 3), as the bytes of a PNG (small pictures) or JPEG file, reduced to at most ``side``."""
    image = Image.fromarray(pixels)
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if max(image.size) <= _PLAIN_SIDE:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def data_uri(file: bytes) -> str:
    """Returns the address that holds a PNG or JPEG ``file`` itself, for pages in one file."""
    kind = "png" if is_png(file) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def is_png(file: bytes) -> bool:
    """Returns whether ``file`` begins as a PNG does."""
    return file.startswith(b"\x89PNG")
