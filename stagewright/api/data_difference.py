"""How the data sets of two runs differ, in sentences; and whether a run was trained on what the other was tested on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.picture_changes import Change, Example, PictureChanges
from stagewright.report.results import SPLIT_NAMES
from stagewright.text import counted, printable, some

_TURNS = 3
"""Most pairs of classes, or of parts, that a sentence names."""


def decide_the_same(one: Manifest, other: Manifest, changes: PictureChanges | None) -> bool:
    """Whether a run on ``one`` and a run on ``other`` are fed the same; ``changes`` is None where both have the same digest."""
    return changes is None or (changes.by_path_alone and one.classes == other.classes and one.variant == other.variant)


def data_sentences(
    one: Manifest, other: Manifest, changes: PictureChanges | None, first: str, second: str
) -> Iterator[str]:
    """Yields how the data sets of the runs named ``first`` and ``second`` differ; ``changes`` is None where they do not."""
    if changes is None:
        yield f"the same {counted(len(one), 'picture')}, classes and parts"
        return
    for name, mine, theirs in ((first, one, other), (second, other, one)):
        if only := [label for label in mine.classes if label not in theirs.classes]:
            yield f"classes only in {name}: {some(only)}"
    if one.variant != other.variant:
        yield f"{first} has {one.variant or 'the originals'}, {second} {other.variant or 'the originals'}"
    if decide_the_same(one, other, changes):
        yield f"the same {counted(len(one), 'picture')}, classes and parts in the same order, but for their paths"
    else:
        yield f"{first} has {counted(len(one), 'picture')}, {second} {len(other):,}; {changes.shared:,} are in both"
    yield from _changes(changes)
    sides = [{part: _contents(manifest, part) for part in SPLITS} for manifest in (one, other)]
    for part in SPLITS:
        mine, theirs = (side[part] for side in sides)
        both = _shared(mine, theirs)
        if not len(mine) == len(theirs) == both:
            yield f"{SPLIT_NAMES[part]}: {len(mine):,} and {len(theirs):,}, {both:,} in both"
    for name, rival, mine, theirs in ((first, second, *sides), (second, first, *reversed(sides))):
        if leaked := _shared(mine["train"], theirs["test"]):
            yield f"{name} was trained on {counted(leaked, 'picture')} of the test of {rival}"


def _changes(changes: PictureChanges) -> Iterator[str]:
    for name in ("added", "removed", "replaced", "relabelled", "moved", "renamed"):
        change: Change = getattr(changes, name)
        if not change.count:
            continue
        names = SPLIT_NAMES if name == "moved" else {}
        pairs = [(names.get(turn.before, turn.before), names.get(turn.now, turn.now)) for turn in change.turns]
        turns = [f"{before} to {now} {turn.count:,}" for (before, now), turn in zip(pairs, change.turns, strict=True)]
        said = f" ({some(turns, _TURNS)})" if turns else ""
        what = f"{change.count:,} {name}"
        if name == "replaced":
            what = f"of these, other content at {counted(change.count, 'path')} of both"
        examples = [_example(one) for one in change.examples]
        more = ", …" if len(examples) < change.count else ""
        yield f"{what}{said}{': ' if examples else ''}{', '.join(examples)}{more if examples else ''}"
    if changes.regrouped:
        yield f"{changes.regrouped:,} in a group of another name"
    if not changes.order and changes.same == changes.shared and not changes.added.count + changes.removed.count:
        yield "they stand in another order, so each update is made of other pictures"


def _example(found: Example) -> str:
    return " → ".join(dict.fromkeys(printable(path) for path in (found.one, found.other) if path is not None))


def _contents(manifest: Manifest, part: str) -> NDArray[np.uint64]:
    """Returns the different contents of a part, ascending. ``np.unique`` alone takes a second for a million."""
    found = np.sort(manifest.content[manifest.rows(part)])
    return found[np.concatenate([[True], found[1:] != found[:-1]])[: len(found)]]


def _shared(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> int:
    return len(np.intersect1d(one, other, assume_unique=True))
