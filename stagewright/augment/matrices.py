"""Homographies for whole batches of images.

Pure NumPy, no torch. All matrices are float64 (B, 3, 3) and act on columns (x, y, 1) in pixels from the image's centre, with
x to the right and y down. They map points of the output to points of the input, as a warp needs it. So ``first @ second`` is
the matrix of the transformation ``first`` followed by ``second``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_FOLDED = 1e-9  # an area, in half sides squared, below which the corners lie on one line and have no homography


def rotated(degrees: ArrayLike) -> Floats:
    """Returns the matrices that rotate images clockwise about their centres by ``degrees`` (B,)."""
    angle = np.radians(np.asarray(degrees, dtype=np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    return _matrix(cos, sin, 0.0, -sin, cos, 0.0)


def moved(x: ArrayLike, y: ArrayLike) -> Floats:
    """Returns the matrices that move images to the right by ``x`` (B,) and down by ``y`` (B,) pixels."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return _matrix(1.0, 0.0, -x, 0.0, 1.0, -y)


def zoomed(factor: ArrayLike) -> Floats:
    """Returns the matrices that enlarge images about their centres by ``factor`` (B,), greater than 0."""
    share = 1.0 / np.asarray(factor, dtype=np.float64)
    return _matrix(share, 0.0, 0.0, 0.0, share, 0.0)


def sheared(x: ArrayLike, y: ArrayLike, pivot: float = 0.0) -> Floats:
    """Returns the matrices that shear images to ``(x - slope_x * y, y)``, then to ``(x, y - slope_y * x)``; ``x`` and ``y`` are
    the slopes (B,).

    ``pivot`` is the coordinate, in x and in y, of the point that does not move: 0 for the centre, minus half the side for the
    upper left corner. The signs are as in torchvision.
    """
    slope_x, slope_y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return _matrix(
        1.0 + slope_x * slope_y,
        slope_x,
        -pivot * (slope_x * slope_y + slope_x),
        slope_y,
        1.0,
        -pivot * slope_y,
    )


def tilted(corners: Floats, side: float) -> Floats:
    """Returns the matrices of the perspective that moves the four corners of images of ``side`` pixels to ``corners``.

    ``corners`` (B, 4, 2) are x and y in half sides from the centre, in the order upper left, upper right, lower right,
    lower left: (-1, -1), (1, -1), (1, 1), (-1, 1) changes nothing. Points of the output that are behind the tilted plane get
    a third coordinate of 0 or less. If the corners lie on one line, the image does not change.
    Method: Heckbert, "Fundamentals of Texture Mapping and Image Warping" (1989), section 2.2.3.
    """
    x, y = np.moveaxis(np.asarray(corners, dtype=np.float64), -1, 0)
    sum_x, sum_y = x[:, 0] - x[:, 1] + x[:, 2] - x[:, 3], y[:, 0] - y[:, 1] + y[:, 2] - y[:, 3]
    dx1, dx2 = x[:, 1] - x[:, 2], x[:, 3] - x[:, 2]
    dy1, dy2 = y[:, 1] - y[:, 2], y[:, 3] - y[:, 2]
    area = dx1 * dy2 - dx2 * dy1
    flat = np.abs(area) < _FOLDED
    area = np.where(flat, 1.0, area)
    g, h = (sum_x * dy2 - dx2 * sum_y) / area, (dx1 * sum_y - sum_x * dy1) / area
    forward = _matrix(
        x[:, 1] - x[:, 0] + g * x[:, 1],
        x[:, 3] - x[:, 0] + h * x[:, 3],
        x[:, 0],
        y[:, 1] - y[:, 0] + g * y[:, 1],
        y[:, 3] - y[:, 0] + h * y[:, 3],
        y[:, 0],
    )  # from the unit square
    forward[:, 2, 0], forward[:, 2, 1] = g, h
    from_square = _matrix(0.5, 0.0, 0.5, 0.0, 0.5, 0.5)
    inverse, determinant = _adjugate(forward @ from_square)
    flat |= np.abs(determinant) < _FOLDED
    inverse = np.where(flat[:, None, None], np.eye(3), inverse / np.where(flat, 1.0, determinant)[:, None, None])
    return _scaled(inverse, side / 2)


def identities(matrices: Floats) -> NDArray[np.bool_]:
    """Returns which of ``matrices`` are the identity: bool (B,)."""
    return (matrices == np.eye(3)).all(axis=(1, 2))


def _matrix(a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike, e: ArrayLike, f: ArrayLike) -> Floats:
    """Returns (B, 3, 3) with the rows (a, b, c), (d, e, f), (0, 0, 1); numbers are broadcast to (B,)."""
    entries = np.broadcast_arrays(a, b, c, d, e, f)
    matrix = np.zeros((*entries[0].shape, 3, 3))
    for at, entry in enumerate(entries):
        matrix[..., at // 3, at % 3] = entry
    matrix[..., 2, 2] = 1.0
    return matrix


def _adjugate(m: Floats) -> tuple[Floats, Floats]:
    """Returns adjugates (B, 3, 3), the inverse times the determinant, and determinants (B,). This is ten times faster than
    inverting each matrix with LAPACK."""
    rows = np.cross(m[:, [1, 2, 0]], m[:, [2, 0, 1]])
    return np.swapaxes(rows, 1, 2), (m[:, 0] * rows[:, 0]).sum(axis=1)


def _scaled(m: Floats, unit: float) -> Floats:
    """Converts homographies from units of ``unit`` pixels to pixels."""
    factor = np.array([unit, unit, 1.0])
    return m * factor[:, None] / factor
