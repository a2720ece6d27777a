"""Caches decoded images on the GPU, and shifts and flips them there.

This is for data sets of small images that are not resized, such as CIFAR. Only the row numbers, shifts and flips of a batch,
a few kilobytes, are then copied to the device. The bits are those of :func:`stagewright.data.images.crop.gather`.
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
"""A data set is cached on the device only if it needs at most this share of the device's free memory."""


class Resident:
    """A cache of ``images``, uint8 (N, H, W, 3), on ``device``. Each image is copied there at its first use."""

    def __init__(self, images: ArrayImages | CachedImages, device: torch.device) -> None:
        assert images.array is not None
        self.images, self.array = images, images.array
        self.on_device = torch.empty(self.array.shape, dtype=torch.uint8, device=device)
        self.copied_rows = np.zeros(len(self.array), np.bool_)

    def serves(self, geometry: Geometry, size: int) -> bool:
        """Returns True if ``geometry`` uses whole images that have side ``size`` already, so that nothing is resized."""
        return keeps_size(self.array, geometry.boxes, size)

    def holds(self, rows: NDArray[np.int64]) -> bool:
        """Returns True if all images of ``rows`` are on the device already."""
        return bool(self.copied_rows[rows].all())

    def views(self, rows: NDArray[np.int64], geometry: Geometry, readable: NDArray[np.bool_]) -> Tensor:
        """Returns the images of ``rows`` (N,), shifted and flipped, uint8 (N, H, W, 3) on the device.

        Images that are not ``readable``, bool (N,), are zeros. The readable ones must be decoded in host memory already
        (``images.ensure``).
        """
        self._upload(rows[readable])
        height, width = self.array.shape[1:3]
        line = np.arange(height) + geometry.shifts[:, 1, None]
        column = np.arange(width) + geometry.shifts[:, 0, None]
        column[geometry.flips] = column[geometry.flips, ::-1]
        # One small copy per batch: the row, and the source of each line and column. -1 is outside the image, so black.
        line[(line < 0) | (line >= height) | ~readable[:, None]] = -1
        column[(column < 0) | (column >= width)] = -1
        packed = self.copied(np.concatenate([rows[:, None], line, column], axis=1))
        row, lines, columns = (
            packed[:, :1, None],
            packed[:, 1 : 1 + height, None],
            packed[:, None, 1 + height :],
        )
        seen = self.on_device[row, lines.clamp(min=0), columns.clamp(min=0)]
        return seen * ((lines >= 0) & (columns >= 0))[..., None]

    def copied(self, values: NDArray[Any]) -> Tensor:
        """Copies ``values`` to the device, through page-locked memory on CUDA, so that the host does not wait for the copy."""
        tensor = torch.tensor(values)
        if self.on_device.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.on_device.device, non_blocking=True)

    def _upload(self, rows: NDArray[np.int64]) -> None:
        """Copies the images of ``rows`` that are not on the device yet."""
        new = np.unique(rows[~self.copied_rows[rows]])
        if len(new):
            self.on_device[self.copied(new)] = self.copied(self.array[new])
            self.copied_rows[new] = True


def cache_on_device(images: Images, device: torch.device) -> Resident | None:
    """Returns a cache of ``images`` on a CUDA ``device``.

    Returns None if the device is not CUDA, the images are not in host memory, differ in size, or need more than :data:`SHARE`
    of the device's free memory.
    """
    if device.type != "cuda" or not isinstance(images, IN_MEMORY) or images.array is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return Resident(images, device) if images.array.nbytes <= SHARE * free else None
