"""Compares the accuracies of two sets of weights on the same images.

The interval describes only the random choice of images, each of which counts for itself, also where a data set has groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.intervals import paired_interval
from stagewright.rundir.event_kinds import AgainstHead


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> AgainstHead | None:
    """Returns the difference between two sets of answers to N images, of which ``first`` and ``second`` (N,) say whether each
    is correct; None for no images.

    The interval is that of :func:`stagewright.measures.intervals.paired_interval`. ValueError if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"answers to {len(first)} and {len(second)} images cannot be paired")
    total = len(first)
    if not total:
        return None
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = paired_interval(gained, lost, total)
    return AgainstHead(
        points=100.0 * (gained - lost) / total,
        low=100.0 * low,
        high=100.0 * high,
        gained=gained,
        lost=lost,
        images=total,
    )
