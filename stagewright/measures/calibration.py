"""Whether probabilities can be believed: log loss, and the calibration error of the predicted class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.intervals import UNDEFINED, Estimate, mean_estimate, student
from stagewright.measures.spread import Cells, freedom_of

Floats = NDArray[np.float64]

BINS = 15
"""As in C. Guo et al., "On calibration of modern neural networks", ICML 2017."""


def losses_of(true_probability: NDArray[np.floating]) -> Floats:
    """Returns the cross-entropy of images (N,) in nats, from the probability of their true class (N,).

    As in scikit-learn, probabilities below 2.2e-16 count as that.
    """
    smallest = np.finfo(np.float64).eps
    return -np.log(np.clip(true_probability.astype(np.float64), smallest, 1.0 - smallest))


def log_loss(answers: Answers) -> Estimate:
    """Returns the mean cross-entropy in nats, with its 95 % interval."""
    if not len(answers):
        return UNDEFINED
    value = float(answers.losses.mean())
    return mean_estimate(value, *_variance(answers, answers.losses - value))


def _variance(answers: Answers, residuals: Floats) -> tuple[float, float]:
    """Returns the variance of a mean over images with ``residuals`` (N,), and its degrees of freedom."""
    zeros, shares = np.zeros(len(answers), np.int64), np.full(len(answers), 1.0 / len(answers))
    sums = Cells.of(zeros, answers.units, residuals * shares, shares).sums
    return float(np.square(sums).sum()), freedom_of(sums)


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of the predicted classes are from the shares of right answers."""

    error: float
    """Expected calibration error, in [0, 1]: the mean distance over :data:`BINS` bins of equal width, weighted by images."""
    by_chance: float
    """The error that perfectly calibrated probabilities would be expected to have with so few images (normal approximation).
    It is above 0, which is why the error has no interval."""
    excess: Estimate
    """Mean probability minus accuracy, in [-1, 1]: positive for a model that is too sure."""


def calibration(answers: Answers) -> Calibration | None:
    """Returns the calibration of the predicted classes; None without images."""
    if not len(answers):
        return None
    # The bins are (0, 1/15], (1/15, 2/15], ...
    bins = np.clip(np.ceil(answers.confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = answers.confidence - answers.right
    sums = np.bincount(bins, gaps, BINS)
    variances = np.bincount(bins, answers.confidence * (1.0 - answers.confidence), BINS)
    return Calibration(
        error=float(np.abs(sums).sum()) / len(answers),
        by_chance=float(np.sqrt(2.0 / np.pi * variances).sum()) / len(answers),
        excess=_excess(answers, gaps),
    )


def _excess(answers: Answers, gaps: Floats) -> Estimate:
    value = float(gaps.mean())
    variance, freedom = _variance(answers, gaps - value)
    if freedom < 1.0:
        return Estimate(value, None, None)
    half = student(freedom) * float(np.sqrt(variance))
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half))
