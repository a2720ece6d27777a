"""How the pictures of two manifests differ: which were added, removed, relabelled, moved to another part or renamed.

A picture is known by its content. Two files with the same content are two pictures, so each picture is paired with at most one
of the other manifest. A million of them take seconds: whole columns are compared, never row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.manifest import SPLITS, Manifest

_EXAMPLES = 3
"""Most pictures of a kind of change that are named."""
_Codes = NDArray[np.int64]
_LARGEST = 2**62
"""Codes are combined without numbering them again as long as none can be larger."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture with its path in each of two manifests; None where it does not occur."""

    one: str | None
    other: str | None


@dataclass(frozen=True, slots=True)
class Turn:
    """How many pictures went from one class, or part, to another."""

    before: str
    now: str
    count: int


@dataclass(frozen=True, slots=True)
class Change:
    """The pictures that one kind of change has befallen."""

    count: int = 0
    examples: tuple[Example, ...] = ()
    """The first ones, at most three, by path in the first manifest; none from a test part that is closed."""
    turns: tuple[Turn, ...] = ()
    """From which class, or part, to which, the most frequent first. Classes leave out test parts that are closed."""


@dataclass(frozen=True, slots=True)
class PictureChanges:
    """What has become of the pictures of a manifest in another one. A picture may be both relabelled and moved."""

    shared: int
    """Pictures with the same content."""
    same: int
    """Of these, those with the same class and part too; their paths may differ."""
    added: Change
    """Content that only the other manifest has, or has more often."""
    removed: Change
    relabelled: Change
    """Same content, another class. Classes are known by their names."""
    moved: Change
    """Same content, another part (training, validation, test)."""
    renamed: Change
    """Same content, class and part, another path."""
    replaced: Change
    """Other content at the same path, as after an edit; these count as added and removed too."""
    regrouped: int
    """Pictures with the same content that belong to a group of another name."""
    order: bool
    """Whether the rows have the same content, class and part in the same order, which decides what each update is made of."""

    @property
    def by_path_alone(self) -> bool:
        """Whether nothing but paths differs, and in a way that changes no update."""
        return self.order and not self.regrouped


def picture_changes(one: Manifest, other: Manifest, closed: tuple[bool, bool] = (False, False)) -> PictureChanges:
    """Returns what has become of the pictures of ``one`` in ``other``.

    ``closed`` says of each whether its test part is closed: no picture of it is named, and none of its classes. ValueError for
    a hash that is not 16 or more hexadecimal digits.
    """
    both = (one, other)
    size = len(one)
    content = _codes(np.concatenate([manifest.content for manifest in both]))
    classes = sorted({*one.classes, *other.classes})
    labels = np.concatenate([_common(manifest, classes) for manifest in both])
    parts = np.concatenate([manifest.splits for manifest in both]).astype(np.int64)
    paths = _text_codes([manifest.paths for manifest in both])
    hidden = np.concatenate(
        [(manifest.splits == SPLITS.index("test")) & shut for manifest, shut in zip(both, closed, strict=True)]
    )
    exact = [(content, labels, parts, paths), (content, labels, parts)]
    mine, theirs = _paired(size, [*exact, (content, labels), (content, parts), (content,)])
    first, second = mine, theirs + size  # rows of the columns above, in which the other manifest follows the first
    relabelled, moved, renamed = (column[first] != column[second] for column in (labels, parts, paths))
    alone = np.ones(len(content), np.bool_)
    alone[first] = alone[second] = False
    left, come = np.flatnonzero(alone[:size]), np.flatnonzero(alone[size:]) + size
    # Of those without a counterpart, a path that both have is a file with other content.
    _, old, new = np.intersect1d(paths[left], paths[come], assume_unique=False, return_indices=True)
    named = _Naming(one, other, hidden)
    grouped = one.groups is not None or other.groups is not None
    groups = _text_codes([_groups(manifest) for manifest in both]) if grouped else np.zeros(len(content), np.int64)
    public = ~(hidden[first] | hidden[second])
    unchanged = ~relabelled & ~moved
    return PictureChanges(
        shared=len(first),
        same=int(np.count_nonzero(unchanged)),
        added=named.change(None, come),
        removed=named.change(left, None),
        relabelled=named.change(
            *(first[relabelled], second[relabelled]),
            _turns(labels[first[relabelled & public]], labels[second[relabelled & public]], classes),
        ),
        moved=named.change(first[moved], second[moved], _turns(parts[first[moved]], parts[second[moved]], SPLITS)),
        renamed=named.change(first[unchanged & renamed], second[unchanged & renamed]),
        replaced=named.change(left[old], come[new]),
        regrouped=int(np.count_nonzero(groups[first] != groups[second])),
        order=size == len(other)
        and all(np.array_equal(column[:size], column[size:]) for column in (content, labels, parts)),
    )


@dataclass(frozen=True)
class _Naming:
    """Names pictures by their rows; those of ``other`` follow those of ``one``, and those in ``hidden`` have no name."""

    one: Manifest
    other: Manifest
    hidden: NDArray[np.bool_]

    def change(self, first: _Codes | None, second: _Codes | None, turns: tuple[Turn, ...] = ()) -> Change:
        """Returns the change of the pictures at the rows ``first`` and ``second`` (N,); None where that manifest has none."""
        rows = [side for side in (first, second) if side is not None]
        shown = np.flatnonzero(~np.any([self.hidden[side] for side in rows], axis=0))[:_EXAMPLES]
        examples = tuple(Example(self._path(first, at), self._path(second, at)) for at in shown.tolist())
        return Change(len(rows[0]), examples, turns)

    def _path(self, rows: _Codes | None, at: int) -> str | None:
        if rows is None:
            return None
        row = int(rows[at])
        return str(self.one.paths[row] if row < len(self.one) else self.other.paths[row - len(self.one)])


def _paired(size: int, keys: Sequence[tuple[_Codes, ...]]) -> tuple[_Codes, _Codes]:
    """Returns the rows (N,) of the first ``size`` pictures, ascending, and for each the row of its counterpart among the others.

    Pictures are paired that are equal in the columns of the first of ``keys``, then of what is left those equal in the columns of
    the next one, and so on; where several are, in their order.
    """
    mine = np.arange(size)
    theirs = np.arange(len(keys[0][0]) - size)
    pairs: list[tuple[_Codes, _Codes]] = []
    for columns in keys:
        if not len(mine) or not len(theirs):
            break
        rows = np.concatenate([mine, theirs + size])
        code, most = np.zeros(len(rows), np.int64), 1
        for column in columns:
            width = int(column.max(initial=0)) + 1
            if most * width > _LARGEST:
                code, most = _codes(code), len(code)
            code, most = code * width + column[rows], most * width
        here, there = _numbered(code, len(mine))
        _, first, second = np.intersect1d(here, there, assume_unique=True, return_indices=True)
        pairs.append((mine[first], theirs[second]))
        mine, theirs = np.delete(mine, first), np.delete(theirs, second)
    first = np.concatenate([pair[0] for pair in pairs] or [mine[:0]])
    second = np.concatenate([pair[1] for pair in pairs] or [theirs[:0]])
    order = np.argsort(first)
    return first[order], second[order]


def _numbered(codes: _Codes, size: int) -> tuple[_Codes, _Codes]:
    """Returns the first ``size`` codes and the others, each combined with how often it has occurred before on its side."""
    counts: list[_Codes] = []
    for side in (codes[:size], codes[size:]):
        order = np.argsort(side, kind="stable")
        ordered = side[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        count = np.empty(len(side), np.int64)
        count[order] = np.arange(len(side)) - np.repeat(starts, np.diff(np.append(starts, len(side))))
        counts.append(count)
    most = max(int(count.max(initial=0)) for count in counts) + 1
    if (int(codes.max(initial=0)) + 1) * most > _LARGEST:
        codes = _codes(codes)
    return codes[:size] * most + counts[0], codes[size:] * most + counts[1]


def _codes(values: NDArray[np.int64] | NDArray[np.uint64]) -> _Codes:
    """Returns a small number from 0 for each of ``values`` (N,), the same for equal ones."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _common(manifest: Manifest, classes: Sequence[str]) -> _Codes:
    """Returns for each picture the index of its class in ``classes``, which are sorted."""
    places = {name: at for at, name in enumerate(classes)}
    return np.array([places[name] for name in manifest.classes], np.int64)[manifest.labels]


def _text_codes(columns: Sequence[pa.StringArray]) -> _Codes:
    """Returns a number for each text of ``columns``, one after the other, the same for equal ones; 0 for null."""
    found = pa.concat_arrays(columns).dictionary_encode().indices
    return found.fill_null(-1).to_numpy().astype(np.int64) + 1


def _groups(manifest: Manifest) -> pa.StringArray:
    return pa.nulls(len(manifest), pa.string()) if manifest.groups is None else manifest.groups


def _turns(before: _Codes, now: _Codes, names: Sequence[str]) -> tuple[Turn, ...]:
    pairs, counts = np.unique(before * len(names) + now, return_counts=True)
    frequent = np.argsort(-counts, kind="stable").tolist()
    return tuple(
        Turn(names[int(pairs[at]) // len(names)], names[int(pairs[at]) % len(names)], int(counts[at]))
        for at in frequent
    )
