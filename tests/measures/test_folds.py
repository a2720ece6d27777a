"""The accuracy of folds: known values, and intervals that are as wide as they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stagewright.measures.answers import Answers
from stagewright.measures.by_class import accuracy
from stagewright.measures.folds import accuracy_of_folds
from stagewright.measures.intervals import share_estimate, student


def answers(right: list[int], groups: list[int] | None = None) -> Answers:
    count = len(right)
    return Answers(
        labels=np.zeros(count, np.int64),
        predicted=1 - np.array(right, np.int64),
        num_classes=2,
        losses=np.zeros(count),
        confidence=np.ones(count),
        groups=None if groups is None else np.array(groups, np.int64),
    )


def test_mean_spread_and_the_corrected_t_are_those_of_the_paper() -> None:
    """Accuracies of 0.5, 0.75 and 1: mean 0.75, S = 0.25, and t with 2 degrees of freedom times S sqrt(1/3 + 1/2)."""
    found = accuracy_of_folds(answers([1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]), np.repeat([0, 1, 2], 4), 3)
    assert found.by_fold == (0.5, 0.75, 1.0) and found.mean == 0.75 and found.sd == pytest.approx(0.25)
    half = 4.302652729911275 * 0.25 * math.sqrt(1 / 3 + 1 / 2)
    assert found.corrected_t.low == pytest.approx(max(0.0, 0.75 - half)) and found.corrected_t.high == 1.0


def test_equal_folds_have_the_variance_of_the_answers_times_the_factor() -> None:
    right = [1, 1, 1, 0] * 25
    found = accuracy_of_folds(answers(right), np.repeat(np.arange(5), 20), 5)
    variance = 0.75 * 0.25 / 99  # with one degree of freedom less, as HC2 gives
    assert found.sd == 0.0
    assert found.pooled == pytest.approx(share_estimate(0.75, 1.5 * variance, 100 / 1.5, 99))


def test_folds_that_differ_more_than_chance_widen_the_interval() -> None:
    fold_of = np.repeat(np.arange(5), 20)
    even = accuracy_of_folds(answers([1, 1, 1, 0] * 25), fold_of, 5).pooled
    uneven = accuracy_of_folds(answers([1] * 75 + [0] * 25), fold_of, 5).pooled
    assert even.value == uneven.value == 0.75
    assert uneven.high - uneven.low > 2 * (even.high - even.low)  # type: ignore[operator]


def test_groups_that_are_right_or_wrong_together_widen_the_interval() -> None:
    right, fold_of = ([1] * 5 + [1] * 5 + [1] * 5 + [0] * 5) * 5, np.repeat(np.arange(5), 20)
    alone = accuracy_of_folds(answers(right), fold_of, 5).pooled
    grouped = accuracy_of_folds(answers(right, np.repeat(np.arange(20), 5).tolist()), fold_of, 5).pooled
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)  # type: ignore[operator]


def test_it_is_always_wider_than_the_interval_of_independent_answers() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        count, folds = int(random.integers(20, 200)), int(random.integers(2, 11))
        one = answers(random.binomial(1, random.uniform(0.05, 0.95), count).tolist())
        found, plain = accuracy_of_folds(one, random.permutation(count) % folds, folds).pooled, accuracy(one)
        assert found.low <= plain.low and found.high >= plain.high  # type: ignore[operator]
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0  # type: ignore[operator]


def test_edges() -> None:
    nothing = accuracy_of_folds(answers([]), np.zeros(0, np.int64), 3)
    assert nothing.pooled.value is None and math.isnan(nothing.mean)
    perfect = accuracy_of_folds(answers([1] * 30), np.arange(30) % 3, 3)
    assert perfect.pooled.value == 1.0 and perfect.pooled.high == 1.0 and 0.7 < (perfect.pooled.low or 0) < 0.95
    missing = accuracy_of_folds(answers([1, 0, 1, 1]), np.array([0, 0, 2, 2]), 3)
    assert math.isnan(missing.by_fold[1]) and missing.mean == 0.75
    with pytest.raises(ValueError, match="two or more"):
        accuracy_of_folds(answers([1]), np.array([0]), 1)
    assert student(4) == pytest.approx(2.7764451051977987)
