"""What the runs of some recipes say about the recipes, from the answers of k seeds to the same n pictures.

X[s, i] is 1 where the run with seed s is right on picture i; m_s is its mean over the pictures, b_i its mean over the seeds.
Three numbers describe a recipe: A = var(b_i) / n, how much its accuracy varies with the choice of pictures; B = var(m_s) / k, how
much with the seeds; and C = mean of var_s(X[s, i]) / (n k), what B is where seeds differ by coin flips alone, from picture to
picture. R = B / C is too uncertain with two or three seeds, so each recipe has at least the mean R0 of all: its seed part is B' =
C max(R, R0), with the degrees of freedom of R0 (:attr:`Seeds.freedom`). The variance of its accuracy is A + B' with two seeds and
A + max(0, B' - C) with more, since A contains the coin flips too. For a difference on the same pictures A is that of b_i - b'_i,
and B' and C are sums of both. With groups (sites, patients), which are drawn as a whole, A is G/(G - 1) of the sum of the squared
sums of each group, over n^2.

It is an analysis of several readers and many cases, with seeds for readers: N. A. Obuchowski and H. E. Rockette, Commun. Stat.
Simul. Comput. 24 (1995), 285-308; S. L. Hillis, Stat. Med. 26 (2007), 596-619 (degrees of freedom). That seeds differ by little
more than coin flips: K. Jordan, arXiv:2304.01910. How often the intervals contain the truth: tests/measures/test_seeds.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from stagewright.measures.intervals import paired_interval, wilson

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_POWER = 0.8
"""Share of studies that see a difference of :attr:`Contrast.smallest`."""
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A share or a difference of shares, with the interval of the comparison's level."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Contrast:
    """The accuracy of one recipe minus that of another."""

    value: float
    """In [-1, 1], as :attr:`low` and :attr:`high`, the ends of its interval."""
    low: float
    high: float
    p: float
    """Of the hypothesis that both are equally good, two-sided."""
    adjusted: float
    """``p`` by Holm's method over all pairs of the comparison (S. Holm, Scand. J. Stat. 6 (1979), 65-70)."""
    differs: bool
    """Whether ``adjusted`` is below 1 - level: one of them is better."""
    smallest: float | None
    """The smallest difference that 80 % of such studies would see; None between single runs."""


@dataclass(frozen=True, eq=False)
class _Recipe:
    """The answers of one recipe, summed up."""

    seeds: int
    by_picture: Floats
    """(n,) share of the seeds that are right on each picture."""
    mean: float
    between: float
    """B."""
    flips: float
    """C."""


@dataclass(frozen=True)
class _Variance:
    total: float
    freedom: float
    pictures: float
    """A."""
    seeds: float
    """B'."""
    flips: float
    """C."""


class Seeds:
    """The comparison of V recipes, each with the answers of its k seeds to the same n pictures.

    ``right`` has an array (k, n) for each recipe. ``groups`` (n,) numbers what the pictures were drawn in; None where each was
    drawn for itself. ``level`` is that of all intervals, and 1 - ``level`` the chance that anything at all is called better where
    all are equal. Recipes with one seed each are compared as trained models: Wilson's interval and McNemar's exact test, or with
    groups A alone. ValueError without a recipe or a picture, for shapes that do not fit, for one group, and for recipes with one
    seed beside some with more.
    """

    def __init__(self, right: Sequence[Bools], groups: Ints | None = None, level: float = 0.95) -> None:
        shapes = {one.shape[1:] for one in right}
        if len(shapes) != 1 or next(iter(shapes)) in ((), (0,)) or any(one.ndim != 2 or not len(one) for one in right):
            raise ValueError(
                f"answers of shapes {[one.shape for one in right]} are not those of seeds to the same pictures"
            )
        self.seeds = tuple(len(one) for one in right)
        if min(self.seeds) == 1 < max(self.seeds):
            raise ValueError("recipes with one seed and with more cannot be compared")
        if not 0.5 <= level < 1.0:
            raise ValueError(f"level is {level}, not from 0.5 to below 1")
        self.level = level
        self.pictures = right[0].shape[1]
        self._groups: Ints | None = None
        if groups is not None:
            if groups.shape != (self.pictures,):
                raise ValueError(f"groups of shape {groups.shape} for {self.pictures} pictures")
            self._groups = np.unique(groups, return_inverse=True)[1]
        self.units = self.pictures if self._groups is None else int(self._groups.max()) + 1
        if self.units < 2 and self._groups is not None:
            raise ValueError("all pictures are of one group")
        self._recipes = [_summed(one) for one in right]

    @property
    def single(self) -> bool:
        """Whether each recipe has one seed, so that trained models are compared, not recipes."""
        return self.seeds[0] == 1

    @cached_property
    def excess(self) -> float:
        """R0, the mean over the recipes of R: 1 where seeds differ by coin flips alone; NaN where none differ, or with one."""
        found = [one.between / one.flips for one in self._recipes if one.flips > 0]
        return float(np.mean(found)) if found else math.nan

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of R0.

        They are sum(k - 1) from three seeds on. With two, where one recipe whose seeds differ 20 times as much as those of the
        others would have too narrow intervals, they are F. E. Satterthwaite's (Biometrics Bull. 2 (1946), 110-114): sum(k - 1)
        where all R are equal, and 1 where one recipe makes up all of R0.
        """
        most = float(sum(self.seeds) - len(self.seeds))
        found = [(one.between / one.flips, one.seeds) for one in self._recipes if one.flips > 0]
        squares = sum(excess**2 / (seeds - 1) for excess, seeds in found)
        if min(self.seeds) > 2 or squares == 0:
            return most
        return min(most, sum(excess for excess, _ in found) ** 2 / squares)

    def spread(self, at: int) -> float:
        """Returns the standard deviation of the accuracy of recipe ``at`` between its seeds; NaN with one."""
        one = self._recipes[at]
        return math.sqrt(one.between * one.seeds) if one.seeds > 1 else math.nan

    def accuracy(self, at: int) -> Interval:
        """Returns the accuracy of recipe ``at``, a share in [0, 1], with its interval."""
        one = self._recipes[at]
        if self.single and self._groups is None:
            return Interval(one.mean, *wilson(round(one.mean * self.pictures), self.pictures, self._quantile(math.inf)))
        z = self._quantile(math.inf)
        found = self._variance(one.by_picture, [one], z * z)  # as wide as Wilson's where all are right or wrong
        half = self._quantile(found.freedom) * math.sqrt(found.total)
        return Interval(one.mean, max(0.0, one.mean - half), min(1.0, one.mean + half))

    @cached_property
    def contrasts(self) -> dict[tuple[int, int], Contrast]:
        """The contrast (a, b) of each pair with a < b: the accuracy of a minus that of b."""
        raw = {(a, b): self._contrast(a, b) for a, b in combinations(range(len(self._recipes)), 2)}
        adjusted, largest = dict[tuple[int, int], float](), 0.0
        for rank, pair in enumerate(sorted(raw, key=lambda pair: raw[pair][3])):
            largest = max(largest, min(1.0, (len(raw) - rank) * raw[pair][3]))
            adjusted[pair] = largest
        alpha = 1.0 - self.level
        return {
            pair: Contrast(value, low, high, p, adjusted[pair], adjusted[pair] < alpha, self._smallest(*pair))
            for pair, (value, low, high, p) in raw.items()
        }

    def contrast(self, one: int, other: int) -> Contrast:
        """Returns the accuracy of recipe ``one`` minus that of ``other``, which is another."""
        if one < other:
            return self.contrasts[one, other]
        found = self.contrasts[other, one]
        value, low, high = (0.0 - end for end in (found.value, found.high, found.low))  # no minus in front of 0
        return replace(found, value=value, low=low, high=high)

    def ranks(self, at: int) -> tuple[int, int]:
        """Returns the best and the worst place that recipe ``at`` can have: 1 and the number that are better than it, and V
        without those that are worse."""
        others = [self.contrast(at, other) for other in range(len(self._recipes)) if other != at]
        better = sum(found.differs and found.value < 0 for found in others)
        worse = sum(found.differs and found.value > 0 for found in others)
        return 1 + better, len(self._recipes) - worse

    def seeds_for(self, one: int, other: int, difference: float) -> int | None:
        """Returns about how many seeds of each recipe would see a ``difference`` between two of them in 80 % of such studies;
        None where no number would, as the pictures are too few. Not for single runs."""
        first, second = self._recipes[one], self._recipes[other]
        found = self._between(first, second)
        now = min(first.seeds, second.seeds)
        apart = max(0.0, found.pictures - found.flips)
        for seeds in range(2, _MOST_SEEDS + 1):
            part, flips = found.seeds * now / seeds, found.flips * now / seeds
            pictures = apart + flips
            freedom = self.freedom * len(self._recipes) * (seeds - 1) / (sum(self.seeds) - len(self.seeds))
            if difference >= self._seen(_added(pictures, part, flips, seeds, self.units, freedom)):
                return seeds
        return None

    def _smallest(self, one: int, other: int) -> float | None:
        return None if self.single else self._seen(self._between(self._recipes[one], self._recipes[other]))

    def _seen(self, variance: _Variance) -> float:
        """Returns the difference that is called one in 80 % of the cases, if it is the last that Holm's method comes to."""
        pairs = math.comb(len(self._recipes), 2)
        beyond = self._quantile(variance.freedom, (1.0 - self.level) / pairs)
        return (beyond + _student(_POWER, variance.freedom)) * math.sqrt(variance.total)

    def _contrast(self, a: int, b: int) -> tuple[float, float, float, float]:
        """Returns the difference, the ends of its interval, and p."""
        one, other = self._recipes[a], self._recipes[b]
        difference = one.mean - other.mean
        if self.single and self._groups is None:
            return difference, *self._of_models(one.by_picture > 0.5, other.by_picture > 0.5)
        found = self._between(one, other)
        error = math.sqrt(found.total)
        half = self._quantile(found.freedom) * error
        p = min(1.0, 2.0 * _student_above(abs(difference) / error, found.freedom))
        return difference, max(-1.0, difference - half), min(1.0, difference + half), p

    def _of_models(self, one: Bools, other: Bools) -> tuple[float, float, float]:
        gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
        low, high = paired_interval(gained, lost, self.pictures, self._quantile(math.inf))
        return low, high, min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))  # McNemar's exact test

    def _between(self, one: _Recipe, other: _Recipe) -> _Variance:
        # Two pictures on which they differ, one in favour of each, are the least: where no answer differs, n still counts.
        return self._variance(one.by_picture - other.by_picture, [one, other], 2.0)

    def _variance(self, by_picture: Floats, recipes: Sequence[_Recipe], fewest: float) -> _Variance:
        """Returns the variance of the mean of ``by_picture``, which is of ``fewest`` pictures at least."""
        apart = by_picture - by_picture.mean()
        if self._groups is not None:
            sums = np.bincount(self._groups, apart)
            pictures = self.units / (self.units - 1) * float(np.square(sums).sum()) / self.pictures**2
        else:
            pictures = float(np.square(apart).sum()) / max(1, self.pictures - 1) / self.pictures
        pictures = max(pictures, fewest / self.pictures**2)
        if self.single:
            return _Variance(pictures, max(1, self.units - 1), pictures, 0.0, 0.0)
        part = sum(self._seed_part(one) for one in recipes)
        flips = sum(one.flips for one in recipes)
        return _added(pictures, part, flips, min(one.seeds for one in recipes), self.units, self.freedom)

    def _seed_part(self, one: _Recipe) -> float:
        return one.flips * max(one.between / one.flips, self.excess) if one.flips > 0 else one.between

    def _quantile(self, freedom: float, chance: float | None = None) -> float:
        """Returns the two-sided quantile of Student's t beyond which ``chance`` lies, 1 - level if it is None."""
        return _student(1.0 - (1.0 - self.level if chance is None else chance) / 2.0, freedom)


def _added(pictures: float, part: float, flips: float, seeds: int, units: int, freedom: float) -> _Variance:
    """Returns the variance of its parts, with Satterthwaite's degrees of freedom, which are ``freedom`` at least."""
    total = pictures + (part if seeds == 2 else max(0.0, part - flips))
    uncertain = pictures**2 / max(1, units - 1) + part**2 / freedom
    return _Variance(total, max(freedom, total**2 / uncertain), pictures, part, flips)


def _summed(right: Bools) -> _Recipe:
    seeds, pictures = right.shape
    by_picture = right.mean(0, dtype=np.float64)
    by_seed = right.mean(1, dtype=np.float64)
    if seeds == 1:
        return _Recipe(1, by_picture, float(by_seed[0]), 0.0, 0.0)
    # A mean of zeros and ones has the variance b (1 - b) k / (k - 1).
    flips = float((by_picture * (1.0 - by_picture)).mean()) * seeds / (seeds - 1) / (pictures * seeds)
    return _Recipe(seeds, by_picture, float(by_seed.mean()), float(by_seed.var(ddof=1)) / seeds, flips)


def _student(share: float, freedom: float) -> float:
    return float(stdtrit(freedom, share) if math.isfinite(freedom) else ndtri(share))


def _student_above(value: float, freedom: float) -> float:
    return float(stdtr(freedom, -value))


def best_of(scores: int) -> float:
    """Returns by how many standard deviations the best of ``scores`` equally good ones lies above their mean: the expectation of
    the largest of so many standard normal numbers. 0 for one."""
    if scores < 2:
        return 0.0
    x, step = np.linspace(0.0, 10.0, 10_001, retstep=True)
    above = 1.0 - ndtr(x) ** scores - ndtr(-x) ** scores  # the chance of a largest above x, less that of one below -x
    return float(step * (above.sum() - above[0] / 2))
