"""K-fold cross-validation: assigns each image to one of K folds of similar size and class shares.

Pure functions of (seed, content of the images, labels, groups), as in :mod:`stagewright.data.partition`: the order of the
rows does not matter. This module guarantees that identical images are in the same fold, that a group is never divided
between folds, and that every class has training images, whichever fold validates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stagewright.data.partition import Index, Keys, Labels, join_by_content, spread
from stagewright.errors import DataError
from stagewright.rng import Stream, keys
from stagewright.text import counted, some

MOST_FOLDS = 100

_REPAIRS = 200
"""Maximum number of moves that :func:`_every_class_trains` tries; a few are enough if there is a solution."""

Folds = NDArray[np.int16]


def deal(
    content: Keys, labels: Labels, num_folds: int, seed: int, classes: Sequence[str], groups: Keys | None = None
) -> tuple[Folds, tuple[str, ...]]:
    """Returns the fold of each image, (N,) int16 from 0 to ``num_folds`` - 1, and notes for the user.

    ``content`` (N,) holds 64 bits of the hash of each image, ``groups`` (N,) holds hashes of the group names, and
    ``labels`` (N,) are indices into ``classes``.

    If all images are different and there are no groups, the fold sizes differ by at most one image, in total and within
    each class. With groups, a local search makes sizes and class shares as even as it can (see
    :func:`~stagewright.data.partition.grouped`). Groups that share an identical image are put into the same fold, unless
    this would join more than half of the images; then a note reports it.

    Raises DataError if ``num_folds`` is not in 2 to 100, or if there are too few different images or groups, in total or
    in a class.
    """
    if not 2 <= num_folds <= MOST_FOLDS:
        raise DataError(
            f"{counted(num_folds, 'fold')}",
            f"2 to {MOST_FOLDS} folds",
            "5 and 10 are usual; each one is a training run",
        )
    notes: tuple[str, ...] = ()
    if groups is None:
        kind, (unit_keys, unit_of) = "different picture", np.unique(content, return_inverse=True)
    else:
        kind = "group"
        unit_keys, unit_of, notes = _units_of_groups(content, groups)
    unit_of = unit_of.astype(np.int64)
    pairs = np.unique(np.stack([unit_of, labels.astype(np.int64)], axis=1), axis=0)
    _check_enough(pairs, num_folds, classes, kind)
    draws = keys(seed, Stream.SPLIT, num_folds, unit_keys)
    if groups is None:
        folds = _dealt(unit_of, labels, draws, num_folds)
    else:
        folds = spread(unit_of, labels, draws, np.full(num_folds, 1 / num_folds), seed).astype(np.int16)
    folds = _every_class_trains(folds, pairs, np.bincount(unit_of), draws, num_folds, kind)
    return folds[unit_of], (*notes, *_thin(pairs, num_folds, classes, kind))


def inner_folds(
    content: Keys, labels: Labels, most: int, seed: int, classes: Sequence[str], groups: Keys | None = None
) -> Folds | None:
    """Returns the fold of each image, (N,) int16, to compare settings within training images; None if not even two are possible.

    There are ``most`` folds, fewer where there are too few different images or groups. Images of a class with a single one
    (with a single group) have fold -1 and are never left out, unless their group is: then they are in its fold. Arguments as in
    :func:`deal`.
    """
    units = content if groups is None else groups
    pairs = np.unique(np.stack([np.unique(units, return_inverse=True)[1], labels.astype(np.int64)], axis=1), axis=0)
    dealt = np.bincount(pairs[:, 1], minlength=len(classes))[labels] >= 2
    for count in range(most, 1, -1) if dealt.any() else ():
        try:
            found, _ = deal(
                content[dealt], labels[dealt], count, seed, classes, None if groups is None else groups[dealt]
            )
        except DataError:
            continue
        folds = np.full(len(labels), -1, np.int16)
        folds[dealt] = found
        known, first = np.unique(units[dealt], return_index=True)
        at = np.searchsorted(known, units[~dealt]).clip(max=len(known) - 1)
        folds[~dealt] = np.where(known[at] == units[~dealt], found[first[at]], -1)
        return folds
    return None


def _units_of_groups(content: Keys, groups: Keys) -> tuple[Keys, Index, tuple[str, ...]]:
    """Returns the key of each unit, the unit of each image, and notes. A unit is a set of images that share a fold."""
    unit_keys, unit_of = np.unique(groups, return_inverse=True)
    sets, crossing = join_by_content(unit_of, content)
    if np.bincount(sets[unit_of]).max() <= max(len(content) / 2, np.bincount(unit_of).max()):
        first = np.unique(sets, return_index=True)[1]  # the group with the lowest key represents its set
        return unit_keys[first], sets[unit_of], ()
    note = (
        f"{crossing:,} pictures have identical copies in other groups, and the copies may be in different folds: "
        "putting such groups into the same fold would join more than half of all pictures"
    )
    return unit_keys, unit_of, (note,)


def _check_enough(pairs: Index, num_folds: int, classes: Sequence[str], kind: str) -> None:
    """Raises DataError if there are fewer units than folds, or only one unit in a class.

    ``pairs`` (P, 2) are the different pairs of (unit, class).
    """
    num_units = int(pairs[:, 0].max()) + 1
    if num_units < num_folds:
        raise DataError(
            f"{counted(num_units, kind)} cannot give {num_folds} folds",
            f"at least one {kind} for each fold; {_STAYS[kind]}",
            (f"request {num_units} folds or fewer" if num_units > 1 else f"add more {kind}s") + _WITHOUT[kind],
        )
    units = np.bincount(pairs[:, 1])
    single = [f"{classes[int(label)]!r}" for label in np.flatnonzero(units == 1)]
    if single:
        raise DataError(
            f"{counted(len(single), 'class')} with only one {kind}, so that there is nothing to train on when its fold "
            f"validates: {some(single)}",
            f"at least two {kind}s in every class; {_STAYS[kind]}",
            "add pictures to these classes or remove the classes" + _WITHOUT[kind],
        )


_STAYS = {
    "different picture": "identical pictures are always in the same fold",
    "group": "a group is never divided between folds",
}
_WITHOUT = {"different picture": "", "group": ", or do not use groups (--set data.group=none)"}


def _dealt(unit_of: Index, labels: Labels, draws: Keys, num_folds: int) -> Folds:
    """Returns the fold of each unit of identical images.

    Goes class by class, and assigns units of several images before single images.
    """
    sizes = np.bincount(unit_of)
    unit_labels = np.full(len(sizes), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(unit_labels, unit_of, labels)  # identical images with several classes count for the first class
    order = np.lexsort((draws, -sizes, unit_labels))
    ends = np.cumsum(np.bincount(unit_labels))
    folds = np.zeros(len(sizes), np.int16)
    totals = np.zeros(num_folds, np.int64)
    for units in np.split(order, ends[:-1]):
        here = np.zeros(num_folds, np.int64)
        several = units[sizes[units] > 1]
        for unit in several:
            fold = np.lexsort((totals + here, here))[0]
            folds[unit] = fold
            here[fold] += sizes[unit]
        single = units[len(several) :]
        more = _level(here, totals, len(single))
        folds[single] = np.repeat(np.arange(num_folds), more)
        totals += here + more
    return folds


def _level(here: Index, totals: Index, number: int) -> Index:
    """Returns how many of ``number`` images each fold receives so that its counts of one class become equal.

    ``here`` (K,) are the images of the class that each fold has before, ``totals`` (K,) those of all earlier classes.
    The remainder goes to the folds with the fewest images in total.
    """
    order = np.lexsort((totals + here, here))
    heights = here[order]
    # Images needed to raise all lower folds to the height of this one.
    needed = np.arange(len(heights)) * heights - (np.cumsum(heights) - heights)
    filled = order[: np.searchsorted(needed, number, side="right")]
    height, left_over = divmod(number + int(here[filled].sum()), len(filled))
    more = np.zeros_like(here)
    more[filled] = height - here[filled]
    more[filled[np.argsort((totals + here + more)[filled], kind="stable")[:left_over]]] += 1
    return more


def _every_class_trains(folds: Folds, pairs: Index, sizes: Index, draws: Keys, num_folds: int, kind: str) -> Folds:
    """Returns ``folds`` after moving units, if needed, so that each class is in at least two folds and no fold is empty.

    Min-conflicts search: each step makes the move that leaves the fewest classes in a single fold; of equally good moves,
    the one that keeps the fold sizes most even. Raises DataError if the search finds no solution (it missed 1 of 3,539
    small cases that have a solution).
    """
    folds = folds.copy()
    for _ in range(_REPAIRS):
        table = np.zeros((int(pairs[:, 1].max()) + 1, num_folds), np.int64)  # units of each class in each fold
        np.add.at(table, (pairs[:, 1], folds[pairs[:, 0]]), 1)
        stuck = np.flatnonzero((table > 0).sum(1) == 1)
        pictures_in = np.bincount(folds, sizes, num_folds)
        if not len(stuck) and pictures_in.all():
            return folds
        own = np.unique(pairs[np.isin(pairs[:, 1], stuck), 0]) if len(stuck) else np.arange(len(folds))
        best: tuple[tuple[float, ...], int, int] | None = None
        for unit in own[np.argsort(draws[own])].tolist():
            of_unit, old = pairs[pairs[:, 0] == unit, 1], int(folds[unit])
            for new in np.flatnonzero(np.arange(num_folds) != old).tolist():
                after = table[of_unit]
                after[:, old] -= 1
                after[:, new] += 1
                conflicts = ((after > 0).sum(1) == 1).sum() - np.isin(of_unit, stuck).sum()
                growth = float(sizes[unit]) * (pictures_in[new] - pictures_in[old] + sizes[unit])
                if best is None or (conflicts, growth) < best[0]:
                    best = (conflicts, growth), unit, new
        if best is None:
            break
        folds[best[1]] = best[2]
    raise DataError(
        f"found no assignment of the {kind}s to {num_folds} folds in which every class keeps pictures to train on, "
        "whichever fold validates",
        "classes with pictures in several groups" if kind == "group" else "classes with several different pictures",
        f"request more folds, or remove classes of two or three {kind}s" + _WITHOUT[kind],
    )


def _thin(pairs: Index, num_folds: int, classes: Sequence[str], kind: str) -> tuple[str, ...]:
    """Returns a note that lists the classes with fewer units than folds, or no note if there are none."""
    units = np.bincount(pairs[:, 1])
    thin = [f"{classes[int(label)]} ({units[label]})" for label in np.flatnonzero((units > 0) & (units < num_folds))]
    if not thin:
        return ()
    return (
        f"{counted(len(thin), 'class')} with fewer {kind}s than folds, so that some folds have no pictures of the class: "
        f"{some(thin)}",
    )
