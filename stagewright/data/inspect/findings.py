"""Findings: what is wrong or odd about a set of pictures, how badly, why that matters, and what to do about it.

Owns the severities. Serious: results would be wrong, or training refuses. Warning: it likely costs something. Notice: good
to know. A clean set gives no finding at all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.inspect.fingerprint import Looks, Pairs, Rows, blank, differ, joined
from stagewright.data.manifest import SPLITS
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import UNDECIDED, Listing
from stagewright.data.sources.match_paths import NO_FILE
from stagewright.text import counted, some

Severity = Literal["serious", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "notice")

_FEW, _VERY_FEW = 20, 5
_IMBALANCE, _SHIFT = 10, 0.2
_TELLING, _ENOUGH = 0.8, 5
_HUGE_PIXELS = 40_000_000
_SAME = {"MPO": "JPEG", "DIB": "BMP", "CUR": "ICO"}

_ODD: tuple[tuple[str, Callable[[Looks], Any], str, str], ...] = (
    ("exif-rotated", lambda x: x.orientations > 1, "turned upright by EXIF",
     "stagewright turns them; a program that does not (a label tool, a bare PIL script) shows them on their side"),
    ("cmyk", lambda x: x.modes == "CMYK", "stored as CMYK", "the conversion to RGB ignores print profiles, so tones are off"),
    ("palette", lambda x: x.modes == "P", "stored with a palette", "256 colours at most: gradients are coarse"),
    ("deep", lambda x: x.bits >= 16, "stored with 16 bits or more", "they are brought to 8 bits by a fixed rule"),
    ("alpha", lambda x: x.alpha, "with transparency", "it is dropped; the colours beneath appear, whatever they are"),
    ("several-frames", lambda x: x.frames, "with several frames or pages", "only the first is used"),
)  # fmt: skip


def _nothing(row: int) -> str:
    return ""


@dataclass(frozen=True)
class Item:
    """A file or a row of a table that a finding is about."""

    path: str
    """Relative to the root, with ``/``; for rows of a table without a file what the table says."""
    row: int = -1
    """Row of the listing; -1 if it is not in it."""
    detail: str = ""
    set: int = -1
    """Pictures of one set of copies share a number; -1 elsewhere."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in words, with the files that it is about."""

    kind: str
    """A stable name, e.g. ``unreadable``."""
    severity: Severity
    what: str
    why: str
    todo: str
    items: tuple[Item, ...] = ()
    names: tuple[str, ...] = ()
    """The classes or groups that it is about."""

    @property
    def sets(self) -> int:
        """How many sets of copies ``items`` form."""
        return len({item.set for item in self.items} - {-1})


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of the N files of a listing, which is what findings are drawn from."""

    listing: Listing
    looks: Looks
    pairs: Pairs
    parts: NDArray[np.int8]
    """(N,): the split as DATA gives it or as it would be made here; UNDECIDED where there is none."""
    strict: bool = False
    """Whether unreadable pictures stop a run (``data.bad_images=fail``)."""
    refusal: str = ""
    """Why training refuses this data; empty if it does not."""
    unlisted: tuple[str, ...] = ()
    """Pictures in the folder that no row of the table names."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, sorted."""
        return tuple(sorted(set(self.listing.labels.to_pylist())))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,): index into ``classes``."""
        at = {name: label for label, name in enumerate(self.classes)}
        return np.array([at[name] for name in self.listing.labels.to_pylist()], np.int64)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """(N,): the same number for files of the same bytes; unreadable ones have numbers of their own."""
        keys = np.ascontiguousarray(self.looks.digests).view("V16").ravel()
        _, units = np.unique(keys, return_inverse=True)
        bad = np.flatnonzero(~self.looks.readable)
        units[bad] = len(units) + bad
        return units

    def counts(self, part: int | None = None) -> NDArray[np.int64]:
        """Readable pictures of each class, of one part or of all."""
        rows = self.looks.readable if part is None else self.looks.readable & (self.parts == part)
        return np.bincount(self.labels[rows], minlength=len(self.classes))

    def items(self, rows: Rows | Sequence[int], detail: Callable[[int], str] = _nothing) -> tuple[Item, ...]:
        """The files of ``rows``, in their order."""
        return tuple(Item(self.listing.paths[row].as_py(), row, detail(row)) for row in map(int, rows))

    def size(self, row: int) -> str:
        """``500 x 375``: the upright size of a picture in pixels."""
        return f"{self.looks.widths[row]} x {self.looks.heights[row]}"


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings, the serious ones first."""
    makers = (_copies, _near, _classes_apart, _groups, _unreadable, _table, _balance, _tells, _shapes, _odd)
    found = [finding for maker in makers for finding in maker(evidence)]
    explained = {"class-not-trained", "groups-straddle"} & {finding.kind for finding in found}
    if evidence.refusal and not explained:
        what, *rest = evidence.refusal.splitlines()
        todo = " ".join(line.strip().removeprefix("to do:").strip() for line in rest if "to do:" in line)
        found.append(Finding("refused", "serious", what, "training refuses this data", todo or "correct it"))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _pictures(
    e: Evidence, kind: str, severity: Severity, rows: Rows | Sequence[int], what: str, why: str, todo: str,
    detail: Callable[[int], str] = _nothing,
) -> Iterator[Finding]:  # fmt: skip
    """A finding on the pictures of ``rows``, if there are any; ``what`` follows their number."""
    if len(rows):
        yield Finding(kind, severity, f"{counted(len(rows), 'picture')} {what}", why, todo, e.items(rows, detail))


def _copies(e: Evidence) -> Iterator[Finding]:
    units = np.unique(e.units[e.looks.readable])
    several = units[np.bincount(e.units)[units] > 1]
    crossing = differ(e.units, e.listing.parts, several, several)
    conflicting = differ(e.units, e.labels, several, several)
    yield from _set_finding(e, "identical files", "copies", several, several, crossing, conflicting)


def _near(e: Evidence) -> Iterator[Finding]:
    first, second, mirrored = e.units[e.pairs.first], e.units[e.pairs.second], e.pairs.mirrored
    crossing, made = (differ(e.units, parts, first, second) for parts in (e.listing.parts, e.parts))
    conflicting = differ(e.units, e.labels, first, second)
    for kind, noun, chosen in (
        ("near", "near duplicates", ~mirrored),
        # A mirrored picture may well be of another class (left and right arrows): that is no contradiction.
        ("mirrored", "mirrored copies", mirrored & ~conflicting),
    ):
        one, two = first[chosen], second[chosen]
        apart = (made & ~crossing & ~conflicting)[chosen]
        torn = len(joined(e.units, one[apart], two[apart]))
        yield from _set_finding(e, noun, kind, one, two, crossing[chosen], conflicting[chosen], torn)
    if not e.pairs.complete:
        what, why = "so many near duplicates that only the closest were looked for", "more are alike than listed"
        yield Finding("near-incomplete", "notice", what, why, "thin out sequences")


def _set_finding(
    e: Evidence, noun: str, kind: str, one: Rows, two: Rows, crossing: Any, conflicting: Any, torn: int = 0
) -> Iterator[Finding]:
    """Findings on sets of copies: across splits, under several classes, and the rest. ``one`` and ``two`` are units."""
    if sets := joined(e.units, one[crossing], two[crossing]):
        yield Finding(
            f"{kind}-across-splits", "serious", f"{_how_many(sets, noun)} stand in more than one of train, val and test",
            "what validates or tests was seen in training, so results look better than they are",
            "keep each set in one part, or have the split made here "
            "(class folders without train/ and val/; for a table --set data.split=none)", _set_items(e, sets),
        )  # fmt: skip
    if sets := joined(e.units, one[conflicting], two[conflicting]):
        where = " (before a fixed camera a small animal may be all the difference: look)" if kind == "near" else ""
        yield Finding(
            f"{kind}-conflicting", "serious", f"{_how_many(sets, noun)} carry different classes",
            f"nothing can be right about all of them, in training or in a test{where}",
            "open them, keep the right class and remove the others", _set_items(e, sets),
        )  # fmt: skip
    rest = ~(crossing | conflicting)
    if sets := joined(e.units, one[rest], two[rest]):
        share = sum(len(rows) for rows in sets) / len(e.labels)
        given = (e.parts == e.listing.parts)[e.looks.readable].all()
        kept = "" if given else "; a split made here keeps them together"
        if kind != "copies" and not given:
            kept = "; a split made here keeps identical files together, but not these"
            kept += f": {counted(torn, 'set')} would stand on both sides of it" if torn else ""
        severity = "warning" if torn or share >= 0.01 else "notice"
        why = f"they count several times without telling more{kept}"
        todo = "keep one of each set" + (", or name what they share as groups (data.group of a table)" if torn else "")
        yield Finding(kind, severity, f"{_how_many(sets, noun)} within one class", why, todo, _set_items(e, sets))


def _set_items(e: Evidence, sets: list[Rows]) -> tuple[Item, ...]:
    items = ((number, item) for number, rows in enumerate(sets) for item in e.items(rows, e.size))
    return tuple(Item(item.path, item.row, item.detail, number) for number, item in items)


def _how_many(sets: list[Rows], noun: str) -> str:
    return f"{counted(len(sets), 'set')} of {noun} ({sum(len(rows) for rows in sets):,} pictures)"


def _classes_apart(e: Evidence) -> Iterator[Finding]:
    given = e.looks.readable & (e.listing.parts != UNDECIDED)
    trained = np.unique(e.labels[e.looks.readable & np.isin(e.listing.parts, (TRAIN, UNDECIDED))])
    tested = np.unique(e.labels[given & np.isin(e.listing.parts, (VAL, TEST))])
    absent = np.setdiff1d(tested, trained)
    if len(absent):
        names = tuple(e.classes[label] for label in absent)
        rows = np.flatnonzero(given & np.isin(e.labels, absent))
        what = f"{counted(len(names), 'class')} in val or test without a picture in train: {some(names)}"
        why = "they cannot be learned, and training refuses"
        yield Finding("class-not-trained", "serious", what, why, "add pictures to train, or correct the names",
                      e.items(rows), names)  # fmt: skip
    for part in (VAL, TEST):
        counts, all_counts = e.counts(part), e.counts(TRAIN)
        if not (e.listing.parts == part).any() or not counts.sum() or not all_counts.sum():
            continue
        names = tuple(e.classes[label] for label in np.flatnonzero((counts == 0) & (all_counts > 0)))
        if names:
            what = f"{counted(len(names), 'class')} of train without a picture in {SPLITS[part]}: {some(names)}"
            yield Finding(f"class-not-in-{SPLITS[part]}", "warning", what, "the result says nothing about them",
                          f"move some of their pictures to {SPLITS[part]}", names=names)  # fmt: skip
        shift = 0.5 * np.abs(counts / counts.sum() - all_counts / all_counts.sum()).sum()
        if shift >= _SHIFT and not names and not len(absent):
            what = (
                f"the shares of the classes in {SPLITS[part]} differ from those in train by {100 * shift:.0f} % in all"
            )
            yield Finding("class-shares-differ", "warning", what, "one of the two is unlike what the model will meet",
                          "see the class table; split anew if that was not meant")  # fmt: skip


def _groups(e: Evidence) -> Iterator[Finding]:
    if e.listing.groups is None:
        return
    parts, rows_of = e.listing.parts, {}
    for row, group in enumerate(e.listing.groups.to_pylist()):
        if group is not None and e.looks.readable[row]:
            rows_of.setdefault(group, []).append(row)
    torn = {group: rows for group, rows in rows_of.items() if len(set(parts[rows].tolist())) > 1}
    if torn:
        what = f"{counted(len(torn), 'group')} of column '{e.listing.group_name}' in more than one part: {some(torn)}"
        items = tuple(item for group, rows in torn.items() for item in e.items(rows, lambda row, name=group: name))
        why = "pictures of one group are alike, so results look better than they will be on new groups"
        todo = "have the split made here, which keeps groups whole: --set data.split=none"
        yield Finding("groups-straddle", "serious", what, why, todo, items, tuple(torn))


def _unreadable(e: Evidence) -> Iterator[Finding]:
    reasons, foreign = e.looks.reasons, e.looks.not_images
    bad = sorted(reasons.keys() - foreign)
    if bad:
        serious = e.strict or len(bad) > 0.1 * (len(e.labels) - len(foreign))
        why = "they stop a run, since data.bad_images is fail" if e.strict else "they are left out of every run"
        todo = "copy them anew from where they came, or remove them"
        severity: Severity = "serious" if serious else "warning"
        yield from _pictures(e, "unreadable", severity, bad, "that cannot be read", why, todo, reasons.__getitem__)
    if foreign:
        yield Finding("not-pictures", "notice", f"{counted(len(foreign), 'file')} among the pictures that hold none",
                      "they are ignored", "nothing, unless a picture was meant",
                      e.items(sorted(foreign), reasons.__getitem__))  # fmt: skip


def _table(e: Evidence) -> Iterator[Finding]:
    rows = [Item(item.path, detail=item.reason) for item in e.listing.excluded]
    missing = [item for item in rows if item.detail == NO_FILE]
    others = [item for item in rows if item.detail != NO_FILE]
    unlisted = [Item(path) for path in e.unlisted]
    for kind, items, what, why, todo in (
        ("rows-without-file", missing, f"{counted(len(missing), 'row')} of the table without a file", "they are left out",
         "check that all pictures were copied, and data.images"),
        ("left-out", others, f"{len(others):,} rows or files that cannot be used", "they are left out",
         "correct them; each has its reason"),
        ("files-without-row", unlisted, f"{counted(len(unlisted), 'picture')} without a row in the table",
         "they have no class and are not used", "add rows for them, or move them away"),
    ):  # fmt: skip
        if items:
            yield Finding(kind, "warning", what, why, todo, tuple(items))


def _balance(e: Evidence) -> Iterator[Finding]:
    empty = tuple(e.classes[label] for label in np.flatnonzero(e.counts() == 0))
    if empty:
        what = f"{counted(len(empty), 'class')} without a readable picture: {some(empty)}"
        yield Finding("class-empty", "warning", what, "a run leaves them out", "see why their files cannot be read",
                      names=empty)  # fmt: skip
    trained = e.counts(TRAIN) if (e.parts == TRAIN).any() else e.counts()
    present = np.flatnonzero(trained)
    if len(present) < 2:
        return
    few = present[trained[present] < _FEW]
    if len(few):
        few = few[np.argsort(trained[few], kind="stable")]
        very = int(trained[few].min()) < _VERY_FEW
        least = some(f"{e.classes[label]} {trained[label]:,}" for label in few)
        yield Finding("few-pictures", "warning" if very else "notice",
                      f"{counted(len(few), 'class')} with fewer than {_FEW} pictures to train on ({least})",
                      "too little to learn from, and too little to judge by",
                      "collect more, join classes, or start from pretrained weights",
                      names=tuple(e.classes[label] for label in few))  # fmt: skip
    low, high = present[trained[present].argmin()], present[trained[present].argmax()]
    if (ratio := trained[high] / trained[low]) >= _IMBALANCE:
        text = f"{e.classes[high]} {trained[high]:,}, {e.classes[low]} {trained[low]:,}"
        yield Finding("imbalance", "warning", f"the largest class has {ratio:,.0f} times as many pictures as the smallest "
                      f"({text})", "top-1 over all pictures hides how small classes fare",
                      "read the results class by class", names=(e.classes[high], e.classes[low]))  # fmt: skip


def _tells(e: Evidence) -> Iterator[Finding]:
    rows = np.flatnonzero(e.looks.readable)
    sizes = np.array([e.size(int(row)) for row in rows], object)
    colours = np.where(e.looks.grey[rows], "grey", "in colour").astype(object)
    given = e.listing.parts[rows]
    for name, column in (("colour", colours), ("format", e.looks.formats[rows]), ("size", sizes)):
        columns = (("class", e.labels[rows], e.classes), ("split", np.maximum(given, 0), SPLITS))
        for by, group_of, names in columns:
            if by == "split" and (given == UNDECIDED).any():
                continue
            if told := _telling(column, group_of):
                value, high, low, most, least = told
                what = f"{100 * most:.0f} % of {names[high]} are {value}, and {100 * least:.0f} % of {names[low]}"
                why = f"a model can tell the {by} by that alone"
                why += ", and fails where it no longer holds" if by == "class" else ", and results say less"
                items = e.items(rows[(column == value) & (group_of == high)])
                yield Finding(f"{name}-tells-{by}", "warning", what, why, "treat all pictures alike before training",
                              items, (names[high], names[low]))  # fmt: skip
    grey = rows[e.looks.grey[rows]]
    if len(grey) < len(rows):
        what, todo = "without colour among coloured ones", "nothing, if such pictures will come again"
        yield from _pictures(e, "grey", "notice", grey, what, "they are trained on as grey RGB", todo)


def _telling(values: NDArray[np.object_], group_of: NDArray[Any]) -> tuple[Any, int, int, float, float] | None:
    """The value whose share differs most between groups, where it gives them away, with these groups and shares."""
    sizes = np.bincount(group_of, minlength=1)
    groups = np.flatnonzero(sizes >= _ENOUGH)
    found = []
    for value, _ in Counter(values.tolist()).most_common(20) if len(groups) > 1 else ():
        share = np.bincount(group_of[values == value], minlength=len(sizes))[groups] / sizes[groups]
        high, low = int(share.argmax()), int(share.argmin())
        found.append((value, int(groups[high]), int(groups[low]), float(share[high]), float(share[low])))
    best = max(found, key=lambda one: one[3] - one[4], default=None)
    return best if best and best[3] - best[4] >= _TELLING else None


def _shapes(e: Evidence) -> Iterator[Finding]:
    rows = np.flatnonzero(e.looks.readable)
    width, height = e.looks.widths[rows].astype(np.float64), e.looks.heights[rows].astype(np.float64)
    short, ratio = np.minimum(width, height), np.maximum(width, height) / np.minimum(width, height)
    tiny = rows[(short < 64) & (short < np.median(short) / 3)] if len(rows) else rows
    wide = rows[(ratio > 3) & (ratio > 1.5 * np.median(ratio))] if len(rows) else rows
    huge = rows[width * height > _HUGE_PIXELS]
    empty = rows[blank(e.looks.thumbs[rows])]
    table: tuple[tuple[str, Severity, Rows, str, str, str], ...] = (
        ("tiny", "warning", tiny, "much smaller than the others", "enlarged, they are blurs", "find larger ones or remove them"),
        ("extreme-aspect", "warning", wide, "more than three times as long as wide, or as wide as long",
         "a square crop shows a small part of them, maybe not the one that counts", "crop them to what they are about"),
        ("huge", "notice", huge, f"of more than {_HUGE_PIXELS // 10**6} million pixels", "each takes long to decode",
         "make them smaller once, before training"),
        ("blank", "warning", empty, "of a single tone", "there is nothing to see on them",
         "look at them; remove what shows nothing, unless that is a class"),
    )  # fmt: skip
    for kind, severity, chosen, what, why, todo in table:
        yield from _pictures(e, kind, severity, chosen, what, why, todo, e.size)


def _odd(e: Evidence) -> Iterator[Finding]:
    known = Image.registered_extensions()
    wrong = {}
    for row in np.flatnonzero(e.looks.readable):
        extension = os.path.splitext(e.listing.paths[int(row)].as_py())[1].lower()
        form = e.looks.formats[row]
        if _SAME.get(said := known.get(extension, ""), said) != _SAME.get(form, form):
            wrong[int(row)] = f"holds {form}"
    why = "stagewright goes by the content; other programs skip them or fail"
    what = "of another format than the name says"
    yield from _pictures(e, "wrong-extension", "warning", [*wrong], what, why, "rename them", wrong.__getitem__)
    for kind, chosen, what, why in _ODD:
        rows = np.flatnonzero(np.asarray(chosen(e.looks), bool) & e.looks.readable)
        detail = (lambda row: f"EXIF {e.looks.orientations[row]}") if kind == "exif-rotated" else _nothing
        yield from _pictures(e, kind, "notice", rows, what, why, "nothing, if that was meant", detail)
