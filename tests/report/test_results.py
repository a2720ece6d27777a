"""The numbers of the report, against a plain count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stagewright.report.results import class_rows, confused_pairs, confusion
from stagewright.report.tables import Predictions


def predictions(labels: Any, predicted: Any) -> Predictions:
    return Predictions("val", np.asarray(labels, np.int32), np.asarray(predicted, np.int32), None, 0)


def rows(classes: int, found: Predictions) -> Any:
    return class_rows(SimpleNamespace(classes=[f"c{at}" for at in range(classes)], data=None), found)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_mistakes_are_those_of_the_matrix(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.integers(1, 9))
    found = predictions(*random.integers(0, classes, (2, int(random.integers(0, 60)))))
    matrix = confusion(found, classes)
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = confused_pairs(found, 1000)
    assert {(pair.true, pair.predicted): pair.count for pair in pairs} == {
        (int(t), int(p)): int(wrong[t, p]) for t, p in zip(*np.nonzero(wrong), strict=True)
    }
    order = [(-pair.count, -pair.percent, pair.true, pair.predicted) for pair in pairs]
    assert order == sorted(order) and confused_pairs(found, 2) == pairs[:2]
    for row in rows(classes, found):
        assert (row.score.correct, row.score.total) == (matrix[row.label, row.label], matrix[row.label].sum())
        most = wrong[row.label].max()
        assert row.mistaken_count == most and row.mistaken_for == (int(wrong[row.label].argmax()) if most else None)


def test_many_classes_take_little_memory() -> None:
    found = predictions([65_535, 3], [3, 3])  # as a matrix 34 GB
    assert rows(65_536, found)[65_535].mistaken_for == 3 and len(confused_pairs(found, 20)) == 1
