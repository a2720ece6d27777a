"""A batch, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright.augment.draw import Draws
from stagewright.augment.geometry import Geometry
from stagewright.recipe.recipe import Interpolation

BadRow = tuple[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class BatchSpec:
    """What a batch of B pictures holds: all of it decided, none of it read."""

    step: int
    rows: NDArray[np.int64]
    """int64 (B,): rows of the manifest."""
    labels: NDArray[np.int64]
    """int64 (B,)."""
    geometry: Geometry
    image_size: int
    """Side S of the square pictures in pixels."""
    interpolation: Interpolation
    exact: bool = True
    """Whether JPEGs are decoded at full size however small the view is."""
    draws: Draws | None = None
    """What is done to the pictures on the device, after cropping and flipping."""
    drawn_for: NDArray[np.int64] | None = None
    """The places in the batch that ``draws`` are for; None: all of it."""
    unread: bool = False
    """Whether nothing is read at all, because what the network makes of these pictures is known."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pictures as the network's device wants them."""

    step: int
    images: Tensor
    """uint8 (B, 3, S, S), channels_last in memory; (B, 3, 0, 0) where the specification leaves them unread."""
    labels: Tensor
    """int64 (B,)."""
    valid: Tensor
    """bool (B,): False where the picture could not be read; its pixels are zeros."""
    bad_rows: tuple[BadRow, ...]
    """(manifest row, reason) of each picture that could not be read, in the order of the batch."""
    draws: Draws | None = None
    """What is still to be done to the pictures, as in the specification."""
    drawn_for: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (B,): rows of the manifest."""


def masked(batch: Batch, rows: list[int]) -> Batch:
    """``batch`` without the pictures of the manifest ``rows``: zeros that count for nothing."""
    out = np.isin(batch.rows, rows)
    if not out.any():
        return batch
    there = torch.from_numpy(~out).to(batch.images.device)
    shape = (-1, *[1] * (batch.images.ndim - 1))
    images = batch.images.masked_fill(~there.view(shape), 0)  # no product: features of such a picture may be infinite
    return replace(batch, images=images, valid=batch.valid & there)
