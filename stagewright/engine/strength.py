"""Chooses how strongly a head's weights are penalised: by cross-validation within the training images.

For each strength of a grid, from strong to weak, the head is fitted to all folds but one and its mean log loss on the fold that
was left out is computed, for each fold (of many images, for the first ones). The strength with the lowest mean is taken, and the
head is fitted to all images. Each fit begins at that fold's minimum at the strength before; the path ends where the log loss has
clearly risen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright.engine.convex import Problem, Solution, Vector, log_losses, solve

GRID = tuple(float(f"{10.0 ** (-at / 2):.2g}") for at in range(2, 17))
"""Relative strengths that are tried: 0.1, 0.032, 0.01, ..., 1e-8."""
DEFAULT_STRENGTH = 3.2e-5
"""Strength where cross-validation is not possible."""
_RISEN = 1.01
"""The path ends where the log loss is this many times its lowest value."""
_ENOUGH_IMAGES = 5000
"""Once so many images have been left out, no other fold is: their mean log loss is precise enough to tell strengths apart."""
_ROUGHLY, _EXACTLY = 5e-3, 1e-5
"""Relative distances from the minimum of the fits for a comparison and of the last one."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """A head at its optimum, and how its strength was chosen."""

    solution: Solution
    strength: float
    """Relative to the mean squared norm of the centred features."""
    log_losses: dict[float, float]
    """Mean log loss of cross-validation by strength; {} if it was not possible."""
    num_folds: int
    """Number of folds that were left out in turn; 0 if it was not possible."""
    loss: float
    """Weighted mean cross-entropy of the training images, label smoothing included."""
    top1: float
    """Share of the training images' views, by number and not by weight, that are classified correctly."""


def fit_head(
    problem: Problem,
    folds: NDArray[np.integer] | None,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Optimum:
    """Returns the optimum of ``problem`` at the strength that cross-validation over ``folds`` chooses.

    ``folds`` (N,) are the fold of each image from 0; -1 for images that are in every training part. None: the default strength.
    ``progress(done, total)`` counts fits, of which ``total`` is the most that may be needed. ``stop`` as in
    :func:`stagewright.engine.convex.solve`.
    """
    losses: dict[float, float] = {}
    numbers = [] if folds is None else _enough(folds)
    strength, start = DEFAULT_STRENGTH, None
    if folds is not None:
        parts = [_Part.of(problem, torch.from_numpy(folds == number).to(problem.labels.device)) for number in numbers]
        total = len(parts) * len(GRID) + 1
        for tried in GRID:
            for part in parts:
                part.fit(tried, stop)
                progress(sum(one.fits for one in parts), total)
            losses[tried] = _mean(parts)
            if losses[tried] <= min(losses.values()):
                strength, start = tried, np.mean([part.found for part in parts], axis=0)
            if losses[tried] > _RISEN * min(losses.values()):
                break
    solution = solve(problem, strength, start=start, tolerance=_EXACTLY, stop=stop)
    progress(1, 1)
    penalty = 0.5 * strength * float(np.square(solution.theta[: -problem.num_classes]).sum())
    _, correct = log_losses(problem, solution.theta)
    used = problem.weights > 0
    return Optimum(solution, strength, losses, len(numbers), solution.value - penalty, float(correct[used].mean()))


def _enough(folds: NDArray[np.integer]) -> list[int]:
    """Returns the folds that are left out in turn: all, or the first ones with :data:`_ENOUGH_IMAGES` images together."""
    numbers, sizes = np.unique(folds[folds >= 0], return_counts=True)
    before = np.cumsum(sizes) - sizes
    return numbers[before < _ENOUGH_IMAGES].tolist()


@dataclass(eq=False)
class _Part:
    """One division of the images into a training part and the fold that is left out."""

    problem: Problem
    weights: Tensor
    """float64 (N,): the problem's weights, 0 in the fold."""
    scored: Tensor
    """float64 (N,): the problem's weights in the fold, 0 elsewhere and for classes without an image in the training part."""
    theta: Vector | None = None
    """The last minimum."""
    fits: int = 0

    @property
    def found(self) -> Vector:
        """The last minimum; there must be one."""
        assert self.theta is not None
        return self.theta

    @classmethod
    def of(cls, problem: Problem, held_out: Tensor) -> _Part:
        """Returns the part in which the images ``held_out`` (N,) are left out."""
        weights = problem.weights.masked_fill(held_out, 0.0)
        known = torch.zeros(problem.num_classes, dtype=torch.float64, device=weights.device)
        known.index_add_(0, problem.labels, weights)
        return cls(problem, weights, (problem.weights - weights).masked_fill(known[problem.labels] == 0, 0.0))

    def fit(self, strength: float, stop: Callable[[], bool]) -> None:
        """Fits the head to the training part, from the last minimum on."""
        found = solve(self.problem, strength, weights=self.weights, start=self.theta, tolerance=_ROUGHLY, stop=stop)
        self.theta, self.fits = found.theta, self.fits + 1


def _mean(parts: list[_Part]) -> float:
    """Returns the weighted mean log loss of all images, each where its fold was left out."""
    total = weight = 0.0
    for part in parts:
        total += float(part.scored @ log_losses(part.problem, part.found)[0])
        weight += float(part.scored.sum())
    return total / weight if weight else float("inf")
