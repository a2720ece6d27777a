"""Assemble: from files and what was found in them to a manifest: classes, split, and notes on all that was decided.

Owns two promises: nothing is left out without a note, and nothing decided here trains on what validates or tests.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import TEST, TRAIN, VAL, Keys, Labels, Parts, grouped, stratified
from stagewright.data.sources.folders import UNDECIDED, Listing
from stagewright.data.sources.scan import Scan, hex_strings
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.text import counted, some

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them


@dataclass(frozen=True, eq=False)
class _Pictures:
    """The readable pictures, in the order of the listing."""

    classes: tuple[str, ...]
    labels: Labels
    content: Keys
    """64 bits of the hash: equal for identical files."""
    given: Parts
    """TRAIN, VAL, TEST as DATA says, or UNDECIDED."""
    groups: pa.StringArray | None
    group_name: str


def assemble(
    source: str, listing: Listing, found: Scan, settings: Data, seed: int
) -> tuple[Manifest, tuple[str, ...], tuple[Excluded, ...]]:
    """The manifest of the readable pictures of ``listing``, notes, and what is left out.

    DataError if nothing can be read, if ``settings.bad_images`` is ``fail`` and something cannot, if there is but one
    class, or if a class that validates or tests has nothing to train on.
    """
    excluded, notes = _unreadable(listing, found, settings)
    rows = np.setdiff1d(np.arange(len(listing.paths)), list(found.reasons))
    if not len(rows):
        raise _nothing_readable(source, excluded)
    at = pa.array(rows)
    labels = listing.labels.take(at)
    classes = _classes(source, listing, labels)
    pictures = _Pictures(
        classes=classes,
        labels=pc.index_in(labels, pa.array(classes)).to_numpy().astype(np.int32),
        content=np.ascontiguousarray(found.digests[rows, :8]).view("<u8").ravel().astype(np.uint64),
        given=listing.parts[rows],
        groups=None if listing.groups is None else listing.groups.take(at),
        group_name=listing.group_name,
    )
    lost = sorted(set(listing.labels.unique().to_pylist()) - set(classes))
    if lost:
        notes.append(f"left out {counted(len(lost), 'class')} without a readable picture: {some(lost)}")
    pictures, group_notes = _usable_groups(pictures, settings)
    splits, split_notes = _split(pictures, settings, seed)
    manifest = Manifest(
        root=listing.root,
        source=source,
        classes=classes,
        paths=listing.paths.take(at),
        hashes=hex_strings(found.digests[rows]),
        labels=pictures.labels,
        splits=splits,
        widths=found.widths[rows],
        heights=found.heights[rows],
        stamps=None if found.stamps is None else found.stamps[rows],
        groups=pictures.groups,
    )
    notes = [_summary(pictures), *listing.notes, *notes, *found.notes, *group_notes, *split_notes]
    return manifest, (*notes, *_copies(pictures, splits)), (*listing.excluded, *excluded)


def _unreadable(listing: Listing, found: Scan, settings: Data) -> tuple[list[Excluded], list[str]]:
    """What the scan could not read, and notes; DataError if that is not to be tolerated."""
    excluded = [Excluded(listing.paths[row].as_py(), found.reasons[row]) for row in sorted(found.reasons)]
    foreign = Counter(
        os.path.splitext(listing.paths[row].as_py())[1].lower() or "without extension" for row in found.not_pictures
    )
    bad = [
        Excluded(listing.paths[row].as_py(), found.reasons[row])
        for row in sorted({*found.reasons} - found.not_pictures)
    ]
    examples = some((f"{item.path} ({item.reason})" for item in bad), 10)
    if bad and settings.bad_images == "fail":
        raise DataError(
            f"{counted(len(bad), 'picture')} cannot be read: {examples}",
            "pictures that Pillow reads, since data.bad_images is fail",
            "repair or remove them, or leave them out: --set data.bad_images=exclude",
        )
    notes = []
    if foreign:
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in foreign.most_common())
        what = "is not a picture" if foreign.total() == 1 else "are not pictures"
        notes.append(f"ignored {counted(foreign.total(), 'file')} that {what} ({kinds})")
    if bad:
        notes.append(f"excluded {counted(len(bad), 'picture')} that cannot be read: {examples}")
    return excluded, notes


def _nothing_readable(source: str, excluded: list[Excluded]) -> DataError:
    if not excluded:
        return DataError(
            f"there are no pictures in {source!r}",
            "class folders with pictures in them",
            "put the pictures of each class into a folder named after it",
        )
    examples = some((f"{item.path} ({item.reason})" for item in excluded), 3)
    return DataError(
        f"none of the {counted(len(excluded), 'file')} of {source!r} can be read as a picture: {examples}",
        "pictures in any format that Pillow reads",
        "open one of them with another program; if it is damaged there too, copy the data anew",
    )


def _classes(source: str, listing: Listing, labels: pa.StringArray) -> tuple[str, ...]:
    """The names of the classes, sorted; DataError if there are not two, or each picture is its own."""
    classes = tuple(sorted(labels.unique().to_pylist()))
    if len(classes) == 1:
        inner = Path(listing.root, classes[0])
        nested = inner.is_dir() and sum(entry.is_dir() for entry in inner.iterdir()) > 1
        raise DataError(
            f"all {len(labels):,} readable pictures of {source!r} are of one class, {classes[0]!r}",
            "two classes or more",
            f"if the folders in it are the classes, point at {inner}" if nested else "add pictures of another class",
        )
    if len(classes) == len(labels):
        raise DataError(
            f"each of the {len(labels):,} pictures of {source!r} is a class of its own, e.g. {some(classes, 3)}",
            "classes with several pictures each",
            "check the folders, or name another column: --set data.label=NAME",
        )
    return classes


def _summary(pictures: _Pictures) -> str:
    sizes = np.bincount(pictures.labels)
    text = f"{counted(len(pictures.labels), 'picture')} in {counted(len(sizes), 'class')}"
    if len(sizes) <= 12:
        return f"{text} ({', '.join(f'{name} {size:,}' for name, size in zip(pictures.classes, sizes, strict=True))})"
    low, high = int(sizes.argmin()), int(sizes.argmax())
    return f"{text} (from {sizes[low]:,} of {pictures.classes[low]} to {sizes[high]:,} of {pictures.classes[high]})"


def _usable_groups(pictures: _Pictures, settings: Data) -> tuple[_Pictures, list[str]]:
    """``pictures`` without groups that were found, not asked for, and say nothing; and notes on groups."""
    if pictures.groups is None:
        return pictures, []
    name, known = pictures.group_name, len(pictures.groups.drop_null().unique())
    alone = pictures.groups.null_count
    if settings.group is None and known <= 1 and not alone:
        return replace(pictures, groups=None), [f"column '{name}' is the same everywhere and not used for groups"]
    notes = [f"groups from column '{name}': {known:,}"]
    if alone:
        notes.append(f"each counted for itself: {counted(alone, 'picture')} without a value in column '{name}'")
    return pictures, notes


def _split(pictures: _Pictures, settings: Data, seed: int) -> tuple[Parts, list[str]]:
    """The part of each picture, and notes: as DATA says, with validation split off train where it brings none."""
    parts = pictures.given.copy()
    if not (parts == VAL).any():
        parts[parts == TRAIN] = UNDECIDED
    open_ = np.flatnonzero(parts == UNDECIDED)
    has_test = bool((parts == TEST).any())
    content, labels = pictures.content[open_], pictures.labels[open_]
    val, test = settings.val, 0.0 if has_test else settings.test
    notes: tuple[str, ...] = ()
    if len(open_) and pictures.groups is not None:
        groups = group_keys(pictures.groups, pictures.content)[open_]
        parts[open_], notes = grouped(content, labels, groups, val, test, seed)
    elif len(open_):
        parts[open_] = stratified(content, labels, val, test, seed)
    _check_trained(pictures, parts)
    straddling = _straddling(pictures, parts, settings)
    how = "as DATA gives it"
    if len(open_):
        kind = "stratified by class"
        if pictures.groups is not None:
            kind = f"no {pictures.group_name} in two parts, stratified by class as far as that allows"
        how = f"made here ({'test as DATA gives it, ' if has_test else ''}{kind}, seed {seed})"
    sizes = np.bincount(parts, minlength=3)
    shares = ", ".join(
        f"{SPLITS[part]} {100 * sizes[part] / len(parts):.0f} % ({sizes[part]:,})" for part in np.flatnonzero(sizes)
    )
    return parts, [f"split {how}: {shares}", *notes, *straddling, *_gaps(pictures, parts)]


def group_keys(groups: pa.StringArray, content: Keys) -> Keys:
    """A hash of each picture's group, which does not depend on the other groups; of the picture where it has none."""
    encoded = groups.dictionary_encode()
    hashed = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        for name in encoded.dictionary.to_pylist()
    ]
    index = encoded.indices.fill_null(-1).to_numpy()
    return np.where(index >= 0, np.array([*hashed, 0], np.uint64)[index], content)


def _check_trained(pictures: _Pictures, parts: Parts) -> None:
    trained = np.unique(pictures.labels[parts == TRAIN])
    for part in (VAL, TEST):
        missing = np.setdiff1d(pictures.labels[parts == part], trained)
        if len(missing):
            names = [repr(pictures.classes[label]) for label in missing]
            raise DataError(
                f"{SPLITS[part]} has {counted(len(names), 'class')} that train has no picture of: {some(names)}",
                f"classes that train has too: {some(pictures.classes[label] for label in trained)}",
                "add pictures of them to train, remove them, or correct their names",
            )


def _straddling(pictures: _Pictures, parts: Parts, settings: Data) -> list[str]:
    """A note on groups that the split of DATA tears apart; DataError if groups were asked for by name."""
    if pictures.groups is None:
        return []
    encoded = pictures.groups.dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    pairs = np.unique(np.stack([index, parts], axis=1)[index >= 0], axis=0)
    torn = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    if not len(torn):
        return []
    names = some(encoded.dictionary.take(pa.array(torn)).to_pylist(), 5)
    text = f"the split that DATA gives tears apart {counted(len(torn), 'group')} of column '{pictures.group_name}'"
    if settings.group is not None:
        raise DataError(
            f"{text}: {names}",
            "groups that stand in one part each, since data.group asks for them",
            "have the split made here (--set data.split=none), or give up the groups (--set data.group=none)",
        )
    return [f"{text} ({names}), so its results say less about new ones"]


def _gaps(pictures: _Pictures, parts: Parts) -> list[str]:
    """Notes on classes that a part does not have, and on uneven shares where groups stay together."""
    sizes = np.bincount(pictures.labels)
    notes = []
    single = np.flatnonzero(sizes == 1)
    if len(single):
        notes.append(
            f"classes with a single picture, which trains: {some(pictures.classes[label] for label in single)}"
        )
    for part in (VAL, TEST):
        counts = np.bincount(pictures.labels[parts == part], minlength=len(sizes))
        absent = np.flatnonzero((counts == 0) & (sizes > 1))
        if counts.any() and len(absent):
            names = some(pictures.classes[label] for label in absent)
            notes.append(f"{SPLITS[part]} has no picture of {counted(len(absent), 'class')}: {names}")
        if counts.any() and pictures.groups is not None and (pictures.given != part).all():
            share = counts / sizes
            low, high = int(share.argmin()), int(share.argmax())
            notes.append(
                f"{SPLITS[part]} has {100 * share[low]:.0f} % of class {pictures.classes[low]} and up to "
                f"{100 * share[high]:.0f} % ({pictures.classes[high]}), since groups stay together"
            )
    return notes


def _copies(pictures: _Pictures, parts: Parts) -> list[str]:
    """Notes on identical pictures: how many, under different classes, and in several parts of a given split."""
    units, unit_of = np.unique(pictures.content, return_inverse=True)
    if len(units) == len(unit_of):
        return []
    notes = [f"identical copies of other pictures: {len(unit_of) - len(units):,}"]
    low, high = np.full(len(units), len(pictures.classes)), np.full(len(units), -1)
    np.minimum.at(low, unit_of, pictures.labels)
    np.maximum.at(high, unit_of, pictures.labels)
    mixed = np.flatnonzero(low != high)
    if len(mixed):
        names = f"{pictures.classes[low[mixed[0]]]} and {pictures.classes[high[mixed[0]]]}"
        notes.append(f"of these under several classes: {counted(len(mixed), 'picture')}, e.g. under {names}")
    trained = np.unique(unit_of[parts == TRAIN])
    for part in (VAL, TEST):
        leaked = int(np.isin(unit_of[parts == part], trained).sum())
        if leaked:
            notes.append(
                f"in {SPLITS[part]} and in train, which flatters results: {counted(leaked, 'identical picture')}"
            )
    return notes
