"""The views of torchvision's and timm's evaluations: the whole image is resized, then the centre is cut out.

A box that is resized in one step (:func:`stagewright.augment.geometry.eval_boxes`) has other pixels: its edges lie between
pixels, where these views round to whole ones, and at its borders the resize does not see what is beyond them. The difference is
small, but published accuracies were measured with these views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import Images
from stagewright.data.images.stored import Stored

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """Resizes an image to ``resize`` pixels and cuts out the centre of ``size`` x ``size``."""

    resize: int
    size: int
    mode: Literal["center", "squash", "border"] = "center"
    """What becomes ``resize`` pixels long: the shorter side (``center``), both sides (``squash``), or the longer one
    (``border``). Where the result is smaller than ``size``, it is surrounded by ``fill``."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) of a resized image, rounded as the libraries do: down, with ``border`` to the nearest."""
        if self.mode == "squash":
            return self.resize, self.resize
        if self.mode == "border":
            ratio = max(width, height) / self.resize
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)

    def view(self, image: Image.Image) -> NDArray[np.uint8]:
        """Returns the view of an RGB ``image``: uint8 (size, size, 3)."""
        size = self.resized(*image.size)
        whole = image.resize(size, _FILTERS[self.interpolation])
        frame = Image.new("RGB", (self.size, self.size), self.fill)
        frame.paste(whole, (_offset(size[0], self.size), _offset(size[1], self.size)))
        return np.asarray(frame)

    def __str__(self) -> str:
        side = {"center": "shorter side", "squash": "both sides", "border": "longer side"}[self.mode]
        return f"{side} to {self.resize} pixels ({self.interpolation}), then the central {self.size} x {self.size}"


def _offset(side: int, wanted: int) -> int:
    """Returns where an image with ``side`` pixels begins in a frame of ``wanted``: below 0 if it is cut, with the rounding of
    torchvision's center_crop, which is that of Python (half to even)."""
    return -round((side - wanted) / 2) if side > wanted else (wanted - side) // 2


class ViewedImages:
    """The ``images`` seen through ``view``: a loader that crops the whole of them gets exactly its pixels.

    Every image is decoded at full size and resized by Pillow, as the libraries do.
    """

    def __init__(self, images: Images, view: ResizeCrop) -> None:
        self.images = images
        self.seen_as = view

    def __len__(self) -> int:
        return len(self.images)

    def load(self, row: int) -> Image.Image:
        """Returns the view of the image of ``row``. Raises OSError if it cannot be read."""
        return Image.fromarray(self.seen_as.view(self.images.load(row)))

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the views of ``rows``."""
        side, count = self.seen_as.size, len(rows)
        views, failures = np.zeros((count, side, side, 3), np.uint8), dict[int, Exception]()
        for at, row in enumerate(rows.tolist()):
            try:
                views[at] = self.seen_as.view(self.images.load(row))
            except OSError as error:
                failures[at] = error
        sizes = np.full((count, 2), side, np.int32)
        sizes[list(failures)] = 0
        each = 3 * side * side
        lengths, offsets = np.full(count, each, np.int64), np.arange(count, dtype=np.int64) * each
        return Stored("raw", [views.reshape(-1)], np.zeros(count, np.int32), offsets, lengths, sizes, failures)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the box of the whole view for each of ``rows``, whatever ``boxes`` are: the view is the crop."""
        return np.tile(np.array([0.0, 0.0, self.seen_as.size, self.seen_as.size]), (len(rows), 1))
