"""Operating points: the rule against a loop, chosen thresholds against a try of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from answer_tables import random_answers

from stagewright.errors import DataError
from stagewright.measures.operating import NO_ANSWER, OperatingPoint, at_point, choose

NAMES = [f"c{at}" for at in range(8)]


def _by_rule(shares: list[float], point: OperatingPoint) -> int:
    limits = {NAMES.index(name): limit for name, limit in point.thresholds.items()}
    reached = {at: shares[at] / limit for at, limit in limits.items() if shares[at] >= limit - 1e-7}
    if reached:
        return max(reached, key=lambda at: reached[at])
    free = [at for at in range(len(shares)) if at not in limits]
    if not free:
        return NO_ANSWER
    best = max(free, key=lambda at: shares[at])
    return best if shares[best] >= point.min_confidence - 1e-7 else NO_ANSWER


def test_the_rule() -> None:
    random = np.random.default_rng(0)
    for seed in range(60):
        answers = random_answers(seed)
        assert answers.probabilities is not None
        own = random.choice(answers.num_classes, int(random.integers(0, answers.num_classes + 1)), replace=False)
        point = OperatingPoint(
            {NAMES[at]: float(random.uniform(0.05, 0.9)) for at in own}, float(random.uniform(0, 0.7))
        )
        found = point.decide(answers.probabilities, NAMES[: answers.num_classes])
        assert found.tolist() == [_by_rule(row, point) for row in answers.probabilities.astype(float).tolist()]


def test_without_thresholds_the_most_probable_class_is_answered() -> None:
    answers = random_answers(5)
    assert answers.probabilities is not None and not OperatingPoint()
    assert (
        OperatingPoint().decide(answers.probabilities, NAMES[: answers.num_classes]).tolist()
        == answers.predicted.tolist()
    )


def test_a_threshold_is_reached_by_the_nearest_float32() -> None:
    shares = np.array([[0.3, 0.7]], np.float32)
    assert OperatingPoint({"c0": 0.3}).decide(shares, NAMES[:2]).tolist() == [0]


@pytest.mark.parametrize("aim", ["precision", "recall"])
def test_a_chosen_threshold_is_the_best_of_all(aim: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        positive, scores = random.random(40) < 0.4, np.round(random.random(40), 1).astype(np.float32)
        target = float(random.uniform(0.3, 1.0))
        tries = []
        for limit in np.unique(scores):
            hits = int((positive & (scores >= limit)).sum())
            tries.append((hits / int((scores >= limit).sum()), hits / max(1, int(positive.sum())), float(limit)))
        good = [one for one in tries if one[0 if aim == "precision" else 1] >= target]
        found = choose(aim, target, positive, scores)  # type: ignore[arg-type]
        if not good or not positive.any():
            assert found is None
        elif aim == "precision":
            assert found is not None and found.recall == max(one[1] for one in good)
        else:
            assert found is not None and found.threshold == max(one[2] for one in good)
        if found is not None:
            assert (found.precision, found.recall, found.threshold) in tries


def test_what_a_point_comes_to() -> None:
    answers = random_answers(4)
    names = NAMES[: answers.num_classes]
    point = OperatingPoint({names[0]: 0.4}, 0.5)
    assert answers.probabilities is not None
    decided, found = point.decide(answers.probabilities, names), at_point(answers, names, point)
    given = decided >= 0
    assert found is not None and found.answered.value == pytest.approx(given.mean(), abs=1e-12)
    assert found.accuracy.value == pytest.approx((decided == answers.labels)[given].mean(), abs=1e-12)
    first = answers.labels == 0
    assert found.classes[names[0]][1].value == pytest.approx((decided[first] == 0).mean(), abs=1e-12)
    assert at_point(replace(answers, probabilities=None), names, point) is None


def test_a_number_that_is_set_again_loses_its_reason() -> None:
    point = OperatingPoint({"c0": 0.3}, 0.5, {"c0": "why", "": "because"})
    assert point.changed({"c0": 0.4}, None).reasons == {"": "because"}
    assert point.changed({}, 0.1).reasons == {"c0": "why"}
    assert point.lines() == [
        "'c0' is answered from a probability of 0.3 on (why)",
        "no answer where another class has a probability below 0.5 (because)",
    ]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (OperatingPoint({"d0": 0.3}), "no class of the model"),
        (OperatingPoint({"c0": 0.0}), "above 0, at most 1"),
        (OperatingPoint({"c0": float("nan")}), "above 0, at most 1"),
        (OperatingPoint({}, 1.5), "from 0 to 1"),
    ],
)
def test_wrong_numbers_and_names_are_refused(point: OperatingPoint, said: str) -> None:
    with pytest.raises(DataError, match=said):
        point.checked(NAMES)
