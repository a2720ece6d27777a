"""Confidence intervals of proportions, and of measures that are linear in the images to first order.

They describe only the random choice of images, or of groups where a data set has them, not the variation between seeds, splits
or places.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

Z = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""


class Estimate(NamedTuple):
    """A measure with its 95 % interval; all three are None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the Wilson score interval of ``correct`` out of ``total``, as fractions (low, high) in [0, 1].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
    Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001), 101-133,
    recommend it instead of the normal approximation, also for small counts and for shares near 0 and 1. ``z`` is the normal
    quantile, 1.96 for 95 %. 0 of 0 gives (0, 1). ValueError unless 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is not a share: correct must be from 0 to total")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    centre = share + z * z / (2 * total)
    scale = 1 + z * z / total
    # The exact lower end of 0 of n is 0, and the upper end of n of n is 1; rounding would give slightly different numbers.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == total else (centre + spread) / scale
    return low, high


def paired_interval(gained: int, lost: int, total: int, z: float = Z) -> tuple[float, float]:
    """Returns the interval of a difference of two shares on the same ``total`` images, in [-1, 1]: ``gained`` are right by the
    first alone, ``lost`` by the second alone.

    It is the adjusted Wald interval of D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", J. Educ. Behav. Stat. 37 (2012), 479-488, which M. W. Fagerland, S. Lydersen and
    P. Laake, Stat. Med. 33 (2014), 2850-2875, recommend also for few images: one image is added to the gained and one to the
    lost, so it has a length where no answer differs. ``z`` is the normal quantile. ValueError without images.
    """
    if total < 1 or min(gained, lost) < 0 or gained + lost > total:
        raise ValueError(f"{gained} gained and {lost} lost of {total} images")
    more, less = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    spread = z * math.sqrt((more + less - (more - less) ** 2) / (total + 2))
    return max(-1.0, more - less - spread), min(1.0, more - less + spread)


def share_estimate(value: float, variance: float, size: float, freedom: float) -> Estimate:
    """Returns a measure in [0, 1] with its 95 % interval, from the ``variance`` of its linear form and the degrees of freedom
    that this variance rests on.

    It is the Wilson interval of as many independent answers as would give that variance (in surveys the effective sample size:
    N. Dean and M. Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys", J. Surv. Stat.
    Methodol. 3 (2015), 484-503), with Student's t in place of the normal quantile. ``size`` takes that number's place where
    nothing varies: at 0, at 1, and where the variance is 0 or not known. (0, 1) for less than one degree of freedom.
    """
    spread = value * (1.0 - value)
    known = math.isfinite(variance) and variance > 0.0 and spread > 0.0
    count = spread / variance if known else size
    if not count > 0.0 or freedom < 1.0:
        return Estimate(value, 0.0, 1.0)
    z = student(freedom)
    scale = 1.0 + z * z / count
    centre = (value + z * z / (2.0 * count)) / scale
    half = z * math.sqrt(spread / count + z * z / (4.0 * count * count)) / scale
    return Estimate(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def mean_estimate(value: float, variance: float, freedom: float) -> Estimate:
    """Returns a positive mean with its 95 % interval: Student's t on the scale of the logarithm, as losses are skewed."""
    if freedom < 1.0 or not value > 0.0 or not math.isfinite(variance):
        return Estimate(value, None, None)
    half = student(freedom) * math.sqrt(variance) / value
    return Estimate(value, value * math.exp(-half), value * math.exp(half))


def student(freedom: float) -> float:
    """Returns the two-sided 95 % quantile of Student's t, with ``freedom`` rounded down to at least 1."""
    return _student(max(1, int(freedom)))


@cache
def _student(freedom: int) -> float:
    if freedom > 10_000:
        return Z
    from scipy.stats import t  # takes half a second, which the import of this module must not

    return float(t.ppf(0.975, freedom))
