"""Curves and areas against scikit-learn, on 200 random tables; residuals against small changes of the weights."""

from __future__ import annotations

import numpy as np
import pytest
from answer_tables import random_answers
from sklearn import metrics

from stagewright.measures.answers import Answers
from stagewright.measures.curves import (
    Curve,
    _precision_residuals,
    _roc_residuals,
    areas,
    class_curve,
    macro_roc_auc,
)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_values_are_those_of_scikit_learn(first: int) -> None:
    for seed in range(first, first + 50):
        answers = random_answers(seed)
        found, shares = areas(answers), answers.probabilities
        assert found is not None and shares is not None
        rocs: list[float] = []
        averages: list[float] = []
        for label in range(answers.num_classes):
            positive, scores = answers.labels == label, shares[:, label].astype(np.float64)
            roc, average = found.roc[label].value, found.precision_recall[label].value
            assert (average is None, roc is None) == (not positive.any(), positive.all() or not positive.any())
            if average is not None:
                averages.append(float(metrics.average_precision_score(positive, scores)))
                assert average == pytest.approx(averages[-1], abs=1e-12)
            if roc is not None:
                rocs.append(float(metrics.roc_auc_score(positive, scores)))
                assert roc == pytest.approx(rocs[-1], abs=1e-12)
                if seed % 5 == 0:  # the curves themselves on every fifth table, as they take long
                    _same_curves(class_curve(answers, label), positive, scores)
        assert found.macro_precision_recall.value == pytest.approx(np.mean(averages), abs=1e-12)
        mean = float(np.mean(rocs)) if rocs else np.nan
        assert (np.nan if found.macro_roc.value is None else found.macro_roc.value) == pytest.approx(
            mean, abs=1e-12, nan_ok=True
        )
        assert macro_roc_auc(answers) == pytest.approx(mean, abs=1e-12, nan_ok=True)
        classes = answers.num_classes
        if len(np.unique(answers.labels)) == classes > 2 and np.allclose(shares.astype(np.float64).sum(axis=1), 1):
            macro = metrics.roc_auc_score(
                answers.labels, shares.astype(np.float64), multi_class="ovr", labels=range(classes)
            )
            assert macro_roc_auc(answers) == pytest.approx(macro, abs=1e-12)


def _same_curves(curve: Curve, positive: np.ndarray, scores: np.ndarray) -> None:
    precision, recall, thresholds = metrics.precision_recall_curve(positive, scores)
    for own, other in ((curve.precision, precision[:-1]), (curve.recall, recall[:-1])):
        assert own[::-1] == pytest.approx(other, abs=1e-12)
    assert curve.thresholds[::-1].tolist() == thresholds.tolist()
    false, true, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert curve.fall_out == pytest.approx(false[1:], abs=1e-12)
    assert curve.recall == pytest.approx(true[1:], abs=1e-12)


def test_residuals_are_derivatives() -> None:
    """Counting one image a little more moves the areas as its residual says: here by a hundredth, among copies of all images."""
    random = np.random.default_rng(3)
    positive, scores = random.random(12) < 0.5, np.round(random.random(12), 1).astype(np.float32)
    curve = Curve.of(positive, scores)
    place = np.searchsorted(-curve.thresholds, -scores.astype(np.float64))
    found = _roc_residuals(curve, positive, place), _precision_residuals(curve, positive, place)
    for at in range(12):
        often = np.full(12, 10_000)
        often[at] += 1
        more = Curve.of(np.repeat(positive, often), np.repeat(scores, often))
        for residuals, before, after in zip(
            found, (curve.roc_auc, curve.average_precision), (more.roc_auc, more.average_precision), strict=True
        ):
            assert (after - before) * 10_000 == pytest.approx(residuals[at], abs=1e-3)


def test_without_probabilities_there_are_no_areas() -> None:
    zeros = np.zeros(3)
    answers = Answers(np.array([0, 1, 1]), np.array([0, 1, 0]), 2, zeros, zeros)
    assert areas(answers) is None and np.isnan(macro_roc_auc(answers))


def test_no_images_give_an_empty_curve() -> None:
    empty = Curve.of(np.zeros(0, bool), np.zeros(0, np.float32))
    assert empty.positives == empty.negatives == 0 and np.isnan(empty.roc_auc) and np.isnan(empty.average_precision)
