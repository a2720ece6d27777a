"""Confidence intervals of proportions.

They describe only the random choice of images, not the variation between seeds, splits or places.
"""

from __future__ import annotations

import math


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
