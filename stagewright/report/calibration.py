"""How far a classifier's probabilities are from its accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def calibration_error(
    probabilities: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS
) -> float | None:
    """Returns the expected calibration error of N answers in percentage points, 0 to 100; None for no answers.

    ``probabilities`` (N,) are those of the predicted classes, ``correct`` (N,) whether they are right. The answers are put into
    ``bins`` intervals of equal width by their probability: (0, 1/bins], ..., (1 - 1/bins, 1]; 0 is in the first. The error is the
    mean over all answers of the distance between accuracy and mean probability in their bin (C. Guo et al., "On calibration of
    modern neural networks", 2017, arXiv:1706.04599). With few answers in a bin, chance alone makes it larger than 0.

    ValueError if the shapes differ.
    """
    if probabilities.shape != correct.shape:
        raise ValueError(f"{len(probabilities)} probabilities and {len(correct)} answers do not belong together")
    if not len(correct):
        return None
    values = probabilities.astype(np.float64)
    bin_of = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=correct - values, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum()) / len(correct)
