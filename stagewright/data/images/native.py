"""The native decoder, where it was built: crops of many pictures in one call, decoding no more than they need.

Optional: without a compiler or libjpeg's header at installation, or with ``STAGEWRIGHT_NATIVE=0`` in the environment,
:func:`available` is False and Pillow does the work. Its C source is in the folder ``native``.
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
"""The code of a picture that was cropped; any other leaves it to Pillow."""


@cache
def _module() -> Any:
    if os.environ.get("STAGEWRIGHT_NATIVE", "1") == "0":
        return None
    try:
        from stagewright.data.images import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return None
    return _native


def available() -> bool:
    """Whether the native decoder is there and wanted."""
    return _module() is not None


def describe() -> str:
    """What is active, in words, for ``doctor`` and for a run's record of its environment."""
    module = _module()
    if module is None:
        wanted = os.environ.get("STAGEWRIGHT_NATIVE", "1") != "0"
        return "Pillow: the native decoder is " + ("not built" if wanted else "switched off by STAGEWRIGHT_NATIVE=0")
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
    """Fills ``out``, uint8 (N, size, size, 3) and contiguous, with the parts ``boxes`` (upright pixels) of N pictures.

    ``exact`` decodes at full size and resizes as Pillow does, to the bit; otherwise JPEGs are decoded at the smallest of
    1/8, 1/4, 1/2 and 1 at which the box still has ``size`` pixels either way. Returns a code for each, :data:`DONE`
    where it was done; ``out`` is undefined elsewhere.
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
    """As :func:`crop` for the files ``paths``, which it reads; also the seconds that reading took."""
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
    """Fills ``out`` (N, S, S, 3) with the pictures ``rows`` of ``array`` (M, S, S, 3), both uint8 and contiguous, shifted
    by ``shifts`` (N, 2) and mirrored where ``flips`` (N,) says."""
    size, far = out.shape[1], np.clip(shifts, -out.shape[1], out.shape[1])  # beyond its side a picture is out of sight
    _module().gather(
        array,
        np.ascontiguousarray(rows, np.int64),
        np.ascontiguousarray(far, np.int64),
        np.ascontiguousarray(flips, np.bool_),
        size,
        out,
    )
