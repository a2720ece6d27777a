"""Calls the native decoder, a C library that crops many images in one call and decodes only the parts that it needs.

The library is optional. :func:`available` returns False, and Pillow is used, if the compiler or libjpeg's headers were
missing at installation, or if the environment has ``STAGEWRIGHT_NATIVE=0``. The C source is in the folder ``native``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.stored import Stored

_FILTERS = {"bilinear": 0, "bicubic": 1}

DONE = 0
"""The code of an image that was cropped. An image with any other code must be cropped with Pillow."""


@cache
def _module() -> Any:
    if switched_off():
        return None
    try:
        from stagewright.data.images import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return None
    return _native


def switched_off() -> bool:
    """Returns True if the environment switches the native decoder off (``STAGEWRIGHT_NATIVE=0``)."""
    return os.environ.get("STAGEWRIGHT_NATIVE", "1") == "0"


def available() -> bool:
    """Returns True if the native decoder is installed and not switched off."""
    return _module() is not None


def describe() -> str:
    """Describes the active decoder in words, for ``doctor`` and for the record of a run's environment."""
    module = _module()
    if module is None:
        return "Pillow: the native decoder is " + (
            "switched off by STAGEWRIGHT_NATIVE=0" if switched_off() else "not built"
        )
    library, turbo, path = module.info()
    name = (
        f"libjpeg-turbo {turbo // 1_000_000}.{turbo // 1000 % 1000}.{turbo % 1000}" if turbo else f"libjpeg {library}"
    )
    return f"native: {name}, {path}"


def crop(
    stored: Stored,
    boxes: NDArray[np.float64],
    flips: NDArray[np.bool_],
    size: int,
    interpolation: Literal["bilinear", "bicubic"],
    exact: bool,
    out: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Crops N images to ``boxes``, float64 (N, 4) in upright pixels, and resizes them into ``out``.

    ``out`` is uint8 (N, size, size, 3) and contiguous. With ``exact``, JPEGs are decoded at full size and resized with
    exactly the bits of Pillow. Otherwise a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size at which the
    box is still at least ``size`` pixels wide and high. Returns a code for each image, uint8 (N,): :data:`DONE` if it was
    cropped; the pixels of all other images in ``out`` are undefined.
    """
    chosen, edges = _FILTERS[interpolation], np.ascontiguousarray(boxes, np.float64)
    mirrored = np.ascontiguousarray(flips, np.bool_)
    if stored.kind == "raw":
        sizes = np.ascontiguousarray(stored.sizes, np.int32)
        codes = _module().crop_raw(
            stored.buffers, stored.which, stored.offsets, sizes, edges, mirrored, size, chosen, exact, out
        )
    else:
        codes = _module().crop_jpegs(
            *(stored.buffers, stored.which, stored.offsets, stored.lengths),
            *(edges, mirrored, size, chosen, exact, out),
        )
    return np.frombuffer(codes, np.uint8)


def crop_files(
    paths: Sequence[str],
    boxes: NDArray[np.float64],
    flips: NDArray[np.bool_],
    size: int,
    interpolation: Literal["bilinear", "bicubic"],
    exact: bool,
    out: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], float]:
    """Reads the N files ``paths`` and crops them as :func:`crop` does. Returns the codes and the seconds spent on reading."""
    codes, seconds = _module().crop_files(
        [os.fsencode(path) for path in paths],
        np.ascontiguousarray(boxes, np.float64),
        np.ascontiguousarray(flips, np.bool_),
        size,
        _FILTERS[interpolation],
        exact,
        out,
    )
    return np.frombuffer(codes, np.uint8), seconds


def gather(
    array: NDArray[np.uint8],
    rows: NDArray[np.int64],
    shifts: NDArray[np.int64],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    """Copies the images ``rows`` of ``array`` (M, S, S, 3) to ``out`` (N, S, S, 3), both uint8 and contiguous.

    Each image is shifted by ``shifts`` (N, 2) pixels and mirrored horizontally if ``flips`` (N,) is True.
    """
    size = out.shape[1]
    limited = np.clip(shifts, -size, size)  # a shift by the whole side already leaves only black pixels
    _module().gather(
        array,
        np.ascontiguousarray(rows, np.int64),
        np.ascontiguousarray(limited, np.int64),
        np.ascontiguousarray(flips, np.bool_),
        size,
        out,
    )
