"""Warps batches of 8-bit images: one homography for each image, one bilinear sampling for the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stagewright.augment.ops import floats, levels

_NEAR = 1e-3  # smallest depth of points, so that the division is defined


def warp(images: Tensor, matrices: Tensor, fill: Tensor, *, projective: bool = True) -> Tensor:
    """Returns ``images``, uint8 (B, 3, H, W), warped by ``matrices``, as contiguous uint8 of the same shape.

    ``matrices`` float32 (B, 3, 3) map output points to input points (:mod:`stagewright.augment.matrices`); ``fill`` float32
    (3,) in 0 .. 255 is the colour outside an image. All are on one device. If the last row of every matrix is (0, 0, 1),
    ``projective`` may be False, which saves the division by the third coordinate.
    """
    grid = _grid(matrices, *images.shape[2:], projective=projective)
    # grid_sample fills with zeros: with the fill colour subtracted before and added afterwards, it fills with that colour.
    values = floats(images).sub_(fill[:, None, None])
    seen = functional.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return levels(seen.add_((fill + 0.5)[:, None, None]))


def _grid(matrices: Tensor, height: int, width: int, *, projective: bool) -> Tensor:
    """Returns the sampling positions, float32 (B, H, W, 2): x and y in half sides from the centre."""
    x = torch.arange(width, dtype=torch.float32, device=matrices.device) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32, device=matrices.device) - (height - 1) / 2
    # Each coordinate is the sum of a term of the column and a term of the row. x and y are combined in one complex number,
    # since on a CPU two separate sums into an interleaved grid take five times as long.
    across, down = matrices[:, :, 0, None] * x, matrices[:, :, 1, None] * y + matrices[:, :, 2, None]
    of_column = torch.complex(across[:, 0] * (2 / width), across[:, 1] * (2 / height))
    of_row = torch.complex(down[:, 0] * (2 / width), down[:, 1] * (2 / height))
    grid = torch.view_as_real(of_column[:, None, :] + of_row[:, :, None])
    if projective:
        depth = (across[:, 2, None, :] + down[:, 2, :, None])[..., None]
        grid.div_(depth.clamp(min=_NEAR))  # points behind the viewer land far outside the image
    return grid
