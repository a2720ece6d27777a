"""Geometry on batches of 8-bit pictures: one homography for each picture, one bilinear sampling for the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stagewright.augment.ops import floats, levels

_NEAR = 1e-3  # the least depth of a tilted plane's points


def warp(images: Tensor, matrices: Tensor, fill: Tensor, *, projective: bool = True) -> Tensor:
    """Views of ``images``, uint8 (B, 3, H, W), in which each point comes from where ``matrices`` says; uint8 planes.

    ``matrices`` float32 (B, 3, 3) are those of :mod:`stagewright.augment.matrices`; ``fill`` float32 (3,) in 0 .. 255
    is what surrounds a picture. All on one device. ``projective`` False spares the division by the third coordinate,
    where every last row is (0, 0, 1).
    """
    grid = _grid(matrices, *images.shape[2:], projective=projective)
    # Zeros surround what is sampled; a picture less its fill is surrounded by its fill.
    values = floats(images).sub_(fill[:, None, None])
    seen = functional.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return levels(seen.add_((fill + 0.5)[:, None, None]))


def _grid(matrices: Tensor, height: int, width: int, *, projective: bool) -> Tensor:
    """Where to sample, float32 (B, H, W, 2), x and y in half sides from the centre."""
    x = torch.arange(width, dtype=torch.float32, device=matrices.device) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32, device=matrices.device) - (height - 1) / 2
    # A column's share and a row's share of each coordinate; their outer sum is the coordinate. x and y go together as
    # one complex number, since two sums into a grid that interleaves them take a CPU five times as long.
    across, down = matrices[:, :, 0, None] * x, matrices[:, :, 1, None] * y + matrices[:, :, 2, None]
    of_column = torch.complex(across[:, 0] * (2 / width), across[:, 1] * (2 / height))
    of_row = torch.complex(down[:, 0] * (2 / width), down[:, 1] * (2 / height))
    grid = torch.view_as_real(of_column[:, None, :] + of_row[:, :, None])
    if projective:
        depth = (across[:, 2, None, :] + down[:, 2, :, None])[..., None]
        grid.div_(depth.clamp(min=_NEAR))  # what lies behind the eye falls far outside the picture
    return grid
