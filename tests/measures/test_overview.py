"""All measures together, and the metrics that select weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from answer_tables import random_answers

from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.metrics import METRICS, goodness, keeps_probabilities, value_text
from stagewright.measures.overview import OF_CLASSES, TITLES, metric_value, overview


def test_everything_is_plain_data_with_finite_numbers() -> None:
    for seed in range(40):
        answers = random_answers(seed)
        for one in (answers, replace(answers, probabilities=None)):
            found = overview(one)
            assert list(found.means) == list(TITLES) and list(found.classes) == list(OF_CLASSES)
            text = json.dumps(found.to_dict(), allow_nan=False)
            assert json.loads(text).keys() == {*TITLES, "calibration_error"}
            assert all(len(kind) == answers.num_classes for kind in found.classes.values())


def test_metrics_are_the_measures() -> None:
    answers = random_answers(3)
    means = overview(answers).means
    assert metric_value("top1", answers) == pytest.approx(100 * (means["accuracy"].value or 0))
    for metric, name in (("balanced_accuracy",) * 2, ("macro_f1",) * 2, ("auc", "macro_auc"), ("log_loss",) * 2):
        assert metric_value(metric, answers) == pytest.approx(means[name].value)  # type: ignore[arg-type]


def test_better_is_lower_for_the_loss_alone() -> None:
    for metric in METRICS:
        assert (goodness(metric, 0.2) > goodness(metric, 0.1)) == (metric != "log_loss")
        assert goodness(metric, math.nan) == -math.inf
    assert value_text("top1", 81.234) == "top-1 81.23 %" and value_text("auc", math.nan) == "macro AUC –"


def test_no_images_have_no_metric() -> None:
    zeros = np.zeros(0)
    nothing = Answers(zeros.astype(np.int64), zeros.astype(np.int64), 3, zeros, zeros)
    assert all(math.isnan(metric_value(metric, nothing)) for metric in METRICS)
    assert overview(nothing).means["macro_f1"].value is None


def test_probabilities_are_bounded() -> None:
    assert keeps_probabilities(10_000, 1000) and not keeps_probabilities(10_001, 1000)


def test_groups_become_numbers_and_images_without_one_stay_alone() -> None:
    assert group_numbers(None) is None and group_numbers([None, None]) is None
    found = group_numbers(["a", None, "b", "a", None])
    assert found is not None and found.tolist() == [0, 1, 2, 0, 3]


def test_columns_of_other_lengths_are_refused() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="lengths"):
        Answers(np.zeros(2, np.int64), np.zeros(3, np.int64), 2, ones, ones)
    with pytest.raises(ValueError, match="probabilities of 4 classes, not of 2"):
        Answers(np.zeros(3, np.int64), np.zeros(3, np.int64), 2, ones, ones, np.ones((3, 4), np.float32))
