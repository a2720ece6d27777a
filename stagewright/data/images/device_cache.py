"""Resident pictures: a set that lies decoded in memory, copied to the device at its first use, and cut out there.

For sets of small pictures that keep their size (CIFAR and the like). What crosses to the device for a batch is then its
row numbers, shifts and flips: some kilobytes. The bits are those of :func:`stagewright.data.images.crop.gather`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright.augment.geometry import Geometry
from stagewright.data.images.crop import IN_MEMORY, keeps_size
from stagewright.data.images.decode import ArrayImages, Images
from stagewright.data.images.memory_cache import CachedImages

SHARE = 0.25
"""No set that takes more of the device's free memory than this lies there."""


class Resident:
    """The pictures of ``images``, uint8 (N, H, W, 3), on ``device``."""

    def __init__(self, images: ArrayImages | CachedImages, device: torch.device) -> None:
        assert images.array is not None
        self.images, self.array = images, images.array
        self.pictures = torch.empty(self.array.shape, dtype=torch.uint8, device=device)
        self.decoded = np.zeros(len(self.array), np.bool_)

    def serves(self, geometry: Geometry, size: int) -> bool:
        """Whether the views are of whole pictures at their own size, so that nothing is resized."""
        return keeps_size(self.array, geometry.boxes, size)

    def holds(self, rows: NDArray[np.int64]) -> bool:
        """Whether all of ``rows`` are on the device already."""
        return bool(self.decoded[rows].all())

    def views(self, rows: NDArray[np.int64], geometry: Geometry, readable: NDArray[np.bool_]) -> Tensor:
        """Views of ``rows``, shifted and flipped, uint8 (N, H, W, 3) on the device; zeros where not ``readable`` (N,).

        The readable ones are in memory by now (``images.ensure``)."""
        self._upload(rows[readable])
        height, width = self.array.shape[1:3]
        down = np.arange(height) + geometry.shifts[:, 1, None]
        right = np.arange(width) + geometry.shifts[:, 0, None]
        right[geometry.flips] = right[geometry.flips, ::-1]
        # One small copy for all: row, and where each line and column of the view comes from; -1 is outside, so black.
        down[(down < 0) | (down >= height) | ~readable[:, None]] = -1
        right[(right < 0) | (right >= width)] = -1
        packed = self.copied(np.concatenate([rows[:, None], down, right], axis=1))
        row, down_there, right_there = (
            packed[:, :1, None],
            packed[:, 1 : 1 + height, None],
            packed[:, None, 1 + height :],
        )
        seen = self.pictures[row, down_there.clamp(min=0), right_there.clamp(min=0)]
        return seen * ((down_there >= 0) & (right_there >= 0))[..., None]

    def copied(self, values: NDArray[Any]) -> Tensor:
        """``values`` on the device, by way of page-locked memory, so that nobody waits for the copy."""
        tensor = torch.tensor(values)
        if self.pictures.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.pictures.device, non_blocking=True)

    def _upload(self, rows: NDArray[np.int64]) -> None:
        """Copies what is not on the device yet."""
        new = np.unique(rows[~self.decoded[rows]])
        if len(new):
            self.pictures[self.copied(new)] = self.copied(self.array[new])
            self.decoded[new] = True


def cache_on_device(images: Images, device: torch.device) -> Resident | None:
    """``images`` on a CUDA ``device`` where they lie in memory, have one size and fit well; else None."""
    if device.type != "cuda" or not isinstance(images, IN_MEMORY) or images.array is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return Resident(images, device) if images.array.nbytes <= SHARE * free else None
