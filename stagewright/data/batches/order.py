"""Selects the images of each step's batch, with pure functions of (seed, pass, position): no state and no torch.

The data of a stage is an endless stream of positions, with ``pass, place = divmod(position, n)``. Step s of the stage uses
the positions ``[s * B, (s + 1) * B)``. So no batch is dropped or shorter than B, and a batch may contain the end of one pass
and the start of the next. Passes are numbered over the whole run. A place is an index into the array of the stage's images,
not a row of the manifest; the caller maps places to rows.

With natural sampling, a pass is a permutation of the places. With sampling by class, a pass has the same length, but each
class has a fixed number of slots in it (:func:`class_slots`). A class fills its slots from its own sequence: one permutation
of its places after another, continued from pass to pass. So nothing is drawn with replacement: even if a class has few
slots, all its images are seen before any of them is seen again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagewright import rng
from stagewright.plan.plan import subset_size

Places = NDArray[np.int64]


def subset(seed: int, labels: ArrayLike, fraction: float) -> Places:
    """Selects the subset of a data ``fraction``, of images with integer ``labels`` (n,). Returns ascending places, int64.

    Its size is :func:`stagewright.plan.plan.subset_size`, and n for the fraction 1.0. The subset is stratified: each class
    keeps its share, to within about one image, and at least one image. Subsets are nested: a smaller subset is contained in
    every larger one of the same seed and labels, since both are the beginning of the same ranking. A keyed hash gives each
    image a rank r within its class of m images. Images are sorted by (r + u) / m, where u in [0, 1) is drawn per class, but
    the first image of each class comes before all others. Raises ValueError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the data fraction is {fraction}; allowed: above 0, up to 1")
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
    # If all classes had the same u, classes of equal size would all be rounded up together, at the expense of the others.
    u = rng.uniform(rng.keys(key, 0, np.arange(len(counts), dtype=np.int64)), 1)[:, 0]
    standing = np.where(rank == 0, -1.0, (rank + u[classes]) / counts[classes])
    return np.sort(np.lexsort((hashes, standing))[:size]).astype(np.int64)


def batch_places(
    seed: int, n: int, first_pass: int, batch_size: int, step_in_stage: int
) -> tuple[Places, NDArray[np.int64]]:
    """Returns ``(places, passes)`` of a step's batch, both int64 (batch_size,), for a stage with ``n`` images.

    Every pass is a permutation of ``range(n)``, keyed by (seed, pass). ``first_pass`` is the number of the stage's first pass
    within the run. If batch_size > n, a batch covers several passes and contains images more than once. Raises ValueError
    unless n and batch_size are positive, and the other numbers not negative.
    """
    (places,), passes = stream_batch(
        lambda index: (pass_places(seed, n, index),), n, first_pass, batch_size, step_in_stage
    )
    return places, passes


@dataclass(frozen=True, eq=False)
class SampledClasses:
    """The places of a stage, sorted by class, and the number of slots of each class in a pass. Omits classes without images."""

    by_class: Places
    """int64 (n,): the places of the first class, ascending, then those of the second class, and so on."""
    sizes: NDArray[np.int64]
    """int64 (K,): number of places of each class."""
    slots: NDArray[np.int64]
    """int64 (K,): number of slots of each class in a pass; their sum is n."""


def class_shares(counts: ArrayLike, sampling: str) -> NDArray[np.float64]:
    """Returns each class's share of the images in a pass, float64 (K,), for classes with ``counts`` (K,) images.

    Shares are proportional to the count (``natural``), proportional to its square root (``square_root``), or equal for all
    classes that have images (``balanced``). Their sum is 1. These are the powers 1, 1/2 and 0 of the count, which
    arXiv:1910.09217 compares in section 3.1.
    """
    given = np.asarray(counts, dtype=np.float64)
    weights = {"natural": given, "square_root": np.sqrt(given), "balanced": (given > 0).astype(np.float64)}[sampling]
    return weights / math.fsum(weights)


def class_slots(counts: ArrayLike, sampling: str, size: int) -> NDArray[np.int64]:
    """Divides ``size`` slots among classes with ``counts`` (K,) images; returns the number of slots of each class, int64 (K,).

    Each class gets its share (:func:`class_shares`), rounded by the largest-remainder method, but at least 1 if it has
    images. Raises ValueError if ``size`` is below the number of such classes.
    """
    given = np.asarray(counts, dtype=np.int64)
    shares = class_shares(given, sampling)
    rest = given > 0  # classes whose share is at least one slot; the loop gives one slot to each of the others
    if size < np.count_nonzero(rest):
        raise ValueError(f"{size} slots for {np.count_nonzero(rest)} classes; each class needs at least one")
    slots = rest.astype(np.int64)
    while rest.any():
        ideal = np.where(rest, shares * ((size - slots[~rest].sum()) / math.fsum(shares[rest])), 0.0)
        if not (rest & (ideal < 1)).any():
            break
        rest &= ideal >= 1
    else:
        return slots
    slots[rest] = np.floor(ideal[rest]).astype(np.int64)
    remainder = np.where(rest, ideal - slots, -1.0)
    slots[np.argsort(-remainder, kind="stable")[: size - slots.sum()]] += 1
    return slots


def sampled_classes(labels: ArrayLike, sampling: str) -> SampledClasses:
    """Sorts places with integer ``labels`` (n,) by class and divides the n slots of a pass among the classes."""
    classes = np.asarray(labels)
    counts = np.bincount(classes)
    slots = class_slots(counts, sampling, len(classes))
    return SampledClasses(
        by_class=np.argsort(classes, kind="stable").astype(np.int64),
        sizes=counts[counts > 0].astype(np.int64),
        slots=slots[counts > 0],
    )


def sampled_places(
    seed: int, classes: SampledClasses, first_pass: int, batch_size: int, step_in_stage: int
) -> tuple[Places, NDArray[np.int64], NDArray[np.int64]]:
    """Returns ``(places, passes, views)`` of a step's batch, each int64 (batch_size,), for a stage with sampling by class.

    ``views`` is the number of times that the pass has used the place before. The pair (pass, view) is different each time an
    image is used. See :func:`batch_places` for the arguments and errors.
    """
    n = len(classes.by_class)
    found, passes = stream_batch(
        lambda index: _sampled_pass(seed, classes, index), n, first_pass, batch_size, step_in_stage
    )
    places, views = found
    return places, passes, views


def stream_batch(
    order: Callable[[int], tuple[Places, ...]], n: int, first_pass: int, batch_size: int, step_in_stage: int
) -> tuple[tuple[Places, ...], NDArray[np.int64]]:
    """Returns a step's slice of each array that ``order(pass)`` returns, int64 (n,), and the pass of each element."""
    if n < 1 or batch_size < 1 or first_pass < 0 or step_in_stage < 0:
        raise ValueError(
            f"n is {n} and batch_size is {batch_size}, which must be positive; "
            f"first_pass is {first_pass} and step_in_stage is {step_in_stage}, which must not be negative"
        )
    positions = np.arange(step_in_stage * batch_size, (step_in_stage + 1) * batch_size, dtype=np.int64)
    passes, within = np.divmod(positions, n)
    # Positions ascend, so each pass is one slice of the batch.
    starts = np.flatnonzero(np.diff(passes, prepend=-1))
    parts = [
        [column[within[start:stop]] for column in order(first_pass + int(passes[start]))]
        for start, stop in zip(starts, [*starts[1:], batch_size], strict=True)
    ]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True)), passes + first_pass


# A pass of 1.28 million images takes 0.2 s to sort and needs 10 MB. A batch at the boundary of two passes needs both, so the
# training and a second reader in the same process need four.
@lru_cache(maxsize=4)
def pass_places(seed: int, n: int, pass_index: int) -> Places:
    """Returns a permutation of ``range(n)``, int64 (n,): the places of a pass in their order, with natural sampling."""
    return rng.permutation(rng.key(seed, rng.Stream.ORDER, pass_index), n)


@lru_cache(maxsize=4)
def _sampled_pass(seed: int, classes: SampledClasses, pass_index: int) -> tuple[Places, NDArray[np.int64]]:
    """Returns ``(places, views)`` of a whole pass, each int64 (n,).

    Class k uses the positions ``[pass * slots, (pass + 1) * slots)`` of its own sequence. Cycle c of the sequence is the
    permutation of the class's places that is keyed by (seed, k, c). All cycles that overlap with the pass are sorted in one
    call. A class needs fewer than slots + 2 * size places for this, so all classes together need fewer than 3 n.
    """
    sizes, slots = classes.sizes, classes.slots
    begin = pass_index * slots
    first_cycle = begin // sizes
    num_cycles = (begin + slots - 1) // sizes + 1 - first_cycle
    owner = np.repeat(np.arange(len(sizes)), num_cycles)  # the class of each (class, cycle) pair
    cycle = first_cycle[owner] + _counting(num_cycles)
    pair_keys = rng.keys(rng.key(seed, rng.Stream.SAMPLE), owner, cycle)
    lengths = sizes[owner]
    within = _counting(lengths)
    hashes = rng.keys(np.repeat(pair_keys, lengths), within)
    # The number of the pair is in the upper bits, so one sort is enough. The remaining bits of two hashes are rarely equal
    # (about 1 in 10^8).
    bits = np.uint64(len(owner).bit_length())
    pair = np.repeat(np.arange(len(owner), dtype=np.uint64), lengths)
    order = np.argsort((pair << (np.uint64(64) - bits)) | (hashes >> bits), kind="stable")
    # The pass uses a range of each class's cycles. It starts where the previous pass ended and is as long as the slots.
    run_starts = np.cumsum(num_cycles * sizes) - num_cycles * sizes + begin - first_cycle * sizes
    taken = np.repeat(run_starts, slots) + _counting(slots)
    class_starts = np.cumsum(sizes) - sizes
    places = classes.by_class[np.repeat(class_starts, slots) + within[order[taken]]]
    views = _earlier(places, cycle[pair[taken].astype(np.int64)] - np.repeat(first_cycle, slots))
    shuffled = rng.permutation(rng.key(seed, rng.Stream.ORDER, pass_index), len(places))
    return places[shuffled], views[shuffled]


def _earlier(places: Places, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how often each place was used before within the pass, given the cycle of each use, counted from 0.

    The pass may contain only the end of cycle 0. All cycles between cycle 0 and a place's own cycle are complete, so each of
    them used the place once.
    """
    in_first = np.zeros(len(places), dtype=np.bool_)
    in_first[places[cycles == 0]] = True
    return np.where(cycles > 0, cycles - 1 + in_first[places], 0)


def _counting(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns 0, 1, ..., length - 1 for each of ``lengths``, concatenated."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)
