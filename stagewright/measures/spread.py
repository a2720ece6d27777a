"""How much a measure varies with the choice of images: its linear form, summed by unit.

A measure is written as a sum over strata (classes, or the positives and negatives of a curve) of weighted ratios. To first order
it differs from its true value by a sum of residuals, one for each image, and its variance is the sum of the squares of these
residuals within each unit (image or group), as units are drawn independently. The residuals of a unit that makes up a share h of
a stratum are smaller than the errors by sqrt(1 - h), since the stratum's own ratio was subtracted; they are divided by that (the
correction HC2, and for groups its cluster form: R. M. Bell and D. F. McCaffrey, Survey Methodology 28 (2002), 169-181).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.intervals import Estimate, share_estimate

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_WHOLE = 1.0 - 1e-9
_FEWEST_FREEDOM = 3.0
"""Degrees of freedom that are taken for granted where every stratum has more units: with 15 positives and an area of 0.99, the
squares of one or two of them make up the variance, and t with 1 degree of freedom (12.7) would say nothing."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Residuals summed within each pair of stratum and unit that has images; all arrays have shape (K,)."""

    strata: Ints
    units: Ints
    sums: Floats
    """Corrected residuals; 0 for a unit that is all of its stratum."""
    shares: Floats
    """Share of the unit in the stratum, in (0, 1]."""

    @classmethod
    def of(cls, strata: Ints, units: Ints, residuals: Floats, shares: Floats) -> Cells:
        """Sums up E entries (E,): the stratum, the unit, the residual and the share in the stratum of each."""
        width = int(units.max(initial=0)) + 1
        keys, where = np.unique(strata * width + units, return_inverse=True)
        share = np.bincount(where, shares, len(keys)).astype(np.float64)
        left = np.maximum(1.0 - share, 1.0 - _WHOLE)
        sums = np.where(share < _WHOLE, np.bincount(where, residuals, len(keys)) / np.sqrt(left), 0.0)
        return cls(keys // width, keys % width, sums, share)

    def variances(self, num_strata: int) -> tuple[Floats, Floats, Ints]:
        """Returns for each stratum its variance, NaN where one unit is all of it, the size of :func:`share_estimate`, and the
        number of its units; each (``num_strata``,)."""
        counts = np.bincount(self.strata, minlength=num_strata)
        squares = np.bincount(self.strata, np.square(self.sums), num_strata)
        alike = np.bincount(self.strata, np.square(self.shares), num_strata)
        return np.where(counts > 1, squares, np.nan), 1.0 / np.maximum(alike, 1e-300), counts


class Spread:
    """The variance of one measure in [0, 1], collected stratum by stratum."""

    def __init__(self, num_units: int) -> None:
        self._sums = np.zeros(num_units)
        self._alone = 0.0
        self._alike = 0.0
        self._fewest = _FEWEST_FREEDOM

    def add(self, cells: Cells, weights: Floats) -> None:
        """Adds strata that enter the measure with ``weights`` (S,), which the residuals contain already."""
        self._sums += np.bincount(cells.units, cells.sums, len(self._sums))
        counts = np.bincount(cells.strata)
        self._fewest = min(self._fewest, float(counts[counts > 0].min()) - 1.0)
        self._alone += float(np.square(weights[cells.strata[cells.shares >= _WHOLE]]).sum())
        self._alike += float(np.square(weights[cells.strata] * cells.shares).sum())

    def estimate(self, value: float, *, centre: float | None = None) -> Estimate:
        """Returns the measure ``value`` with its 95 % interval, which is that of ``centre`` if the value is known to be biased.

        A stratum that is one unit tells nothing of its own spread; it counts as one answer that is right with the probability
        ``value``.
        """
        at = value if centre is None else min(1.0, max(0.0, centre))
        variance = float(np.square(self._sums).sum()) + self._alone * at * (1.0 - at)
        size = 1.0 / self._alike if self._alike else 0.0
        found = share_estimate(at, variance, size, max(freedom_of(self._sums), self._fewest))
        assert found.low is not None and found.high is not None
        return Estimate(value, min(value, found.low), max(value, found.high))


def freedom_of(sums: Floats) -> float:
    """Returns the degrees of freedom of the sum of squares of ``sums``, one for each unit: fewer where some are far larger than
    others, as those few decide how large it turns out (F. E. Satterthwaite, Biometrics Bull. 2 (1946), 110-114)."""
    squares = np.square(sums)
    fourth = float(np.square(squares).sum())
    return min(len(sums) - 1.0, float(squares.sum()) ** 2 / fourth) if fourth else len(sums) - 1.0
