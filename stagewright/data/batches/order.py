"""Which pictures form the batch of a step: pure functions of (seed, pass, position), no state and no torch.

A stage's data is one endless stream of positions, ``pass, place = divmod(position, n)``; step s, counted within the
stage, takes the positions ``[s * B, (s + 1) * B)``. So no tail is dropped, no batch is short, and a batch may straddle
passes. Pass numbers run on over the whole run. A place is an index into the array of the stage's pictures, not a row
of the manifest; which picture stands at a place is the caller's affair.

Naturally a pass is a permutation of the places. Where classes are sampled, a pass is as long but gives each class a fixed
number of slots (:func:`class_slots`), and a class fills its slots by a walk through its own places: one permutation of
them after another, running on from pass to pass. So nothing is drawn with replacement: however few slots a class has, its
pictures are all seen before one is seen again.
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
    """The places that a data fraction keeps of pictures with integer ``labels`` (n,): ascending, int64.

    As many as :func:`stagewright.plan.plan.subset_size` says; all of them for 1.0. Stratified: each class keeps its share to
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
    (places,), passes = _batch(lambda index: (_pass_order(seed, n, index),), n, first_pass, batch_size, step_in_stage)
    return places, passes


@dataclass(frozen=True, eq=False)
class SampledClasses:
    """The places of a stage by class, and how many slots of a pass each class has. Classes without pictures are left out."""

    by_class: Places
    """int64 (n,): the places of the first class, ascending, then those of the next."""
    sizes: NDArray[np.int64]
    """int64 (K,): places of each class."""
    slots: NDArray[np.int64]
    """int64 (K,): slots of each class in a pass; they add up to n."""


def class_shares(counts: ArrayLike, sampling: str) -> NDArray[np.float64]:
    """Share of the pictures seen that is each class's, float64 (K,), of classes with ``counts`` (K,) pictures.

    In proportion to the count (``natural``), its square root (``square_root``), or alike for all that have pictures
    (``balanced``); sums to 1. Powers 1, 1/2 and 0 of the count are those compared in arXiv:1910.09217, section 3.1.
    """
    given = np.asarray(counts, dtype=np.float64)
    weights = {"natural": given, "square_root": np.sqrt(given), "balanced": (given > 0).astype(np.float64)}[sampling]
    return weights / math.fsum(weights)


def class_slots(counts: ArrayLike, sampling: str, size: int) -> NDArray[np.int64]:
    """How many of ``size`` slots each class has, int64 (K,): its share by largest remainder, but at least 1 where it has
    pictures. ``size`` is not below the number of such classes."""
    given = np.asarray(counts, dtype=np.int64)
    shares = class_shares(given, sampling)
    rest = given > 0  # classes whose share is above one slot, found by giving that to the others
    if size < np.count_nonzero(rest):
        raise ValueError(f"{size} slots for {np.count_nonzero(rest)} classes; each needs one")
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
    """What passes over places with integer ``labels`` (n,) give each class; a pass has n slots."""
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
    """``(places, passes, views)``, int64 (batch_size,), as :func:`batch_places`, of a stage whose classes are sampled.

    ``views`` counts how often the pass has had the place before: together with the pass it tells all views of a picture
    apart. ValueError as there.
    """
    n = len(classes.by_class)
    found, passes = _batch(lambda index: _sampled_pass(seed, classes, index), n, first_pass, batch_size, step_in_stage)
    places, views = found
    return places, passes, views


def _batch(
    order: Callable[[int], tuple[Places, ...]], n: int, first_pass: int, batch_size: int, step_in_stage: int
) -> tuple[tuple[Places, ...], NDArray[np.int64]]:
    """A step's part of each array that ``order`` gives for a pass, int64 (n,), and the passes."""
    if n < 1 or batch_size < 1 or first_pass < 0 or step_in_stage < 0:
        raise ValueError(
            f"n {n} and batch_size {batch_size} must be positive, "
            f"first_pass {first_pass} and step_in_stage {step_in_stage} not negative"
        )
    positions = np.arange(step_in_stage * batch_size, (step_in_stage + 1) * batch_size, dtype=np.int64)
    passes, within = np.divmod(positions, n)
    # Positions rise, so each pass is one slice of the batch.
    starts = np.flatnonzero(np.diff(passes, prepend=-1))
    parts = [
        [column[within[start:stop]] for column in order(first_pass + int(passes[start]))]
        for start, stop in zip(starts, [*starts[1:], batch_size], strict=True)
    ]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True)), passes + first_pass


# A pass of 1.28 M pictures takes 0.2 s to sort and 10 MB to keep; a batch at a seam needs two, training and a second
# reader in the same process four.
@lru_cache(maxsize=4)
def _pass_order(seed: int, n: int, pass_index: int) -> Places:
    return rng.permutation(rng.key(seed, rng.Stream.ORDER, pass_index), n)


@lru_cache(maxsize=4)
def _sampled_pass(seed: int, classes: SampledClasses, pass_index: int) -> tuple[Places, NDArray[np.int64]]:
    """``(places, views)`` of a whole pass, int64 (n,).

    Class k takes the positions ``[pass * slots, (pass + 1) * slots)`` of its walk, whose cycle c is the permutation of its
    places keyed by (seed, k, c). All (class, cycle) pairs that the pass touches are sorted at once: at most n + 2 places of
    each class, so 3 n in all.
    """
    sizes, slots = classes.sizes, classes.slots
    begin = pass_index * slots
    first_cycle = begin // sizes
    num_cycles = (begin + slots - 1) // sizes + 1 - first_cycle
    owner = np.repeat(np.arange(len(sizes)), num_cycles)  # of each (class, cycle) pair
    cycle = first_cycle[owner] + _counting(num_cycles)
    pair_keys = rng.keys(rng.key(seed, rng.Stream.SAMPLE), owner, cycle)
    lengths = sizes[owner]
    within = _counting(lengths)
    hashes = rng.keys(np.repeat(pair_keys, lengths), within)
    # The pair's number in the upper bits, so that one sort does it; a tie of what remains of the hash is one in 10^8.
    bits = np.uint64(len(owner).bit_length())
    pair = np.repeat(np.arange(len(owner), dtype=np.uint64), lengths)
    order = np.argsort((pair << (np.uint64(64) - bits)) | (hashes >> bits), kind="stable")
    # Of each class's cycles the pass takes a stretch: from where the pass before ended, and as long as its slots.
    run_starts = np.cumsum(num_cycles * sizes) - num_cycles * sizes + begin - first_cycle * sizes
    taken = np.repeat(run_starts, slots) + _counting(slots)
    class_starts = np.cumsum(sizes) - sizes
    places = classes.by_class[np.repeat(class_starts, slots) + within[order[taken]]]
    views = _earlier(places, cycle[pair[taken].astype(np.int64)] - np.repeat(first_cycle, slots))
    shuffled = rng.permutation(rng.key(seed, rng.Stream.ORDER, pass_index), len(places))
    return places[shuffled], views[shuffled]


def _earlier(places: Places, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each place came before within the pass, from the number of its cycle, counted from the pass's first.

    Of the first cycle the pass may have the end alone; of every later one, what comes before a place's own cycle is whole.
    """
    in_first = np.zeros(len(places), dtype=np.bool_)
    in_first[places[cycles == 0]] = True
    return np.where(cycles > 0, cycles - 1 + in_first[places], 0)


def _counting(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... length - 1 for each of ``lengths``, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)
