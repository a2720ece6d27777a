"""Which pictures form the batch of a step: pure functions of (seed, pass, position), no state and no torch.

A stage's data is one endless stream of positions, ``pass, place = divmod(position, n)``; step s, counted within the
stage, takes the positions ``[s * B, (s + 1) * B)``. So no tail is dropped, no batch is short, and a batch may straddle
passes. Pass numbers run on over the whole run. A place is an index into the array of the stage's pictures, not a row
of the manifest; which picture stands at a place is the caller's affair.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagewright import rng
from stagewright.plan import subset_size

Places = NDArray[np.int64]


def subset(seed: int, labels: ArrayLike, fraction: float) -> Places:
    """The places that a data fraction keeps of pictures with integer ``labels`` (n,): ascending, int64.

    As many as :func:`stagewright.plan.subset_size` says; all of them for 1.0. Stratified: each class keeps its share to
    within about a picture, and never less than one picture. Nested: a smaller subset lies within every larger one of
    the same seed and labels, since both are the beginning of one ranking: the picture that a keyed hash puts at rank r
    of its class of m stands at (r + u) / m, where u in [0, 1) is drawn for the class; the first of each before all.
    ValueError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data fraction {fraction}; allowed: above 0, up to 1")
    classes = np.asarray(labels)
    n = len(classes)
    counts = np.bincount(classes)
    size = subset_size(n, int(np.count_nonzero(counts)), fraction)
    if size == n:
        return np.arange(n, dtype=np.int64)
    key = rng.key(seed, rng.Stream.SUBSET)
    hashes = rng.keys(key, np.arange(n, dtype=np.int64))
    rank = np.empty(n, dtype=np.int64)
    rank[np.lexsort((hashes, classes))] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    # With one u for all, classes of equal size would round up together, at the cost of the others.
    u = rng.uniform(rng.keys(key, 0, np.arange(len(counts), dtype=np.int64)), 1)[:, 0]
    standing = np.where(rank == 0, -1.0, (rank + u[classes]) / counts[classes])
    return np.sort(np.lexsort((hashes, standing))[:size]).astype(np.int64)


def batch_places(
    seed: int, n: int, first_pass: int, batch_size: int, step_in_stage: int
) -> tuple[Places, NDArray[np.int64]]:
    """``(places, passes)``, both int64 (batch_size,): which of ``n`` pictures a step sees, in which pass of the run.

    Every pass is a permutation of ``range(n)`` keyed by (seed, pass); ``first_pass`` is the run's pass that the stage
    begins with. Where batch_size > n, a batch spans several passes and shows pictures more than once. ValueError
    unless n and batch_size are positive and the others not negative.
    """
    if n < 1 or batch_size < 1 or first_pass < 0 or step_in_stage < 0:
        raise ValueError(
            f"n {n} and batch_size {batch_size} must be positive, "
            f"first_pass {first_pass} and step_in_stage {step_in_stage} not negative"
        )
    positions = np.arange(step_in_stage * batch_size, (step_in_stage + 1) * batch_size, dtype=np.int64)
    passes, within = np.divmod(positions, n)
    places = np.empty(batch_size, dtype=np.int64)
    # Positions rise, so each pass is one slice of the batch.
    starts = np.flatnonzero(np.diff(passes, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], batch_size], strict=True):
        order = _pass_order(seed, n, first_pass + int(passes[start]))
        places[start:stop] = order[within[start:stop]]
    return places, passes + first_pass


# A pass of 1.28 M pictures takes 0.2 s to sort and 10 MB to keep; a batch at a seam needs two, training and a second
# reader in the same process four.
@lru_cache(maxsize=4)
def _pass_order(seed: int, n: int, pass_index: int) -> Places:
    return rng.permutation(rng.key(seed, rng.Stream.ORDER, pass_index), n)
