"""Folds: pictures dealt into K parts of like size and like classes, each of which validates once.

Pure functions of (seed, content of the pictures, labels, groups), as in :mod:`stagewright.data.partition`: the order of the
rows never matters. Owns three promises: identical pictures share a fold, a group never straddles two, and whatever
fold validates, every class has something to train on.
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
"""Moves tried to give each class a second fold; a few are enough wherever it can be done at all."""

Folds = NDArray[np.int16]


def deal(
    content: Keys, labels: Labels, num_folds: int, seed: int, classes: Sequence[str], groups: Keys | None = None
) -> tuple[Folds, tuple[str, ...]]:
    """The fold 0 .. ``num_folds`` - 1 of each picture, (N,) int16, and notes.

    ``content`` (N,) holds 64 bits of each picture's hash, ``groups`` (N,) hashes of the groups' names, ``classes`` the
    names that ``labels`` (N,) count through. Where all pictures differ and there are no groups, the sizes of the folds
    differ by one picture at most, and so do those of each class. With groups, sizes and class shares are as even as a
    local search finds (see :func:`~stagewright.data.partition.grouped`); groups that share an identical picture are kept
    together too, unless that would join more than half of the pictures, which is noted.

    DataError if ``num_folds`` is not 2 to 100, or if there are too few different pictures or groups, in all or in a class.
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


def _units_of_groups(content: Keys, groups: Keys) -> tuple[Keys, Index, tuple[str, ...]]:
    """Keys of what stays together, the unit of each picture, and notes."""
    unit_keys, unit_of = np.unique(groups, return_inverse=True)
    sets, crossing = join_by_content(unit_of, content)
    if np.bincount(sets[unit_of]).max() <= max(len(content) / 2, np.bincount(unit_of).max()):
        first = np.unique(sets, return_index=True)[1]  # of each set, the group with the lowest key
        return unit_keys[first], sets[unit_of], ()
    note = (
        f"{crossing:,} pictures have identical copies in other groups and may stand in several folds: keeping such "
        "groups together would leave too little to deal"
    )
    return unit_keys, unit_of, (note,)


def _check_enough(pairs: Index, num_folds: int, classes: Sequence[str], kind: str) -> None:
    """DataError if there are fewer units than folds, or a class has but one; ``pairs`` (P, 2) are (unit, class)."""
    num_units = int(pairs[:, 0].max()) + 1
    if num_units < num_folds:
        raise DataError(
            f"{counted(num_units, kind)} cannot give {num_folds} folds",
            f"at least one {kind} for each fold; {_STAYS[kind]}",
            (f"ask for {num_units} folds or fewer" if num_units > 1 else "add more of them") + _WITHOUT[kind],
        )
    units = np.bincount(pairs[:, 1])
    single = [f"{classes[int(label)]!r}" for label in np.flatnonzero(units == 1)]
    if single:
        raise DataError(
            f"{counted(len(single), 'class')} with one {kind} only, which validates in one of the folds and leaves "
            f"nothing to train on: {some(single)}",
            f"at least two of a {kind} in every class; {_STAYS[kind]}",
            "add pictures to them or leave these classes out" + _WITHOUT[kind],
        )


_STAYS = {"different picture": "identical ones stay together", "group": "groups never straddle a split"}
_WITHOUT = {"different picture": "", "group": ", or give up the groups (--set data.group=none)"}


def _dealt(unit_of: Index, labels: Labels, draws: Keys, num_folds: int) -> Folds:
    """The fold of each unit of identical pictures, class by class: first the units of several, then single pictures."""
    sizes = np.bincount(unit_of)
    unit_labels = np.full(len(sizes), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(unit_labels, unit_of, labels)  # identical pictures in several classes count for the first
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
    """How many of ``number`` pictures each fold gets so that ``here``, its pictures of a class, become level.

    What does not go round goes to the folds with the fewest pictures of all classes; ``totals`` are those before.
    """
    order = np.lexsort((totals + here, here))
    heights = here[order]
    needed = np.arange(len(heights)) * heights - (np.cumsum(heights) - heights)  # to raise all lower ones to this one
    filled = order[: np.searchsorted(needed, number, side="right")]
    height, left_over = divmod(number + int(here[filled].sum()), len(filled))
    more = np.zeros_like(here)
    more[filled] = height - here[filled]
    more[filled[np.argsort((totals + here + more)[filled], kind="stable")[:left_over]]] += 1
    return more


def _every_class_trains(folds: Folds, pairs: Index, sizes: Index, draws: Keys, num_folds: int, kind: str) -> Folds:
    """``folds`` of the units after moving some, where needed, so that each class stands in two and no fold is empty.

    A search by least conflicts: the move that leaves the fewest classes in a single fold, of these the one that keeps
    the sizes most even. DataError if that finds no way (of 3,539 small cases that have one, it missed 1).
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
        f"no way was found to deal the {kind}s into {num_folds} folds such that every class can be trained on without each",
        "classes that stand in several groups" if kind == "group" else "classes of several different pictures",
        "ask for more folds, or leave out classes of two or three " + f"{kind}s" + _WITHOUT[kind],
    )


def _thin(pairs: Index, num_folds: int, classes: Sequence[str], kind: str) -> tuple[str, ...]:
    """A note on classes that cannot stand in every fold."""
    units = np.bincount(pairs[:, 1])
    thin = [f"{classes[int(label)]} ({units[label]})" for label in np.flatnonzero((units > 0) & (units < num_folds))]
    if not thin:
        return ()
    return (f"{counted(len(thin), 'class')} with fewer {kind}s than folds, so that some folds have none: {some(thin)}",)
