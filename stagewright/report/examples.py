"""Selects the images that the report shows: the most confident errors, the errors of each pair of classes, the hardest ones.

Pure functions of the predictions. They return positions in them, int64; equal probabilities keep the manifest's order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.report.results import confused_pairs
from stagewright.report.tables import Predictions

Places = NDArray[np.int64]
_MOST_PAIRS = 1600
"""Enough for every cell of a confusion matrix that is drawn."""


@dataclass(frozen=True, eq=False)
class _PairErrors:
    """All errors of one kind, the most confident first."""

    true: int
    predicted: int
    places: Places


def most_confident_errors(predictions: Predictions, most: int) -> Places:
    """Returns at most ``most`` errors, those with the highest probability of the predicted class first."""
    wrong = np.flatnonzero(predictions.labels != predictions.predicted)
    return _first(wrong, None if predictions.confidence is None else -predictions.confidence, most)


def errors_by_pair(predictions: Predictions) -> list[_PairErrors]:
    """Returns the errors of each pair of classes, the most frequent pair first, each with its most confident errors first."""
    sure = None if predictions.confidence is None else -predictions.confidence
    kind = predictions.labels.astype(np.int64) << 32 | predictions.predicted
    order = np.argsort(kind, kind="stable")
    ordered = kind[order]
    found = []
    for pair in confused_pairs(predictions, _MOST_PAIRS):
        own = pair.true << 32 | pair.predicted
        low, high = (int(np.searchsorted(ordered, own, side=side)) for side in ("left", "right"))
        found.append(_PairErrors(pair.true, pair.predicted, _first(order[low:high], sure, high - low)))
    return found


def hardest(predictions: Predictions, label: int, most: int) -> Places:
    """Returns at most ``most`` images of the class ``label``, those with the lowest probability of it first; none if the
    probabilities are not known."""
    if predictions.true_probability is None:
        return np.empty(0, np.int64)
    return _first(np.flatnonzero(predictions.labels == label), predictions.true_probability, most)


def _first(places: Places, by: NDArray[np.float64] | None, most: int) -> Places:
    order = places if by is None else places[np.argsort(by[places], kind="stable")]
    return order[:most].astype(np.int64)
