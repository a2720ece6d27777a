"""Log loss against scikit-learn, the calibration error against a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from answer_tables import random_answers
from sklearn.metrics import log_loss as reference

from stagewright.measures.answers import Answers
from stagewright.measures.calibration import BINS, calibration, log_loss, losses_of


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")
def test_log_loss_is_that_of_scikit_learn() -> None:
    for seed in range(200):
        answers = random_answers(seed)
        assert answers.probabilities is not None
        shares = answers.probabilities.astype(np.float64)
        expected = reference(answers.labels, shares, labels=list(range(answers.num_classes)))
        found = log_loss(answers)
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert found.low is None or found.high is None or found.low <= expected <= found.high


def test_calibration_error_is_that_of_a_loop() -> None:
    for seed in range(50):
        answers = random_answers(seed)
        error = 0.0
        for at in range(BINS):
            low, high = at / BINS, (at + 1) / BINS
            inside = (answers.confidence > low) & (answers.confidence <= high)
            if inside.any():
                gap = answers.confidence[inside].mean() - answers.right[inside].mean()
                error += abs(gap) * inside.mean()
        found = calibration(answers)
        assert found is not None and found.error == pytest.approx(error, abs=1e-9)
        assert found.excess.value == pytest.approx(answers.confidence.mean() - answers.right.mean(), abs=1e-12)


def test_calibrated_probabilities_have_the_error_that_chance_gives() -> None:
    random = np.random.default_rng(0)
    errors, expected = [], []
    for _ in range(200):
        confidence = random.uniform(0.4, 1.0, 300)
        right = random.random(300) < confidence
        zeros = np.zeros(300, np.int64)
        found = calibration(Answers(zeros, np.where(right, 0, 1), 2, np.zeros(300), confidence))
        assert found is not None
        errors.append(found.error)
        expected.append(found.by_chance)
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.05)


def test_no_images_and_no_spread() -> None:
    answers = random_answers(2)
    empty = replace(
        answers,
        **{
            name: getattr(answers, name)[:0]
            for name in ("labels", "predicted", "losses", "confidence", "probabilities")
        },
        groups=None,
    )
    assert calibration(empty) is None and log_loss(empty).value is None
    assert losses_of(np.array([0.0, 1.0])).tolist() == pytest.approx([36.04365, 0.0], abs=1e-5)
