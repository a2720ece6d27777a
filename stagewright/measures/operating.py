"""Operating points: from which probability on a class is answered, and when there is no answer.

The rule: a class with a threshold is answered where its probability reaches it, before all classes without one; of several, the
one with the highest probability relative to its threshold. Else the most probable of the classes without a threshold is answered,
if its probability reaches ``min_confidence``. Else there is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stagewright.errors import DataError
from stagewright.measures.answers import Answers
from stagewright.measures.by_class import accuracy, class_estimates
from stagewright.measures.curves import Curve
from stagewright.measures.intervals import Estimate
from stagewright.text import nearest, some

Ints = NDArray[np.int64]
Aim = Literal["precision", "recall"]
AIMS: tuple[Aim, ...] = get_args(Aim)
NO_ANSWER = -1


@dataclass(frozen=True)
class OperatingPoint:
    """When a model answers which class; with the defaults it always answers the most probable one."""

    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    """By class, the probability in (0, 1] from which on it is answered."""
    min_confidence: float = 0.0
    """Smallest probability in [0, 1] of an answer of a class without a threshold."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """By class, and by ``""`` for ``min_confidence``, how its number was chosen, in words; for those that were chosen."""

    def __bool__(self) -> bool:
        """Whether it differs from the defaults."""
        return bool(self.thresholds) or self.min_confidence > 0.0

    def changed(self, thresholds: Mapping[str, float], min_confidence: float | None) -> OperatingPoint:
        """Returns this point with further or other ``thresholds`` and, unless it is None, ``min_confidence``."""
        lowest = self.min_confidence if min_confidence is None else min_confidence
        given = {*thresholds, *([] if min_confidence is None else [""])}
        kept = {name: reason for name, reason in self.reasons.items() if name not in given}
        return OperatingPoint({**self.thresholds, **thresholds}, lowest, kept)

    def lines(self) -> list[str]:
        """Returns a sentence on each threshold, for people."""
        said = [f"{name!r} is answered from a probability of {limit:.4g} on" for name, limit in self.thresholds.items()]
        names = list(self.thresholds)
        if self.min_confidence > 0.0:
            others = "another class" if said else "a class"
            said.append(f"no answer where {others} has a probability below {self.min_confidence:.4g}")
            names.append("")
        reasons = [self.reasons.get(name, "") for name in names]
        return [f"{line} ({reason})" if reason else line for line, reason in zip(said, reasons, strict=True)]

    def checked(self, classes: Sequence[str]) -> OperatingPoint:
        """Returns this point; DataError for a class that is not among ``classes`` and for numbers that are no probabilities."""
        for name, threshold in self.thresholds.items():
            if name not in classes:
                raise DataError(
                    f"a threshold for {name!r}, which is no class of the model{nearest(name, classes)}",
                    f"its classes: {some(classes, 20)}",
                    "correct the name",
                )
            if not 0.0 < threshold <= 1.0:
                raise DataError(
                    f"threshold {threshold:g} for {name!r}", "a probability above 0, at most 1", "give for example 0.3"
                )
        if not 0.0 <= self.min_confidence <= 1.0:
            raise DataError(
                f"min_confidence {self.min_confidence:g}", "a probability from 0 to 1", "give for example 0.6"
            )
        return self

    def decide(self, probabilities: NDArray[np.floating], classes: Sequence[str]) -> Ints:
        """Returns the class that is answered for each image, (N,), or :data:`NO_ANSWER`; ``probabilities`` are (N, C)."""
        limits = np.array([self.thresholds.get(name, np.nan) for name in classes])
        own = ~np.isnan(limits)
        # A probability of 0.3 as float32 is above 0.3 or below: what is as near as that reaches the threshold.
        shares = probabilities.astype(np.float64) + 1e-7
        relative = np.where(own & (shares >= limits), shares / np.where(own, limits, 1.0), -np.inf)
        free = np.where(own, -np.inf, shares)
        found = np.where(free.max(axis=1) >= self.min_confidence, free.argmax(axis=1), NO_ANSWER)
        reached = relative.max(axis=1)
        return np.where(np.isfinite(reached), relative.argmax(axis=1), found).astype(np.int64)


@dataclass(frozen=True)
class Choice:
    """A threshold that was chosen on images with known classes, and what it reaches on these."""

    threshold: float
    precision: float
    """Share of positives among the images at or above it."""
    recall: float
    """Share of the positives that are at or above it."""
    images: int
    """Images at or above it."""


def choose(aim: Aim, target: float, positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> Choice | None:
    """Returns the threshold on ``scores`` (N,) that reaches ``target``, in (0, 1], in ``aim``, and most of the other: for a
    precision the one with the highest recall, for a recall the highest one. None if no threshold reaches it."""
    curve = Curve.of(positive, scores)
    if not curve.positives:
        return None
    reaching = np.flatnonzero((curve.precision if aim == "precision" else curve.recall) >= target)
    if not len(reaching):
        return None
    at = int(reaching[-1] if aim == "precision" else reaching[0])
    images = int(curve.hits[at] + curve.false[at])
    return Choice(float(curve.thresholds[at]), float(curve.precision[at]), float(curve.recall[at]), images)


@dataclass(frozen=True)
class PointMeasures:
    """What an operating point comes to, with 95 % intervals; shares in [0, 1]."""

    answered: Estimate
    """Share of the images that get an answer."""
    accuracy: Estimate
    """Share of the answers that are right."""
    classes: dict[str, tuple[Estimate, Estimate]]
    """Precision and recall of each class with a threshold; images without an answer count against the recall."""


def at_point(answers: Answers, classes: Sequence[str], point: OperatingPoint) -> PointMeasures | None:
    """Returns what ``point`` makes of ``answers``; None without the probabilities of all classes."""
    if answers.probabilities is None:
        return None
    decided = point.decide(answers.probabilities, classes)
    given = decided != NO_ANSWER
    none = answers.num_classes  # a class of its own, which no image has
    all_of = replace(answers, predicted=np.where(given, decided, none), num_classes=none + 1, probabilities=None)
    kept = Answers(
        labels=answers.labels[given],
        predicted=decided[given],
        num_classes=none,
        losses=answers.losses[given],
        confidence=answers.confidence[given],
        groups=None if answers.groups is None else answers.groups[given],
    )
    found = class_estimates(all_of)
    named = {name: list(classes).index(name) for name in point.thresholds}
    return PointMeasures(
        answered=accuracy(replace(all_of, labels=given.astype(np.int64), predicted=np.ones(len(given), np.int64))),
        accuracy=accuracy(kept),
        classes={name: (found["precision"][at], found["recall"][at]) for name, at in named.items()},
    )
