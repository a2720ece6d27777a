"""How often 95 % intervals of a cross-validation contain the true accuracy, on simulated data with simple learners.

    python benchmarks/folds.py --sets 1000 --out benchmarks/results/folds.json

A data set is drawn and divided into K folds; a learner is trained on all but one of them, K times. The true value is the accuracy
that the procedure has on new data, on average over training sets of that size: the mean, over all data sets, of its accuracy on
1,000 new images. ``model`` is how often the interval contains the accuracy of the one model that is trained on all of the data.
With 1,000 data sets the standard error of a share of 95 % is 0.7 points.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.by_class import accuracy
from stagewright.measures.folds import accuracy_of_folds
from stagewright.measures.intervals import student

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Ints]
NEW = 1000
"""New images on which the true accuracy is measured, for each data set."""


@dataclass(frozen=True)
class Case:
    """A population and a learner."""

    learner: str
    images: int
    features: int
    classes: int
    distance: float
    """Between the classes, in standard deviations for each feature."""
    groups: int = 0
    effect: float = 0.0
    """Standard deviation of what the images of a group have in common."""


CASES = {
    "ridge, 60 images": Case("ridge", 60, 20, 2, 0.3),
    "ridge, 200 images": Case("ridge", 200, 20, 2, 0.3),
    "ridge, 300 images, 97 % right": Case("ridge", 300, 20, 3, 0.8),
    "ridge, 500 images, 100 features": Case("ridge", 500, 100, 5, 0.2),
    "nearest image, 60": Case("nearest", 60, 5, 2, 0.5),
    "nearest image, 200": Case("nearest", 200, 5, 5, 0.8),
    "random projection, 100": Case("projection", 100, 20, 2, 0.4),
    "random projection, 500": Case("projection", 500, 20, 5, 0.4),
    "ridge, 20 groups": Case("ridge", 200, 10, 2, 0.4, 20, 0.7),
    "nearest image, 20 groups": Case("nearest", 200, 10, 2, 0.4, 20, 0.7),
    "ridge, 40 groups": Case("ridge", 400, 10, 2, 0.4, 40, 0.7),
}
MEANS = np.random.default_rng(5).normal(size=(20, 200))


def draw(case: Case, images: int, groups: int, random: np.random.Generator) -> tuple[Floats, Ints, Ints | None]:
    """Returns features, labels and, where there are some, groups."""
    labels = random.integers(0, case.classes, images)
    features = MEANS[labels, : case.features] * case.distance + random.normal(size=(images, case.features))
    if not case.groups:
        return features, labels, None
    group = random.integers(0, groups, images)
    return features + case.effect * random.normal(size=(groups, case.features))[group], labels, group


def learn(learner: str, features: Floats, labels: Ints, classes: int, random: np.random.Generator) -> Predict:
    """Returns the trained classifier."""
    if learner == "nearest":
        squares = np.square(features).sum(1)
        return lambda new: labels[(squares - 2 * new @ features.T).argmin(1)]
    if learner == "projection":  # what a seed decides: the classes are separated in three random directions
        directions = random.normal(size=(features.shape[1], 3))
        inner = learn("ridge", features @ directions, labels, classes, random)
        return lambda new: inner(new @ directions)
    wide = np.column_stack([features, np.ones(len(features))])
    weights = np.linalg.solve(wide.T @ wide + np.eye(wide.shape[1]), wide.T @ np.eye(classes)[labels])
    return lambda new: (np.column_stack([new, np.ones(len(new))]) @ weights).argmax(1)


def one_set(case: Case, folds: int, random: np.random.Generator) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Returns the intervals of one data set, the accuracy of its K models on new images, and that of the model of all of it."""
    features, labels, groups = draw(case, case.images, case.groups, random)
    fold_of = random.permutation(case.images) % folds
    if groups is not None:
        fold_of = (random.permutation(case.groups) % folds)[groups]
    new, new_labels, _ = draw(case, NEW, NEW, random)
    predicted, on_new = np.zeros(case.images, np.int64), []
    for fold in range(folds):
        inside = fold_of != fold
        model = learn(case.learner, features[inside], labels[inside], case.classes, random)
        predicted[~inside] = model(features[~inside])
        on_new.append(float((model(new) == new_labels).mean()))
    whole = learn(case.learner, features, labels, case.classes, random)
    nothing = np.zeros(case.images)
    answers = Answers(labels, predicted, case.classes, nothing, nothing, groups=groups)
    found = accuracy_of_folds(answers, fold_of, folds)
    half = student(folds - 1) * found.sd / math.sqrt(folds)
    independent = accuracy(answers)
    intervals = {
        "folds as independent (t)": (found.mean - half, found.mean + half),
        "answers as independent": (independent.low or 0.0, independent.high or 0.0),
        "Nadeau and Bengio": (found.corrected_t.low or 0.0, found.corrected_t.high or 0.0),
        "accuracy_of_folds": (found.pooled.low or 0.0, found.pooled.high or 0.0),
    }
    return intervals, float(np.mean(on_new)), float((whole(new) == new_labels).mean())


def measured(case: Case, folds: int, sets: int) -> dict[str, dict[str, float]]:
    """Returns for each interval how often it contains the true value and the model's, and its mean width."""
    random = np.random.default_rng(folds)
    found = [one_set(case, folds, random) for _ in range(sets)]
    true = float(np.mean([one[1] for one in found]))
    return {
        name: {
            "covers": float(np.mean([low <= true <= high for low, high in ends])),
            "model": float(np.mean([low <= one[2] <= high for (low, high), one in zip(ends, found, strict=True)])),
            "width": float(np.mean([high - low for low, high in ends])),
        }
        for name in found[0][0]
        for ends in [[one[0][name] for one in found]]
    }


def main() -> None:
    """Prints for each case and number of folds what each interval covers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--folds", type=int, action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for folds in args.folds or (2, 3, 5, 10):
        for name, case in CASES.items():
            results[f"{folds} folds: {name}"] = one = measured(case, folds, args.sets)
            told = "  ".join(
                f"{kind} {100 * of['covers']:.1f}/{100 * of['model']:.1f} ±{50 * of['width']:.1f}"
                for kind, of in one.items()
            )
            print(f"{folds:2} folds  {name:32} {told}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"sets": args.sets, "intervals": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
