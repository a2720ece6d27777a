"""Dataclasses for a batch and for the specification that it is made from."""

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
    """A complete description of a batch of B images, of which nothing has been read yet."""

    step: int
    rows: NDArray[np.int64]
    """int64 (B,): rows of the manifest."""
    labels: NDArray[np.int64]
    """int64 (B,): class numbers."""
    geometry: Geometry
    """The crop, shift and flip of each image."""
    image_size: int
    """Side S of the square images in pixels."""
    interpolation: Interpolation
    exact: bool = True
    """True if JPEGs are always decoded at full size, even for a small crop."""
    draws: Draws | None = None
    """The random augmentations that the device applies after cropping and flipping; None if there are none."""
    drawn_for: NDArray[np.int64] | None = None
    """The indices of the images in the batch that ``draws`` apply to; None for all images."""
    views: NDArray[np.int64] | None = None
    """int64 (B,): which of its stage's fixed views each image is; None if the stage has none."""
    unread: bool = False
    """True if no image is read, because the network's features of these images are cached."""

    def taken(self, places: NDArray[np.int64]) -> BatchSpec:
        """Returns the specification of the images at the indices ``places`` (N,) of this batch, each made as in this batch."""
        draws, drawn_for = self.draws, self.drawn_for
        if draws is not None:
            drawn_at = np.full(len(self.rows), -1, np.int64)
            drawn_at[slice(None) if drawn_for is None else drawn_for] = np.arange(len(draws))
            chosen = drawn_at[places]
            draws = draws.take(chosen[chosen >= 0])
            drawn_for = None if drawn_for is None else np.flatnonzero(chosen >= 0)
        return replace(
            self,
            rows=self.rows[places],
            labels=self.labels[places],
            geometry=self.geometry.taken(places),
            draws=draws,
            drawn_for=drawn_for,
            views=None if self.views is None else self.views[places],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of B loaded images, in the memory format of the network's device."""

    step: int
    images: Tensor
    """uint8 (B, 3, S, S), channels_last in memory; (B, 3, 0, 0) if the specification has ``unread``."""
    labels: Tensor
    """int64 (B,): class numbers."""
    valid: Tensor
    """bool (B,): False if the image could not be read; its pixels are zeros."""
    bad_rows: tuple[BadRow, ...]
    """(manifest row, reason) of each image that could not be read, in the order of the batch."""
    draws: Draws | None = None
    """The augmentations still to be applied, from the specification."""
    drawn_for: NDArray[np.int64] | None = None
    """The indices of the images that ``draws`` apply to, from the specification."""
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (B,): rows of the manifest."""
    views: NDArray[np.int64] | None = None
    """int64 (B,): which of its stage's fixed views each image is, from the specification."""


def lane_of(batch: Batch, start: int, end: int) -> Batch:
    """Returns the images ``start`` to ``end - 1`` of ``batch`` as a batch of their own, with the same layout in memory.

    Its images are copied, as the bits of some kernels depend on where in memory a tensor begins.
    """
    if start == 0 and end == len(batch.labels):
        return batch
    at = slice(start, end)
    draws, drawn_for = batch.draws, batch.drawn_for
    if draws is not None and drawn_for is None:
        draws = draws.take(at)
    elif draws is not None and drawn_for is not None:
        inside = np.flatnonzero((drawn_for >= start) & (drawn_for < end))
        draws, drawn_for = draws.take(inside), drawn_for[inside] - start
    return replace(
        batch,
        images=batch.images[at].clone(memory_format=torch.preserve_format),
        labels=batch.labels[at].clone(),
        valid=batch.valid[at].clone(),
        draws=draws,
        drawn_for=drawn_for,
        rows=batch.rows[at],
        views=None if batch.views is None else batch.views[at],
    )


def masked(batch: Batch, rows: list[int]) -> Batch:
    """Returns ``batch`` with the images of the manifest ``rows`` masked: their pixels are zeros, and ``valid`` is False."""
    out = np.isin(batch.rows, rows)
    if not out.any():
        return batch
    there = torch.from_numpy(~out).to(batch.images.device)
    shape = (-1, *[1] * (batch.images.ndim - 1))
    images = batch.images.masked_fill(
        ~there.view(shape), 0
    )  # not multiplied by 0: the features of such an image may be infinite
    return replace(batch, images=images, valid=batch.valid & there)
