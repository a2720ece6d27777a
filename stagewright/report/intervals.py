"""How sure a share is: confidence intervals of proportions.

They speak of the sampling of pictures only: not of other seeds, other splits or other places.
"""

from __future__ import annotations

import math


def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of ``correct`` out of ``total``, as fractions (low, high) within [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212;
    recommended over the normal approximation, also for small counts and shares near 0 and 1, by Brown, Cai and
    DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001), 101-133. ``z`` is the
    normal quantile, 1.96 for 95 %. Nothing counted (0 of 0) says nothing: (0, 1). ValueError on impossible counts.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is not a share: correct must be within 0 and total")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    centre = share + z * z / (2 * total)
    scale = 1 + z * z / total
    # The exact ends of 0 of n and n of n are 0 and 1; rounding would leave them a hair inside or outside.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == total else (centre + spread) / scale
    return low, high
