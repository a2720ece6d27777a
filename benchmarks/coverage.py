"""How often the 95 % intervals of the measures contain the true value, on simulated tables of answers.

    python benchmarks/coverage.py --tables 4000 --out benchmarks/results/coverage.json

A table is drawn from a population with known class shares; images of a group share what the network finds easy. The true value
of a measure is its mean over five tables that are 500 times as large. 94 to 97 % is what is wanted; below that an interval
promises too much. With 4,000 tables the standard error of a share is 0.35 points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stagewright.measures.answers import Answers
from stagewright.measures.calibration import losses_of
from stagewright.measures.intervals import Estimate
from stagewright.measures.overview import overview


@dataclass(frozen=True)
class Case:
    """A population, and how large a table is."""

    units: int
    """Groups, or images where there are no groups."""
    shares: tuple[float, ...]
    """Of the classes."""
    skill: float
    """How much higher the logit of the true class is, in standard deviations."""
    per_group: float = 0.0
    """Mean number of images of a group; 0: no groups."""
    effect: float = 0.0
    """Standard deviation of what the images of a group have in common, in the same unit."""


CASES = {
    "400 images": Case(400, (0.4, 0.3, 0.2, 0.1), 2.0),
    "200 images": Case(200, (0.7, 0.3), 1.5),
    "1000 images": Case(1000, (0.1,) * 10, 3.0),
    "300 images, 20 classes": Case(300, (0.05,) * 20, 3.0),
    "60 groups": Case(60, (0.4, 0.3, 0.2, 0.1), 2.0, 8.0, 0.7),
    "30 groups": Case(30, (0.4, 0.3, 0.3), 2.0, 15.0, 0.7),
    "100 groups": Case(100, (0.4, 0.3, 0.2, 0.1), 2.5, 5.0, 0.7),
}


def draw(case: Case, random: np.random.Generator) -> Answers:
    """Returns a table of answers."""
    classes = len(case.shares)
    sizes = random.poisson(case.per_group - 1, case.units) + 1 if case.per_group else np.ones(case.units, np.int64)
    groups = np.repeat(np.arange(case.units), sizes)
    labels = random.choice(classes, len(groups), p=case.shares)
    logits = (
        random.normal(size=(len(groups), classes)) + case.effect * random.normal(size=(case.units, classes))[groups]
    )
    ease = case.skill + case.effect * random.normal(size=case.units)[groups]
    logits[np.arange(len(groups)), labels] += ease
    shares = np.exp(1.3 * logits)
    shares = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return Answers(
        labels=labels,
        predicted=shares.argmax(axis=1),
        num_classes=classes,
        losses=losses_of(shares[np.arange(len(groups)), labels]),
        confidence=shares.max(axis=1).astype(np.float64),
        probabilities=shares,
        groups=groups if case.per_group else None,
    )


def estimates(answers: Answers) -> Iterator[tuple[str, Estimate]]:
    """Yields all measures over classes, and those of the first and the last class."""
    found = overview(answers)
    yield from found.means.items()
    for kind, classes in found.classes.items():
        yield f"{kind} of the first class", classes[0]
        yield f"{kind} of the last class", classes[-1]


def coverage(case: Case, tables: int, seed: int = 0, larger: int = 500) -> dict[str, float]:
    """Returns the share of ``tables`` whose interval contains the true value, by measure; ``larger`` as in the text above."""
    random = np.random.default_rng(seed)
    large = [dict(estimates(draw(replace(case, units=larger * case.units), random))) for _ in range(5)]
    true = {name: float(np.mean([one[name].value for one in large])) for name in large[0]}  # type: ignore[misc]
    hits: dict[str, list[bool]] = {name: [] for name in true}
    for _ in range(tables):
        for name, one in estimates(draw(case, random)):
            if one.low is not None and one.high is not None:
                hits[name].append(one.low <= true[name] <= one.high)
    return {name: float(np.mean(found)) for name, found in hits.items()}


def main() -> None:
    """Prints the coverage of each measure in each case, and what lies outside of 94 to 97 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    for name in args.case or CASES:
        results[name] = coverage(CASES[name], args.tables)
        inside = [measure for measure, share in results[name].items() if 0.94 <= share <= 0.97]
        print(f"{name}: {len(inside)} of {len(results[name])} measures from 94 to 97 %", flush=True)
        for measure, share in results[name].items():
            if measure not in inside:
                print(f"  {measure:36} {100 * share:.1f} %", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"tables": args.tables, "coverage": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
