"""Checks a data set and returns findings: what is wrong or unusual, how severe it is, why it matters and what to do.

A data set without problems has no findings.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.inspect.evidence import SEVERITIES, Evidence, Finding, Item, Severity, no_detail
from stagewright.data.inspect.fingerprint import Fingerprints, Rows, blank, differ, joined
from stagewright.data.manifest import SPLITS
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folder_names import similar_names
from stagewright.data.sources.folders import UNDECIDED, place_of_groups
from stagewright.data.sources.match_paths import NO_FILE
from stagewright.text import counted, some

_FEW, _VERY_FEW = 20, 5
_IMBALANCE, _SHIFT = 10, 0.2
_REVEALING, _ENOUGH = 0.8, 5
_HUGE_PIXELS = 40_000_000
_SAME = {"MPO": "JPEG", "DIB": "BMP", "CUR": "ICO"}

_ODD: tuple[tuple[str, Callable[[Fingerprints], Any], str, str], ...] = (
    ("exif-rotated", lambda x: x.orientations > 1, "with an EXIF rotation",
     "stagewright rotates them; programs that ignore EXIF (a label tool, a simple PIL script) show them rotated"),
    ("cmyk", lambda x: x.modes == "CMYK", "stored as CMYK", "the conversion to RGB ignores colour profiles, so colours change"),
    ("palette", lambda x: x.modes == "P", "stored with a palette", "at most 256 colours: gradients are coarse"),
    ("deep", lambda x: x.bits >= 16, "stored with 16 bits or more", "they are converted to 8 bits by a fixed rule"),
    ("alpha", lambda x: x.alpha, "with transparency", "it is ignored; hidden colours of transparent pixels become visible"),
    ("several-frames", lambda x: x.frames, "with several frames or pages", "only the first is used"),
)  # fmt: skip


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """Returns all findings, the serious ones first."""
    makers = (
        _copies,
        _near,
        _class_names,
        _classes_apart,
        _groups,
        _unreadable,
        _table,
        _balance,
        _tells,
        _shapes,
        _odd,
    )
    found = [finding for maker in makers for finding in maker(evidence)]
    explained = {"class-not-trained", "groups-straddle"} & {finding.kind for finding in found}
    if evidence.refusal and not explained:
        what, *rest = evidence.refusal.splitlines()
        todo = " ".join(line.strip().removeprefix("to do:").strip() for line in rest if "to do:" in line)
        found.append(Finding("refused", "serious", what, "training refuses this data", todo or "correct it"))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _pictures(
    e: Evidence, kind: str, severity: Severity, rows: Rows | Sequence[int], what: str, why: str, todo: str,
    detail: Callable[[int], str] = no_detail,
) -> Iterator[Finding]:  # fmt: skip
    """Yields a finding about the images ``rows``, if there are any; its text is their number, then ``what``."""
    if len(rows):
        yield Finding(kind, severity, f"{counted(len(rows), 'picture')} {what}", why, todo, e.items(rows, detail))


def _copies(e: Evidence) -> Iterator[Finding]:
    units = np.unique(e.units[e.fingerprints.readable])
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
        # A mirrored image can have another class (left and right arrows), so this is not a conflict of classes.
        ("mirrored", "mirrored copies", mirrored & ~conflicting),
    ):
        one, two = first[chosen], second[chosen]
        apart = (made & ~crossing & ~conflicting)[chosen]
        divided = len(joined(e.units, one[apart], two[apart]))
        # Near duplicates of two classes may be two scenes of a fixed camera: for people to look at, not proof of a leak.
        yield from _set_finding(
            e, noun, kind, one, two, (crossing & ~conflicting)[chosen], conflicting[chosen], divided
        )
    if not e.pairs.complete:
        what, why = "so many near duplicates that the search was limited to the closest", "there are more than listed"
        yield Finding("near-incomplete", "notice", what, why, "keep fewer images of each sequence")


def _class_names(e: Evidence) -> Iterator[Finding]:
    for names in similar_names(e.classes):
        rows = np.flatnonzero(np.isin(e.labels, [e.classes.index(name) for name in names]))
        firsts = [int(rows[e.labels[rows] == e.classes.index(name)][0]) for name in names]
        yield Finding(
            "class-names-alike", "warning",
            f"the names of the classes {' and '.join(map(repr, names))} differ only in case, blanks, '-', '_' or '.'",
            "they may be one class, written in several ways", "give them one name, or names that differ more",
            e.items(firsts),
        )  # fmt: skip


def _set_finding(
    e: Evidence, noun: str, kind: str, one: Rows, two: Rows, crossing: Any, conflicting: Any, divided: int = 0
) -> Iterator[Finding]:
    """Yields findings about sets of copies: in several splits, in several classes, and all others.

    ``one`` and ``two`` (M,) are the units of the pairs; ``crossing`` and ``conflicting`` (M,) state whether a pair is in
    several parts of the given split, and in several classes. ``divided`` is the number of sets that a split made here
    would divide.
    """
    if sets := joined(e.units, one[crossing], two[crossing]):
        yield Finding(
            f"{kind}-across-splits", "serious", f"{_how_many(sets, noun)} are in more than one of train, val and test",
            "val or test contains training data, so results look better than they are",
            "make a new split that keeps each set in one part, and use its table as DATA; or remove the copies from val and test",
            _set_items(e, sets), command=e.new_split,
        )  # fmt: skip
    if sets := joined(e.units, one[conflicting], two[conflicting]):
        identical = kind == "copies"
        yield Finding(
            f"{kind}-conflicting", "serious" if identical else "warning", f"{_how_many(sets, noun)} have different classes",
            "at least one of the classes is wrong, which harms training and results" if identical else
            "a class may be wrong; or the pictures differ in a detail, such as a small animal before a fixed camera",
            "look at them, keep the right class and remove the others" if identical else
            "look at them; where they show the same, keep the right class and remove the others", _set_items(e, sets),
        )  # fmt: skip
    rest = ~(crossing | conflicting)
    if sets := joined(e.units, one[rest], two[rest]):
        share = sum(len(rows) for rows in sets) / len(e.labels)
        given = (e.parts == e.listing.parts)[e.fingerprints.readable].all()
        kept = "" if given else "; a split made by stagewright keeps them together"
        if kind != "copies" and not given and not e.together:
            kept = "; a split made by stagewright keeps identical files together, but not these"
            kept += f": {counted(divided, 'set')} would be divided between its parts" if divided else ""
        severity = "warning" if divided or share >= 0.01 else "notice"
        why = f"they count several times but add no information{kept}"
        todo = "keep one of each set" + (", or make a split that keeps each set in one part" if divided else "")
        yield Finding(kind, severity, f"{_how_many(sets, noun)} within one class", why, todo, _set_items(e, sets),
                      command=e.new_split if divided else "")  # fmt: skip


def _set_items(e: Evidence, sets: list[Rows]) -> tuple[Item, ...]:
    items = ((number, item) for number, rows in enumerate(sets) for item in e.items(rows, e.size))
    return tuple(Item(item.path, item.row, item.detail, number) for number, item in items)


def _how_many(sets: list[Rows], noun: str) -> str:
    return f"{counted(len(sets), 'set')} of {noun} ({sum(len(rows) for rows in sets):,} pictures)"


def _classes_apart(e: Evidence) -> Iterator[Finding]:
    given = e.fingerprints.readable & (e.listing.parts != UNDECIDED)
    trained = np.unique(e.labels[e.fingerprints.readable & np.isin(e.listing.parts, (TRAIN, UNDECIDED))])
    tested = np.unique(e.labels[given & np.isin(e.listing.parts, (VAL, TEST))])
    absent = np.setdiff1d(tested, trained)
    if len(absent):
        names = tuple(e.classes[label] for label in absent)
        rows = np.flatnonzero(given & np.isin(e.labels, absent))
        what = f"{counted(len(names), 'class')} in val or test without a picture in train: {some(names)}"
        why = "the model cannot learn them, so training refuses this data"
        yield Finding("class-not-trained", "serious", what, why, "add pictures to train, or correct the names",
                      e.items(rows), names)  # fmt: skip
    for part in (VAL, TEST):
        counts, all_counts = e.counts(part), e.counts(TRAIN)
        if not (e.listing.parts == part).any() or not counts.sum() or not all_counts.sum():
            continue
        names = tuple(e.classes[label] for label in np.flatnonzero((counts == 0) & (all_counts > 0)))
        if names:
            what = f"{counted(len(names), 'class')} of train without a picture in {SPLITS[part]}: {some(names)}"
            yield Finding(f"class-not-in-{SPLITS[part]}", "warning", what, "the results do not cover them",
                          f"move some of their pictures to {SPLITS[part]}", names=names)  # fmt: skip
        shift = 0.5 * np.abs(counts / counts.sum() - all_counts / all_counts.sum()).sum()
        if shift >= _SHIFT and not names and not len(absent):
            what = f"the shares of the classes in {SPLITS[part]} differ from those in train by {100 * shift:.0f} % in total"
            yield Finding("class-shares-differ", "warning", what, "at least one of them differs from the data in use",
                          "see the class table; make a new split if this was not intended")  # fmt: skip


def _groups(e: Evidence) -> Iterator[Finding]:
    if e.listing.groups is None:
        return
    parts, rows_of = e.listing.parts, {}
    for row, group in enumerate(e.listing.groups.to_pylist()):
        if group is not None and e.fingerprints.readable[row]:
            rows_of.setdefault(group, []).append(row)
    divided = {group: rows for group, rows in rows_of.items() if len(set(parts[rows].tolist())) > 1}
    if divided:
        place = place_of_groups(e.listing.group_name)
        what = f"{counted(len(divided), 'group')} of {place} in more than one part: {some(divided)}"
        items = tuple(item for group, rows in divided.items() for item in e.items(rows, lambda row, name=group: name))
        why = "pictures of one group are similar, so results look better than they will be on new groups"
        todo = "make a new split, which does not divide groups, and use its table as DATA"
        yield Finding("groups-straddle", "serious", what, why, todo, items, tuple(divided), e.new_split)


def _unreadable(e: Evidence) -> Iterator[Finding]:
    reasons, foreign = e.fingerprints.reasons, e.fingerprints.not_images
    bad = sorted(reasons.keys() - foreign)
    if bad:
        serious = e.strict or len(bad) > 0.1 * (len(e.labels) - len(foreign))
        why = "they stop a run, because data.bad_images is fail" if e.strict else "every run leaves them out"
        todo = "copy them again from their source, or remove them"
        severity: Severity = "serious" if serious else "warning"
        yield from _pictures(e, "unreadable", severity, bad, "that cannot be read", why, todo, reasons.__getitem__)
    if foreign:
        yield Finding("not-pictures", "notice", f"{counted(len(foreign), 'file')} that are not pictures",
                      "they are ignored", "nothing, unless they should be pictures",
                      e.items(sorted(foreign), reasons.__getitem__))  # fmt: skip


def _table(e: Evidence) -> Iterator[Finding]:
    rows = [Item(item.path, detail=item.reason) for item in e.listing.excluded]
    missing = [item for item in rows if item.detail == NO_FILE]
    others = [item for item in rows if item.detail != NO_FILE]
    unlisted = [Item(path) for path in e.unlisted]
    for kind, items, what, why, todo in (
        ("rows-without-file", missing, f"{counted(len(missing), 'row')} of the table without a file", "they are left out",
         "check that all pictures were copied, and that data.images is right"),
        ("left-out", others, f"{len(others):,} rows or files that cannot be used", "they are left out",
         "correct them; the reason is given for each"),
        ("files-without-row", unlisted, f"{counted(len(unlisted), 'picture')} without a row in the table",
         "they have no class and are not used", "add rows for them, or remove them from the folder"),
    ):  # fmt: skip
        if items:
            yield Finding(kind, "warning", what, why, todo, tuple(items))


def _balance(e: Evidence) -> Iterator[Finding]:
    empty = tuple(e.classes[label] for label in np.flatnonzero(e.counts() == 0))
    if empty:
        what = f"{counted(len(empty), 'class')} without a readable picture: {some(empty)}"
        yield Finding("class-empty", "warning", what, "every run leaves them out", "find out why their files cannot be read",
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
                      "too few for training, and too few for reliable results",
                      "collect more, merge classes, or start from pretrained weights",
                      names=tuple(e.classes[label] for label in few))  # fmt: skip
    low, high = present[trained[present].argmin()], present[trained[present].argmax()]
    if (ratio := trained[high] / trained[low]) >= _IMBALANCE:
        text = f"{e.classes[high]} {trained[high]:,}, {e.classes[low]} {trained[low]:,}"
        yield Finding("imbalance", "warning", f"the largest class has {ratio:,.0f} times as many pictures as the smallest "
                      f"({text})", "top-1 over all pictures hides the accuracy of small classes",
                      "look at the accuracy of each class", names=(e.classes[high], e.classes[low]))  # fmt: skip


def _tells(e: Evidence) -> Iterator[Finding]:
    rows = np.flatnonzero(e.fingerprints.readable)
    sizes = np.array([e.size(int(row)) for row in rows], object)
    colours = np.where(e.fingerprints.grey[rows], "grey", "in colour").astype(object)
    given = e.listing.parts[rows]
    for name, column in (("colour", colours), ("format", e.fingerprints.formats[rows]), ("size", sizes)):
        columns = (("class", e.labels[rows], e.classes), ("split", np.maximum(given, 0), SPLITS))
        for by, group_of, names in columns:
            if by == "split" and (given == UNDECIDED).any():
                continue
            if revealing := _revealing_value(column, group_of):
                value, high, low, most, least = revealing
                what = f"{100 * most:.0f} % of {names[high]} are {value}, and {100 * least:.0f} % of {names[low]}"
                why = f"a model can recognize the {by} by this alone"
                why += ", and fails when it no longer holds" if by == "class" else ", so results are less reliable"
                items = e.items(rows[(column == value) & (group_of == high)])
                yield Finding(f"{name}-tells-{by}", "warning", what, why, "process all pictures in the same way before training",
                              items, (names[high], names[low]))  # fmt: skip
    grey = rows[e.fingerprints.grey[rows]]
    if len(grey) < len(rows):
        what, todo = "without colour, while others have colour", "nothing, if the model will see such pictures in use"
        yield from _pictures(e, "grey", "notice", grey, what, "they are used as RGB with equal channels", todo)


def _revealing_value(values: NDArray[np.object_], group_of: NDArray[Any]) -> tuple[Any, int, int, float, float] | None:
    """Returns the value whose share differs most between two groups, or None if no share differs by 0.8 or more.

    Returns (value, group with the highest share, group with the lowest share, highest share, lowest share).
    """
    sizes = np.bincount(group_of, minlength=1)
    groups = np.flatnonzero(sizes >= _ENOUGH)
    found = []
    for value, _ in Counter(values.tolist()).most_common(20) if len(groups) > 1 else ():
        share = np.bincount(group_of[values == value], minlength=len(sizes))[groups] / sizes[groups]
        high, low = int(share.argmax()), int(share.argmin())
        found.append((value, int(groups[high]), int(groups[low]), float(share[high]), float(share[low])))
    best = max(found, key=lambda one: one[3] - one[4], default=None)
    return best if best and best[3] - best[4] >= _REVEALING else None


def _shapes(e: Evidence) -> Iterator[Finding]:
    rows = np.flatnonzero(e.fingerprints.readable)
    width, height = e.fingerprints.widths[rows].astype(np.float64), e.fingerprints.heights[rows].astype(np.float64)
    short, ratio = np.minimum(width, height), np.maximum(width, height) / np.minimum(width, height)
    tiny = rows[(short < 64) & (short < np.median(short) / 3)] if len(rows) else rows
    wide = rows[(ratio > 3) & (ratio > 1.5 * np.median(ratio))] if len(rows) else rows
    huge = rows[width * height > _HUGE_PIXELS]
    empty = rows[blank(e.fingerprints.thumbs[rows])]
    table: tuple[tuple[str, Severity, Rows, str, str, str], ...] = (
        ("tiny", "warning", tiny, "much smaller than the others", "enlarged, they are blurred", "use larger ones or remove them"),
        ("extreme-aspect", "warning", wide, "with one side more than three times as long as the other",
         "a square crop shows only a small part, perhaps without the object", "crop them to the object"),
        ("huge", "notice", huge, f"of more than {_HUGE_PIXELS // 10**6} million pixels", "they are slow to decode",
         "resize them once, before training"),
        ("blank", "warning", empty, "of a single tone", "they show nothing that a model could learn",
         "look at them; remove the empty ones, unless they are a class of their own"),
    )  # fmt: skip
    for kind, severity, chosen, what, why, todo in table:
        yield from _pictures(e, kind, severity, chosen, what, why, todo, e.size)


def _odd(e: Evidence) -> Iterator[Finding]:
    known = Image.registered_extensions()
    wrong = {}
    for row in np.flatnonzero(e.fingerprints.readable):
        extension = os.path.splitext(e.listing.paths[int(row)].as_py())[1].lower()
        form = e.fingerprints.formats[row]
        if _SAME.get(expected := known.get(extension, ""), expected) != _SAME.get(form, form):
            wrong[int(row)] = f"holds {form}"
    why = "stagewright uses the content; other programs skip them or fail"
    what = "whose format does not match the file name extension"
    yield from _pictures(e, "wrong-extension", "warning", [*wrong], what, why, "rename them", wrong.__getitem__)
    for kind, chosen, what, why in _ODD:
        rows = np.flatnonzero(np.asarray(chosen(e.fingerprints), bool) & e.fingerprints.readable)
        detail = (lambda row: f"EXIF {e.fingerprints.orientations[row]}") if kind == "exif-rotated" else no_detail
        yield from _pictures(e, kind, "notice", rows, what, why, "nothing, if this is intended", detail)
