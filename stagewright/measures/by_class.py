"""Precision, recall and F1 of each class, and over classes: macro, weighted, balanced accuracy.

Definitions are those of scikit-learn (``precision_recall_fscore_support`` with ``zero_division=0``, ``balanced_accuracy_score``):
the macro mean is over the classes that are labelled or predicted, balanced accuracy over those that are labelled. All values are
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.intervals import UNDEFINED, Estimate, share_estimate, wilson
from stagewright.measures.spread import Cells, Spread

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MEANS = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
WEIGHTED = ("weighted_precision", "weighted_recall", "weighted_f1")


@dataclass(frozen=True, eq=False)
class _Counts:
    """What is counted for each class; every array has shape (C,)."""

    answers: Answers

    @cached_property
    def labelled(self) -> Ints:
        """Images of the class."""
        return np.bincount(self.answers.labels, minlength=self.answers.num_classes)

    @cached_property
    def predicted(self) -> Ints:
        """Images that were answered with the class."""
        return np.bincount(self.answers.predicted, minlength=self.answers.num_classes)

    @cached_property
    def right(self) -> Ints:
        """Images of the class that were answered with it."""
        return np.bincount(self.answers.labels[self.answers.right], minlength=self.answers.num_classes)

    @property
    def recall(self) -> Floats:
        """Share of the images of the class that were answered with it; 0 for a class without images."""
        return _ratio(self.right, self.labelled)

    @property
    def precision(self) -> Floats:
        """Share of the images answered with the class that are of it; 0 for a class that was never answered."""
        return _ratio(self.right, self.predicted)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall; 0 for a class that was neither labelled nor answered."""
        return _ratio(2 * self.right, self.labelled + self.predicted)


def _ratio(part: Ints, whole: Ints) -> Floats:
    return part / np.maximum(whole, 1)


def mean_values(answers: Answers) -> dict[str, float]:
    """Returns :data:`MEANS` and :data:`WEIGHTED` without intervals; NaN where there are no images."""
    counts = _Counts(answers)
    labelled, seen = counts.labelled > 0, counts.labelled + counts.predicted > 0
    found = {"balanced_accuracy": _mean(counts.recall[labelled])}
    shares = counts.labelled / max(1, len(answers))
    for name in ("precision", "recall", "f1"):
        values = getattr(counts, name)
        found[f"macro_{name}"] = _mean(values[seen])
        found[f"weighted_{name}"] = float(shares @ values) if len(answers) else float("nan")
    return found


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def mean_estimates(answers: Answers) -> dict[str, Estimate]:
    """Returns :data:`MEANS` and :data:`WEIGHTED` with 95 % intervals."""
    values = mean_values(answers)
    if not len(answers):
        return dict.fromkeys(values, UNDEFINED)
    counts, right = _Counts(answers), answers.right.astype(np.float64)
    labelled, seen = counts.labelled > 0, counts.labelled + counts.predicted > 0
    entries = {
        "recall": (answers.labels, answers.units, right, counts.labelled),
        "precision": (answers.predicted, answers.units, right, counts.predicted),
        "f1": _f1_entries(answers, counts),
    }
    weights = {
        "balanced": labelled / labelled.sum(),
        "macro": seen / seen.sum(),
        "weighted": counts.labelled / len(answers),
    }
    found: dict[str, Estimate] = {}
    for name, value in values.items():
        kind, measure = ("balanced", "recall") if name == "balanced_accuracy" else name.split("_")
        own = getattr(counts, measure)
        spread = Spread(answers.num_units)
        spread.add(_weighted_cells(*entries[measure], own, weights[kind]), weights[kind])
        if kind == "weighted":  # the weights vary with the images too
            ones = np.zeros(len(answers), np.int64)
            residuals = (own[answers.labels] - value) / len(answers)
            spread.add(Cells.of(ones, answers.units, residuals, np.full(len(answers), 1 / len(answers))), np.zeros(1))
        # A ratio whose two counts vary together is too low: E f - F = -F (1 - F) / D to first order, D = labelled + answered.
        bias = own * (1.0 - own) / np.maximum(entries["f1"][3], 1) if measure == "f1" else 0.0 * own
        found[name] = spread.estimate(value, centre=value + float(weights[kind] @ bias))
    return found


def _f1_entries(answers: Answers, counts: _Counts) -> tuple[Ints, Ints, Floats, Ints]:
    """F1 is a ratio too: an image counts once for its class and once for the predicted one, and is right or wrong in both."""
    right = answers.right.astype(np.float64)
    return (
        np.concatenate([answers.labels, answers.predicted]),
        np.concatenate([answers.units, answers.units]),
        np.concatenate([right, right]),
        counts.labelled + counts.predicted,
    )


def _weighted_cells(strata: Ints, units: Ints, right: Floats, sizes: Ints, ratios: Floats, weights: Floats) -> Cells:
    shares = 1.0 / sizes[strata]
    return Cells.of(strata, units, weights[strata] * (right - ratios[strata]) * shares, shares)


def class_estimates(answers: Answers) -> Mapping[str, list[Estimate]]:
    """Returns ``precision``, ``recall`` and ``f1`` with 95 % intervals, by class; undefined for a class that was never answered
    (precision), never labelled (recall), or neither.

    Without groups the intervals are Wilson's. That of F1 is the one of J = right / (labelled or answered), as F1 = 2 J / (1 + J).
    """
    counts = _Counts(answers)
    right = answers.right.astype(np.float64)
    wrong = ~answers.right
    either = counts.labelled + counts.predicted - counts.right
    joined = (
        np.concatenate([answers.labels, answers.predicted[wrong]]),
        np.concatenate([answers.units, answers.units[wrong]]),
        np.concatenate([right, right[wrong]]),
    )
    found = {
        "precision": _by_stratum(answers, answers.predicted, answers.units, right, counts.predicted),
        "recall": _by_stratum(answers, answers.labels, answers.units, right, counts.labelled),
    }
    jaccard = _by_stratum(answers, *joined, either)
    found["f1"] = [
        Estimate(value, _f1_of(one.low), _f1_of(one.high))
        if one.low is not None and one.high is not None
        else UNDEFINED
        for value, one in zip(counts.f1.tolist(), jaccard, strict=True)
    ]
    return found


def _f1_of(jaccard: float) -> float:
    return 2.0 * jaccard / (1.0 + jaccard)


def _by_stratum(answers: Answers, strata: Ints, units: Ints, right: Floats, sizes: Ints) -> list[Estimate]:
    hits = np.bincount(strata, right, len(sizes))
    values = hits / np.maximum(sizes, 1)
    if answers.groups is None:
        return [
            Estimate(value, *wilson(round(part), whole)) if whole else UNDEFINED
            for value, part, whole in zip(values.tolist(), hits.tolist(), sizes.tolist(), strict=True)
        ]
    cells = _weighted_cells(strata, units, right, sizes, values, np.ones(len(sizes)))
    return [
        share_estimate(value, variance, size, count - 1.0) if count else UNDEFINED
        for value, variance, size, count in zip(values.tolist(), *cells.variances(len(sizes)), strict=True)
    ]


def accuracy(answers: Answers) -> Estimate:
    """Returns the share of right answers with its 95 % interval: Wilson's, or with groups the one of :func:`share_estimate`."""
    if not len(answers):
        return UNDEFINED
    zeros = np.zeros(len(answers), np.int64)
    sizes = np.array([len(answers)])
    return _by_stratum(answers, zeros, answers.units, answers.right.astype(np.float64), sizes)[0]
