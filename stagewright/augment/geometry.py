"""Which part of each picture is seen, and how: crop boxes, shifts and flips from keys, for whole batches at once.

Pure NumPy, no torch. What is drawn for a sample is a function of (seed, pass, row) alone, whatever batch it comes in.
Boxes are (left, top, right, bottom) in source pixels, edges between pixels, so that a whole picture is
(0, 0, width, height). A view is the box, cut out and resized to image_size, then shifted, then flipped.
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
_FLIP, _X, _Y, _FIRST_TRY = 0, 1, 2, 3  # which uniform of a sample's key is for what; fixed, or every crop changes


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """How each of B pictures is seen."""

    boxes: Floats
    """float64 (B, 4): left, top, right, bottom in source pixels, within the picture."""
    shifts: NDArray[np.int64]
    """int64 (B, 2): by how many pixels of the resized view the window moves right and down; outside is black."""
    flips: NDArray[np.bool_]
    """bool (B,): mirrored left to right, last of all."""

    def __len__(self) -> int:
        return len(self.flips)

    def put(self, places: NDArray[np.int64], other: Geometry) -> None:
        """Sees the pictures at ``places`` as ``other`` (as many) says."""
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
    """The training view of B samples, drawn by the key (seed, pass, row) of each.

    ``rows`` (manifest rows), ``passes``, ``widths`` and ``heights`` (upright pixels) have shape (B,).
    ``random_resized`` gives whole-pixel boxes, on the grid of :func:`jpeg_scale` where they are that much larger than
    ``image_size``; ``pad`` the evaluation's full view (crop 1.0) shifted by at most ``max(1, image_size // 8)`` either
    way; ``none`` the evaluation's own view. ``augment.flip`` acts on all three.
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
    """The evaluation's view of pictures of ``widths`` and ``heights`` (B,): nothing shifted, nothing flipped."""
    boxes = eval_boxes(widths, heights, evaluation.crop, evaluation.fit)
    return Geometry(boxes, np.zeros((len(boxes), 2), dtype=np.int64), np.zeros(len(boxes), dtype=np.bool_))


def eval_boxes(widths: Ints, heights: Ints, crop: float, fit: str) -> Floats:
    """Central boxes, float64 (B, 4), possibly between pixels.

    ``fit`` "crop": a square whose side is ``crop`` of the shorter side; "squash": ``crop`` of either side, which gives
    up the aspect ratio once it is resized to a square. ``crop`` lies in (0, 1].
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
    """1, 2, 4 or 8, int64 as many as there are boxes: the largest by which JPEGs may be decoded smaller with boxes of these
    sizes in source pixels still at least ``image_size`` pixels wide and high."""
    shorter = np.minimum(box_widths, box_heights)
    return 2 ** sum((shorter >= scale * image_size).astype(np.int64) for scale in (2, 4, 8))


def _random_resized_boxes(augment: Augment, draws: Floats, widths: Ints, heights: Ints, image_size: int) -> Floats:
    """Inception's crop (arXiv:1409.4842) as torchvision's RandomResizedCrop.get_params draws it, all tries at once.

    Boxes that a smaller decoding serves have sides and positions in steps of that :func:`jpeg_scale`, so that their edges
    are whole pixels there too, which the fastest antialiased resize takes; by that they are up to 7 pixels smaller.
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
    """What is taken where no try fits: as much of the picture as the range of ``ratio`` allows."""
    low, high = ratio
    flat = np.maximum(1, np.rint(height * high))
    tall = np.maximum(1, np.rint(width / low))
    return np.where(width / height > high, flat, width), np.where(width / height < low, tall, height)


def _between(draw: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * draw


def _below(draw: Floats, count: Floats | int) -> Floats:
    """Whole numbers in [0, count) from uniforms in [0, 1)."""
    return np.floor(draw * count)
