"""ROC and precision-recall curves of one class against the rest, with the areas under them.

Equal scores are one point of a curve, as in scikit-learn (``roc_curve``, ``precision_recall_curve``). The area under the ROC
curve is that of the trapezoids, which is the share of pairs of a positive and a negative in the right order (ties count half);
that under the precision-recall curve is the average precision, without interpolation. All values are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.intervals import UNDEFINED, Estimate
from stagewright.measures.spread import Cells, Spread

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The points of both curves, from the highest threshold to the lowest; every array has shape (K,)."""

    thresholds: Floats
    """The K different scores: at each, images with at least this score are answered with the class."""
    hits: Ints
    """Positives among those images."""
    false: Ints
    """Negatives among those images."""

    @classmethod
    def of(cls, positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> Curve:
        """Returns the curve of N images, of which ``positive`` (N,) are of the class."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order].astype(np.float64)
        last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1) if len(ordered) else np.empty(0, np.int64)
        hits = np.cumsum(positive[order], dtype=np.int64)[last]
        return cls(ordered[last], hits, last + 1 - hits)

    @property
    def positives(self) -> int:
        return int(self.hits[-1]) if len(self.hits) else 0

    @property
    def negatives(self) -> int:
        return int(self.false[-1]) if len(self.false) else 0

    @property
    def recall(self) -> Floats:
        """Share of the positives, also called true-positive rate; NaN without positives."""
        return self.hits / self.positives if self.positives else np.full(len(self.hits), np.nan)

    @property
    def fall_out(self) -> Floats:
        """Share of the negatives, also called false-positive rate; NaN without negatives."""
        return self.false / self.negatives if self.negatives else np.full(len(self.false), np.nan)

    @property
    def precision(self) -> Floats:
        """Share of positives among the images answered with the class."""
        return self.hits / (self.hits + self.false)

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve; NaN without positives or without negatives."""
        if not self.positives or not self.negatives:
            return float("nan")
        return float(np.trapezoid(np.concatenate([[0.0], self.recall]), np.concatenate([[0.0], self.fall_out])))

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve; NaN without positives."""
        if not self.positives:
            return float("nan")
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def class_curve(answers: Answers, label: int) -> Curve:
    """Returns the curve of the class ``label``; ``answers`` must have probabilities."""
    assert answers.probabilities is not None
    return Curve.of(answers.labels == label, answers.probabilities[:, label])


def macro_roc_auc(answers: Answers) -> float:
    """Returns the mean area under the ROC curve over the classes with positives and negatives; NaN where there is none, or
    without probabilities."""
    if answers.probabilities is None:
        return float("nan")
    areas = [class_curve(answers, label).roc_auc for label in map(int, np.unique(answers.labels))]
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else float("nan")


@dataclass(frozen=True)
class _Areas:
    """_Areas under the curves with 95 % intervals, by class and as means over the classes for which they are defined."""

    roc: list[Estimate]
    precision_recall: list[Estimate]
    macro_roc: Estimate
    macro_precision_recall: Estimate


def areas(answers: Answers) -> _Areas | None:
    """Returns the areas of all classes; None without probabilities.

    The residuals are those of E. R. DeLong et al., Biometrics 44 (1988), 837-845, and with groups of N. A. Obuchowski,
    Biometrics 53 (1997), 567-578; for the average precision, its derivatives.
    """
    if answers.probabilities is None:
        return None
    rocs: list[Estimate] = [UNDEFINED] * answers.num_classes
    averages = list(rocs)
    present = np.flatnonzero(np.bincount(answers.labels, minlength=answers.num_classes))
    both = len(present) if len(present) > 1 else 0
    means = Spread(answers.num_units), Spread(answers.num_units)
    for label in map(int, present):
        curve, positive = class_curve(answers, label), answers.labels == label
        place = np.searchsorted(-curve.thresholds, -answers.probabilities[:, label].astype(np.float64))
        counts = np.where(positive, curve.positives, curve.negatives)
        parts = [
            (averages, _precision_residuals(curve, positive, place), curve.average_precision, means[1], len(present))
        ]
        if both:
            parts.append((rocs, _roc_residuals(curve, positive, place), curve.roc_auc, means[0], both))
        for found, residuals, value, mean, of in parts:
            cells = Cells.of(positive.astype(np.int64), answers.units, residuals, 1.0 / counts)
            own = Spread(answers.num_units)
            own.add(cells, np.ones(2))
            found[label] = own.estimate(value)
            shared = Cells(cells.strata, cells.units, cells.sums / of, cells.shares)
            mean.add(shared, np.full(2, 1.0 / of))
    macro = [_macro(found, mean) for found, mean in zip((rocs, averages), means, strict=True)]
    return _Areas(rocs, averages, macro[0], macro[1])


def _macro(found: list[Estimate], spread: Spread) -> Estimate:
    values = [one.value for one in found if one.value is not None]
    return spread.estimate(float(np.mean(values))) if values else UNDEFINED


def _roc_residuals(curve: Curve, positive: NDArray[np.bool_], place: Ints) -> Floats:
    """(N,): how much each image's share of pairs in the right order differs from the area, over the images of its kind."""
    false = np.concatenate([[0], curve.false])
    hits = np.concatenate([[0], curve.hits])
    # Of the other kind, those that are ranked worse (better for negatives), and half of those with an equal score.
    worse = 1.0 - (false[place] + false[place + 1]) / 2.0 / curve.negatives
    better = (hits[place] + hits[place + 1]) / 2.0 / curve.positives
    ordered = np.where(positive, worse, better)
    return (ordered - curve.roc_auc) / np.where(positive, curve.positives, curve.negatives)


def _precision_residuals(curve: Curve, positive: NDArray[np.bool_], place: Ints) -> Floats:
    """(N,): the derivative of the average precision by the weight of each image.

    The average is over positives, of the precision at each one's score. An image changes the precision at all scores up to its
    own: by (1 or 0 - precision) / (images there).
    """
    own = np.diff(curve.hits, prepend=0)
    images, precision = curve.hits + curve.false, curve.precision
    ones = np.cumsum((own / images)[::-1])[::-1]
    lost = np.cumsum((own * precision / images)[::-1])[::-1]
    direct = np.where(positive, precision[place] - curve.average_precision, 0.0)
    return (direct + positive * ones[place] - lost[place]) / curve.positives
