"""Brings grey values with more than 8 bits to 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_USUAL_BITS = (8, 10, 12, 14, 16)
_OUTLIERS_PER = 1000
_FEWEST = 16
_BLOCK = 1 << 20


def to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Converts grey ``values`` (H, W) with 16 or 32 bits, or floats, to 0-255. The rule depends on this image only.

    Integers >= 0 are divided by the smallest usual maximum (of 8, 10, 12, 14 or 16 bits) that is not below their values, so
    12-bit scans in 16-bit files keep their contrast. Floats within [0, 1] are multiplied by 255, floats within [0, 255] are
    kept. All other values (negative, or above 16 bits) are scaled linearly from minimum and maximum to 0 and 255. For all
    this, the largest and smallest 1 of 1,000 values (at least one of each, in images of 16 pixels or more) do not count: they
    are clipped, so a hot pixel does not change the brightness of the others. NaN and infinities become 0.
    """
    flat = values.reshape(-1)
    low, high = _range(flat)
    if values.dtype.kind == "f":
        full_scale = 1.0 if high <= 1.0 else 255.0
    else:
        full_scale = next((2.0**bits - 1 for bits in _USUAL_BITS if high < 2**bits), 2.0**16 - 1)
    if low < 0 or high > full_scale:
        full_scale = max(high - low, float(np.finfo(np.float64).tiny))
    else:
        low = 0.0
    out = np.empty(len(flat), np.uint8)
    table = _scaled(np.arange(2**16), low, full_scale) if _is_16_bit(values) else None
    for at in range(0, len(flat), _BLOCK):  # in blocks: float64 of a whole large image would take 8 bytes per pixel
        block = flat[at : at + _BLOCK]
        out[at : at + _BLOCK] = table[block.astype(np.intp)] if table is not None else _scaled(block, low, full_scale)
    return out.reshape(values.shape)


def _scaled(values: NDArray[np.generic], low: float, full_scale: float) -> NDArray[np.uint8]:
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    return np.rint(np.clip((numbers - low) / full_scale, 0.0, 1.0) * 255).astype(np.uint8)


def _range(flat: NDArray[np.generic]) -> tuple[float, float]:
    """Returns the smallest and the largest of the finite values (N,) that count."""
    if _is_16_bit(flat):
        counts = np.zeros(2**16, np.int64)
        for at in range(0, len(flat), _BLOCK):
            counts += np.bincount(flat[at : at + _BLOCK], minlength=2**16)
        num_up_to = np.cumsum(counts)
        left_out = _num_left_out(len(flat))
        low, high = np.searchsorted(num_up_to, (left_out + 1, len(flat) - left_out)).tolist()
        return (float(low), float(high)) if len(flat) else (0.0, 0.0)
    finite = np.array(flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat)
    if not len(finite):
        return 0.0, 0.0
    left_out = _num_left_out(len(finite))
    places = (left_out, len(finite) - 1 - left_out)
    finite.partition(places)
    return float(finite[places[0]]), float(finite[places[1]])


def _is_16_bit(values: NDArray[np.generic]) -> bool:
    return values.dtype.kind == "u" and values.dtype.itemsize <= 2


def _num_left_out(count: int) -> int:
    return max(count // _OUTLIERS_PER, 1) if count >= _FEWEST else 0
