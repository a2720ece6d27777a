"""Precision, recall and F1 against scikit-learn, on 200 random tables: ties, missing classes, groups, unreadable images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from answer_tables import random_answers
from sklearn import metrics

from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.by_class import accuracy, class_estimates, mean_estimates, mean_values
from stagewright.measures.intervals import wilson

KINDS = ("precision", "recall", "f1")


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_values_are_those_of_scikit_learn(first: int) -> None:
    for seed in range(first, first + 50):
        answers = random_answers(seed)
        true, predicted = answers.labels, answers.predicted
        found, estimates = mean_values(answers), mean_estimates(answers)
        expected = {"balanced_accuracy": metrics.balanced_accuracy_score(true, predicted)}
        for mean in ("macro", "weighted"):
            three = metrics.precision_recall_fscore_support(true, predicted, average=mean, zero_division=0)  # type: ignore[arg-type]
            expected |= {f"{mean}_{kind}": value for kind, value in zip(KINDS, three, strict=False)}
        assert found == pytest.approx(expected, abs=1e-12)
        assert {name: one.value for name, one in estimates.items()} == found
        labels = list(range(answers.num_classes))
        classes = class_estimates(answers)
        rows = metrics.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)  # type: ignore[arg-type]
        for kind, row in zip(KINDS, rows, strict=False):
            assert [one.value or 0.0 for one in classes[kind]] == pytest.approx(row, abs=1e-12)
        for one in (*estimates.values(), *(one for kind in KINDS for one in classes[kind])):
            if one.value is not None and one.low is not None and one.high is not None:
                assert 0 <= one.low <= one.value + 1e-12 and one.value - 1e-12 <= one.high <= 1


def _answers(labels: list[int], predicted: list[int], groups: Sequence[str | None] | None = None) -> Answers:
    zeros = np.zeros(len(labels))
    return Answers(
        np.array(labels, np.int64), np.array(predicted, np.int64), 3, zeros, zeros, None, group_numbers(groups)
    )


def test_a_class_that_is_never_seen_is_not_defined() -> None:
    classes = class_estimates(_answers([0, 0, 1], [0, 1, 1]))
    assert [one[2].value for one in classes.values()] == [None, None, None]
    assert class_estimates(_answers([0, 2], [0, 0]))["precision"][2].value is None  # never answered
    assert class_estimates(_answers([0, 0], [0, 2]))["recall"][2].value is None  # never labelled


def test_without_groups_the_intervals_are_wilsons() -> None:
    answers = random_answers(1)
    right = int(answers.right.sum())
    assert accuracy(answers)[1:] == pytest.approx(wilson(right, len(answers)), abs=1e-12)
    of = answers.labels == answers.labels[0]
    own = class_estimates(answers)["recall"][int(answers.labels[0])]
    assert own[1:] == pytest.approx(wilson(int(answers.right[of].sum()), int(of.sum())), abs=1e-12)


def test_copies_of_an_image_in_its_group_tell_nothing_new() -> None:
    """40 groups whose images are all alike: the intervals are those of 40 images, not of 400."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 3, (2, 40))
    labels[:25] = predicted[:25]
    names = [f"g{at}" for at in range(40)]
    one = _answers(labels.tolist(), predicted.tolist(), list(names))
    ten = _answers(np.repeat(labels, 10).tolist(), np.repeat(predicted, 10).tolist(), np.repeat(names, 10).tolist())
    alone = _answers(np.repeat(labels, 10).tolist(), np.repeat(predicted, 10).tolist())
    assert accuracy(ten) == pytest.approx(accuracy(one), abs=1e-12)
    for name, found in mean_estimates(ten).items():
        # F1's correction for its bias counts images, so it is a little smaller
        assert found == pytest.approx(mean_estimates(one)[name], abs=0.02 if name.endswith("f1") else 1e-9)
        low, high = mean_estimates(alone)[name][1:]
        assert found.high is not None and found.low is not None and high is not None and low is not None
        assert found.high - found.low > 2.5 * (high - low)


def test_no_images_give_no_numbers() -> None:
    nothing = _answers([], [])
    assert accuracy(nothing).value is None
    assert all(one.value is None for one in mean_estimates(nothing).values())
    assert all(one.value is None for kind in class_estimates(nothing).values() for one in kind)


def test_perfect_answers_and_one_unit_have_wide_intervals() -> None:
    perfect = mean_estimates(_answers([0, 1, 2] * 4, [0, 1, 2] * 4))["macro_f1"]
    assert perfect.value == 1 and perfect.low is not None and 0.6 < perfect.low < 0.95
    one_group = mean_estimates(_answers([0, 1, 2], [0, 1, 0], ["a", "a", "a"]))["balanced_accuracy"]
    assert one_group[1:] == (0.0, 1.0)
