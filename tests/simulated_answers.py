"""Answers per picture with a known truth, for tests of statistics: a probit model with the difficulty of each picture, what each
recipe finds hard, chance for each seed and picture, and the luck of each seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Bools = NDArray[np.bool_]
PICTURE, RECIPE, CHANCE, GROUP = 1.5, 0.6, 0.8, 0.5
"""Standard deviations: of a picture's difficulty, of recipe and picture together, of seed and picture together, of a group."""
WILD = 20.0
"""Seed excess of a wild recipe."""


@dataclass(frozen=True)
class Model:
    """Recipes with latent means ``means``; ``excess`` is the variance between seeds beyond coin flips, in units of coin flips."""

    means: tuple[float, ...]
    seeds: int
    excess: float
    pictures: int = 2000
    groups: int = 0
    wild: bool = False
    """Whether the last recipe's seeds differ far more than those of the others."""

    def _luck(self) -> NDArray[np.float64]:
        """Standard deviation of each recipe's seeds on the latent scale."""
        spread = np.sqrt(PICTURE**2 + RECIPE**2 + (GROUP**2 if self.groups else 0.0))
        at = (float(np.mean(self.means)) + spread * norm.ppf((np.arange(4000) + 0.5) / 4000)) / CHANCE
        share = norm.cdf(at)
        flips = float((share * (1 - share)).mean()) / self.pictures
        slope = float((norm.pdf(at) / CHANCE).mean())
        excess = np.full(len(self.means), self.excess)
        if self.wild:
            excess[-1] = WILD
        return np.sqrt(excess * flips) / slope

    def truth(self) -> NDArray[np.float64]:
        """Returns the accuracy of each recipe over all pictures and seeds."""
        variance = PICTURE**2 + RECIPE**2 + CHANCE**2 + self._luck() ** 2 + (GROUP**2 if self.groups else 0.0)
        return norm.cdf(np.array(self.means) / np.sqrt(variance))

    def draw(self, random: np.random.Generator) -> tuple[list[Bools], NDArray[np.int64] | None]:
        """Returns (k, n) answers of each recipe to the same new pictures, and the pictures' groups."""
        difficulty = PICTURE * random.standard_normal(self.pictures)
        groups = None
        if self.groups:
            groups = random.permutation(np.arange(self.pictures) % self.groups)
            difficulty += GROUP * random.standard_normal(self.groups)[groups]
        right = []
        for mean, luck in zip(self.means, self._luck(), strict=True):
            latent = mean + difficulty + RECIPE * random.standard_normal(self.pictures)
            noise = CHANCE * random.standard_normal((self.seeds, self.pictures), dtype=np.float32)
            right.append(latent + luck * random.standard_normal((self.seeds, 1)) + noise > 0)
        return right, groups


def mean_for(model: Model, accuracy: float) -> float:
    """Returns the latent mean at which the first recipe of ``model`` has ``accuracy``."""
    variance = PICTURE**2 + RECIPE**2 + CHANCE**2 + model._luck()[0] ** 2 + (GROUP**2 if model.groups else 0.0)
    return float(norm.ppf(accuracy) * np.sqrt(variance))
