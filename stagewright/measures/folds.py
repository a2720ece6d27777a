"""The accuracy of a cross-validation, with an interval that knows that its folds share training data.

The accuracies of K folds are not independent: any two trainings have most of their images in common. Student's interval of K
values, and the interval of all answers taken for independent ones, are therefore too narrow. Two that are wider:

- Nadeau and Bengio ("Inference for the generalization error", Machine Learning 52 (2003), 239-281): Student's t with K - 1
  degrees of freedom and the variance (1/K + n_test/n_train) S^2, where S^2 is the variance between the folds.
- :func:`accuracy_of_folds`: :data:`WIDENING` times the larger of two variances: that of all answers (over images, or over groups
  where there are some), and S^2/K; as an interval of a share. It rests on as many values as there are images, not on K.

``benchmarks/folds.py`` measures both on simulated data, where the true accuracy of the procedure is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.intervals import UNDEFINED, Estimate, share_estimate, student

WIDENING = 1.5
"""Factor on the variance for what folds have in common, found by simulation (benchmarks/folds.py)."""


@dataclass(frozen=True)
class FoldAccuracy:
    """The accuracy of a cross-validation, in [0, 1]."""

    pooled: Estimate
    """Over all images, each answered by the training that did not have it, with its 95 % interval for the accuracy that the
    procedure has on new images, on average over training sets of this size."""
    by_fold: tuple[float, ...]
    """(K,) accuracy of each fold; NaN where none of its images could be read."""
    mean: float
    """Of the folds, each with the same weight."""
    sd: float
    """Standard deviation between the folds, with K - 1 in the denominator."""
    corrected_t: Estimate
    """``mean`` with the 95 % interval of Nadeau and Bengio."""


def accuracy_of_folds(answers: Answers, fold_of: NDArray[np.integer], num_folds: int) -> FoldAccuracy:
    """Returns the accuracy of ``answers``; ``fold_of`` (N,) is the fold of each, from 0. ValueError for less than two folds."""
    if num_folds < 2:
        raise ValueError(f"{num_folds} folds; a cross-validation has two or more")
    sizes = np.bincount(fold_of, minlength=num_folds)
    right = np.bincount(fold_of, answers.right, num_folds)
    by_fold = np.where(sizes > 0, right / np.maximum(sizes, 1), np.nan)
    known = by_fold[sizes > 0]
    mean = float(known.mean()) if len(known) else math.nan
    sd = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return FoldAccuracy(
        pooled=_pooled(answers, 0.0 if math.isnan(sd) else sd**2 / len(known)),
        by_fold=tuple(by_fold.tolist()),
        mean=mean,
        sd=sd,
        corrected_t=_corrected_t(mean, sd, len(known)),
    )


def _pooled(answers: Answers, between: float) -> Estimate:
    """``between`` is the variance of the mean of the folds as it would be if they were independent."""
    count = len(answers)
    if not count:
        return UNDEFINED
    value = float(answers.right.mean())
    sums = np.bincount(answers.units, answers.right - value, answers.num_units) / count
    shares = np.bincount(answers.units, minlength=answers.num_units) / count
    freedom = answers.num_units - 1.0
    if freedom < 1.0:
        return Estimate(value, 0.0, 1.0)
    # A unit that is much of the whole has pulled the mean towards itself (HC2, as in stagewright.measures.spread).
    variance = float((np.square(sums) / (1.0 - shares)).sum())
    return share_estimate(value, WIDENING * max(variance, between), count / WIDENING, freedom)


def _corrected_t(mean: float, sd: float, num_folds: int) -> Estimate:
    if math.isnan(sd):
        return UNDEFINED
    half = student(num_folds - 1) * sd * math.sqrt(1.0 / num_folds + 1.0 / (num_folds - 1))
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))
