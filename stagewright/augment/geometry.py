"""Draws crop boxes, shifts and flips from keys, for whole batches at once.

Pure NumPy, no torch. The draws of a sample depend only on (seed, pass, row), not on its batch. Boxes are
(left, top, right, bottom) in source pixels; coordinates are those of edges between pixels, so that a whole image is
(0, 0, width, height). The view of an image is its box, resized to image_size, then shifted, then flipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright import rng
from stagewright.recipe.recipe import Augment, Evaluation

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

_TRIES = 10  # torchvision's number of attempts at a crop that fits
_FLIP, _X, _Y, _FIRST_TRY = 0, 1, 2, 3  # the use of each uniform of a sample's key; changing it changes every crop


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The crop, shift and flip of each of B images."""

    boxes: Floats
    """float64 (B, 4): left, top, right, bottom in source pixels, inside the image."""
    shifts: NDArray[np.int64]
    """int64 (B, 2): shift of the window to the right and down, in pixels of the resized view; outside pixels are black."""
    flips: NDArray[np.bool_]
    """bool (B,): whether the view is mirrored horizontally, after the shift."""

    def __len__(self) -> int:
        return len(self.flips)

    def taken(self, places: NDArray[np.int64]) -> Geometry:
        """Returns the geometry of the images at the indices ``places`` (N,)."""
        return Geometry(self.boxes[places], self.shifts[places], self.flips[places])

    def put(self, places: NDArray[np.int64], other: Geometry) -> None:
        """Replaces the geometry of the images at the indices ``places`` (N,) by ``other``, which has N images."""
        self.boxes[places], self.shifts[places], self.flips[places] = other.boxes, other.shifts, other.flips


def train_geometry(
    augment: Augment,
    seed: int,
    rows: Ints,
    passes: Ints,
    widths: Ints,
    heights: Ints,
    image_size: int,
    evaluation: Evaluation,
) -> Geometry:
    """Draws the training views of B samples from the key (seed, pass, row) of each.

    ``rows`` (manifest rows), ``passes``, ``widths`` and ``heights`` (in pixels, after EXIF orientation) have shape (B,).
    ``random_resized`` gives boxes with whole-pixel edges; if they are much larger than ``image_size``, the edges are multiples
    of :func:`jpeg_scale`. ``pad`` gives the evaluation's view with crop 1.0, shifted by at most ``max(1, image_size // 8)``
    pixels in either direction; ``none`` gives the evaluation's view. ``augment.flip`` applies to all three.
    """
    resized = augment.crop == "random_resized"
    keys = rng.keys(seed, rng.Stream.AUGMENT, passes, rows)
    draws = rng.uniform(keys, _FIRST_TRY + (2 * _TRIES if resized else 0))
    shifts = np.zeros((len(keys), 2), dtype=np.int64)
    if resized:
        boxes = _random_resized_boxes(augment, draws, widths, heights, image_size)
    elif augment.crop == "pad":
        boxes = eval_boxes(widths, heights, 1.0, evaluation.fit)
        pad = max(1, image_size // 8)
        shifts = _below(draws[:, [_X, _Y]], 2 * pad + 1).astype(np.int64) - pad
    else:
        boxes = eval_boxes(widths, heights, evaluation.crop, evaluation.fit)
    return Geometry(boxes, shifts, draws[:, _FLIP] < augment.flip)


def eval_geometry(evaluation: Evaluation, widths: Ints, heights: Ints) -> Geometry:
    """Returns the evaluation's views of images of ``widths`` and ``heights`` (B,), without shift and flip."""
    boxes = eval_boxes(widths, heights, evaluation.crop, evaluation.fit)
    return Geometry(boxes, np.zeros((len(boxes), 2), dtype=np.int64), np.zeros(len(boxes), dtype=np.bool_))


def eval_boxes(widths: Ints, heights: Ints, crop: float, fit: str) -> Floats:
    """Returns central boxes, float64 (B, 4); their edges may be inside pixels.

    ``fit`` "crop": a square whose side is ``crop`` times the shorter side. "squash": ``crop`` times both sides; resizing this to
    a square changes the aspect ratio. ``crop`` is in (0, 1]. ValueError for another ``fit``.
    """
    width, height = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    if fit == "crop":
        box_width = box_height = crop * np.minimum(width, height)
    elif fit == "squash":
        box_width, box_height = crop * width, crop * height
    else:
        raise ValueError(f"fit {fit!r}; allowed: crop, squash")
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return np.stack([left, top, left + box_width, top + box_height], axis=-1)


def jpeg_scale(box_widths: Floats | np.float64, box_heights: Floats | np.float64, image_size: int) -> Any:
    """Returns 1, 2, 4 or 8 for each box (int64): the largest factor by which a JPEG may be decoded at a reduced size so that
    its box, of this size in source pixels, still has at least ``image_size`` pixels in width and height."""
    shorter = np.minimum(box_widths, box_heights)
    return 2 ** sum((shorter >= scale * image_size).astype(np.int64) for scale in (2, 4, 8))


def _random_resized_boxes(augment: Augment, draws: Floats, widths: Ints, heights: Ints, image_size: int) -> Floats:
    """Draws Inception's crop (arXiv:1409.4842) like torchvision's RandomResizedCrop.get_params, all tries at once.

    If a box allows decoding at a reduced size, its sides and position are multiples of :func:`jpeg_scale`, so that its edges are
    whole pixels at the reduced size too; the fastest antialiased resize needs that. The box becomes up to 7 pixels smaller.
    """
    width, height = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    tries = draws[:, _FIRST_TRY:].reshape(-1, _TRIES, 2)
    area = (width * height)[:, None] * _between(tries[..., 0], *augment.scale)
    ratio = np.exp(_between(tries[..., 1], *np.log(augment.ratio)))
    box_widths, box_heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (box_widths >= 1) & (box_widths <= width[:, None]) & (box_heights >= 1) & (box_heights <= height[:, None])
    first = np.arange(len(fits)), fits.argmax(axis=1)
    fitting = fits.any(axis=1)
    whole_width, whole_height = _central_size(width, height, augment.ratio)
    box_width = np.where(fitting, box_widths[first], whole_width)
    box_height = np.where(fitting, box_heights[first], whole_height)
    step = jpeg_scale(box_width, box_height, image_size).astype(np.float64)
    box_width, box_height = box_width // step * step, box_height // step * step
    over_x, over_y = (width - box_width) // step, (height - box_height) // step
    left = step * np.where(fitting, _below(draws[:, _X], over_x + 1), over_x // 2)
    top = step * np.where(fitting, _below(draws[:, _Y], over_y + 1), over_y // 2)
    return np.stack([left, top, left + box_width, top + box_height], axis=-1)


def _central_size(width: Floats, height: Floats, ratio: tuple[float, float]) -> tuple[Floats, Floats]:
    """Returns (width, height) of the box if no try fits: the largest box with an aspect ratio in the range ``ratio``."""
    low, high = ratio
    flat = np.maximum(1, np.rint(height * high))
    tall = np.maximum(1, np.rint(width / low))
    return np.where(width / height > high, flat, width), np.where(width / height < low, tall, height)


def _between(draw: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * draw


def _below(draw: Floats, count: Floats | int) -> Floats:
    """Returns whole numbers in [0, count) from uniforms in [0, 1)."""
    return np.floor(draw * count)
