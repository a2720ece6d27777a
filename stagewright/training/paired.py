"""Compares the accuracies of two sets of weights on the same images.

The interval describes only the random choice of images, each of which counts for itself, also where a data set has groups.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stagewright.rundir.event_kinds import AgainstHead

_Z = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> AgainstHead | None:
    """Returns the difference between two sets of answers to N images, of which ``first`` and ``second`` (N,) say whether each
    is correct; None for no images.

    The interval is the adjusted Wald interval of D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37 (2012), 479-488, which M. W. Fagerland,
    S. Lydersen and P. Laake, Stat. Med. 33 (2014), 2850-2875, recommend also for small N: one image is added to the gained and
    one to the lost, so it has a length where no answer differs. ValueError if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"answers to {len(first)} and {len(second)} images cannot be paired")
    total = len(first)
    if not total:
        return None
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    more, less = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    spread = _Z * math.sqrt((more + less - (more - less) ** 2) / (total + 2))
    low, high = more - less - spread, more - less + spread
    return AgainstHead(
        points=100.0 * (gained - lost) / total,
        low=100.0 * max(-1.0, low),
        high=100.0 * min(1.0, high),
        gained=gained,
        lost=lost,
        images=total,
    )
