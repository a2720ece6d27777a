"""Builds the manifest from the listed files and their scan: classes, split, and notes on every decision.

Two guarantees: no file is left out without a note, and the split made here never puts an image of val or test into train.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.account import Account
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import TEST, TRAIN, VAL, Keys, Labels, Parts, grouped, stratified
from stagewright.data.sources.folder_names import combined_names, similar_names
from stagewright.data.sources.folders import BY_LIKENESS, BY_NAME, UNDECIDED, Listing, place_of_groups
from stagewright.data.sources.scan import Scan, hex_strings
from stagewright.data.sources.unusable import account_of, exclude_unreadable, nothing_readable, size_notes
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.system.allocators import give_back_memory
from stagewright.text import counted, printable, some

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them


_EVEN = 0.02
"""Difference of the classes' shares in a part that needs no note."""


class Assembled(NamedTuple):
    """What became of the files of a listing."""

    manifest: Manifest
    notes: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    """The files and rows that are left out."""
    account: Account
    """How many images were read, what was left out and what could not be read."""
    unused: frozenset[str] = frozenset()
    """Those of the settings ``val``, ``test``, ``near`` and ``split_seed`` that have no effect, since DATA gives the parts."""


@dataclass(frozen=True, eq=False)
class _ReadableImages:
    """The readable images, in the order of the listing."""

    rows: NDArray[np.int64]
    """(N,): their rows in the listing."""
    classes: tuple[str, ...]
    labels: Labels
    content: Keys
    """(N,): the first 64 bits of each file's hash, equal for identical files."""
    given: Parts
    """(N,): TRAIN, VAL or TEST as given by DATA, or UNDECIDED."""
    groups: pa.StringArray | None
    group_name: str
    excluded: tuple[Excluded, ...]
    """The files that cannot be read."""
    account: Account
    notes: tuple[str, ...]


def assemble(source: str, listing: Listing, scanned: Scan, settings: Data) -> Assembled:
    """Returns the manifest of the readable images of ``listing`` for a training, the notes, and what is left out.

    ``scanned`` is the scan of the same files. DataError if no file can be read, if ``settings.bad_images`` is ``fail`` and a
    file cannot be read, if there is only one class, or if a class of val or test has no image in train.
    """
    images = _readable_images(source, listing, scanned, settings)
    _check_classes(source, listing, images)
    images, group_notes = _usable_groups(images, settings)
    give_back_memory()  # before what needs most
    splits, split_notes = _split(images, settings)
    left_out = (*images.account.lines(), *size_notes(images.excluded))
    found = _assembled(source, listing, scanned, images, splits, left_out)
    give_back_memory()
    notes = (*found.notes, *group_notes, *split_notes, *_duplicate_notes(images, splits))
    return found._replace(notes=notes, unused=_unused_settings(images.given))


def assemble_for_evaluation(source: str, listing: Listing, scanned: Scan, settings: Data) -> Assembled:
    """Returns the manifest of the readable images of ``listing`` for an evaluation, the notes, and what is left out, which is not
    among the notes.

    None of the rules of a training holds: one class is enough, no split is made, and train needs no images. Parts that DATA
    gives are kept; all other images are in test. DataError if no file can be read, or as ``settings.bad_images`` requests.
    """
    images = _readable_images(source, listing, scanned, settings)
    images, group_notes = _usable_groups(images, settings)
    splits = np.where(images.given == UNDECIDED, TEST, images.given).astype(np.int8)
    found = _assembled(source, listing, scanned, images, splits, ())
    return found._replace(notes=(*found.notes, *group_notes, *_copy_notes(images)))


def _readable_images(source: str, listing: Listing, scanned: Scan, settings: Data) -> _ReadableImages:
    """DataError if there are none, or if ``settings.bad_images`` forbids those that cannot be read."""
    excluded = exclude_unreadable(listing, scanned, settings)
    rows = np.arange(len(listing.paths))
    if scanned.reasons:
        rows = np.delete(rows, list(scanned.reasons))
    if not len(rows):
        raise nothing_readable(source, listing, scanned)
    whole = len(rows) == len(listing.paths)  # then a copy would only take memory
    labels = listing.labels if whole else listing.labels.take(pa.array(rows))
    classes = tuple(sorted(labels.unique().to_pylist()))
    empty = sorted(set(listing.labels.unique().to_pylist()) - set(classes))
    notes = [f"left out {counted(len(empty), 'class')} without a readable picture: {some(empty)}"] if empty else []
    return _ReadableImages(
        rows=rows,
        classes=classes,
        labels=pc.index_in(labels, pa.array(classes)).to_numpy().astype(np.int32),
        content=np.ascontiguousarray(scanned.digests[rows, :8]).view("<u8").ravel().astype(np.uint64),
        given=listing.parts[rows],
        groups=listing.groups if listing.groups is None or whole else listing.groups.take(pa.array(rows)),
        group_name=listing.group_name,
        excluded=tuple(excluded),
        account=account_of(listing, scanned),
        notes=tuple(notes),
    )


def _assembled(
    source: str, listing: Listing, scanned: Scan, images: _ReadableImages, splits: Parts, left_out: tuple[str, ...]
) -> Assembled:
    """``left_out`` are the notes on what is left out."""
    rows, whole = images.rows, len(images.rows) == len(listing.paths)
    manifest = Manifest(
        root=listing.root,
        source=source,
        classes=images.classes,
        paths=listing.paths if whole else listing.paths.take(pa.array(rows)),
        hashes=hex_strings(scanned.digests if whole else scanned.digests[rows]),
        labels=images.labels,
        splits=splits,
        widths=scanned.widths[rows],
        heights=scanned.heights[rows],
        stamps=None if scanned.stamps is None else scanned.stamps[rows],
        groups=images.groups,
    )
    found = (*listing.notes, *left_out, *images.notes, *scanned.notes)
    notes = (_summary(images), *_name_notes(images.classes), *found)
    return Assembled(manifest, notes, (*listing.excluded, *images.excluded), images.account)


def _check_classes(source: str, listing: Listing, images: _ReadableImages) -> None:
    """DataError if there is only one class, or if every image has a different class: nothing can be trained from that."""
    classes, count = images.classes, len(images.rows)
    if len(classes) == 1:
        inner = Path(listing.root, classes[0])
        nested = inner.is_dir() and sum(entry.is_dir() for entry in inner.iterdir()) > 1
        raise DataError(
            f"all {count:,} readable pictures of {source!r} have the same class, {classes[0]!r}",
            "two classes or more",
            f"if the folders in it are the classes, point at {inner}" if nested else "add pictures of another class",
        )
    if len(classes) == count:
        raise DataError(
            f"each of the {count:,} pictures of {source!r} has a different class, e.g. {some(classes, 3)}",
            "classes with several pictures each",
            "check the folders, or name another column: --set data.label=NAME",
        )


def _summary(images: _ReadableImages) -> str:
    """The note on the numbers of images and classes."""
    sizes, names = np.bincount(images.labels), [printable(name) for name in images.classes]
    text = f"{counted(len(images.labels), 'picture')} in {counted(len(sizes), 'class')}"
    if len(sizes) <= 12:
        return f"{text} ({', '.join(f'{name} {size:,}' for name, size in zip(names, sizes, strict=True))})"
    lowest, highest = int(sizes.argmin()), int(sizes.argmax())
    return f"{text} (from {sizes[lowest]:,} of {names[lowest]} to {sizes[highest]:,} of {names[highest]})"


def _usable_groups(images: _ReadableImages, settings: Data) -> tuple[_ReadableImages, list[str]]:
    """Drops a group column that was found by its name and has one value only; also returns notes on the groups."""
    if images.groups is None:
        return images, []
    name, num_groups = images.group_name, len(images.groups.drop_null().unique())
    if settings.group is None and num_groups <= 1 and not images.groups.null_count:
        return replace(images, groups=None), [
            f"column '{name}' has the same value in all rows and is not used for groups"
        ]
    if name in (BY_NAME, BY_LIKENESS):  # they have a note already
        return images, []
    return images, [f"groups from column '{name}': {num_groups:,}"]


def _ungrouped_notes(images: _ReadableImages) -> list[str]:
    if images.groups is None or not images.groups.null_count or images.group_name == BY_LIKENESS:
        return []
    missing = counted(images.groups.null_count, "picture")
    return [f"{missing} without a value in column '{images.group_name}': each is treated as its own group"]


def needs_split(listing: Listing) -> bool:
    """Whether :func:`assemble` makes a split, or a part of it: DATA does not give val, or leaves images undecided."""
    return not (listing.parts == VAL).any() or bool((listing.parts == UNDECIDED).any())


def _unused_settings(given: Parts) -> frozenset[str]:
    if (given == VAL).any() and not (given == UNDECIDED).any():
        return frozenset(("val", "test", "near", "split_seed"))
    return frozenset(("test",) if (given == TEST).any() else ())


def _split(images: _ReadableImages, settings: Data) -> tuple[Parts, list[str]]:
    """Returns the part of each image, and notes. The given split is used; if it has no val, val is taken from train."""
    parts, seed = images.given.copy(), settings.split_seed
    if not (parts == VAL).any():
        parts[parts == TRAIN] = UNDECIDED
    undecided = np.flatnonzero(parts == UNDECIDED)
    has_test = bool((parts == TEST).any())
    content, labels = images.content[undecided], images.labels[undecided]
    val, test = settings.val, 0.0 if has_test else settings.test
    notes: tuple[str, ...] = ()
    if len(undecided) and images.groups is not None:
        groups = group_keys(images.groups, images.content)[undecided]
        parts[undecided], notes = grouped(content, labels, groups, val, test, seed)
    elif len(undecided):
        parts[undecided] = stratified(content, labels, val, test, seed)
    _check_classes_in_train(images, parts)
    group_notes = _check_groups(images, parts, settings)
    how = "as given by DATA"
    if len(undecided):
        kind = "stratified by class"
        if images.groups is not None:
            what = "group" if images.group_name in (BY_NAME, BY_LIKENESS) else images.group_name
            kind = f"no {what} in two parts, stratified by class as far as that allows"
        how = f"made by stagewright ({'test as given by DATA, ' if has_test else ''}{kind}, seed {seed})"
    sizes = np.bincount(parts, minlength=3)
    shares = ", ".join(
        f"{SPLITS[part]} {100 * sizes[part] / len(parts):.0f} % ({sizes[part]:,})" for part in np.flatnonzero(sizes)
    )
    said = [f"split {how}: {shares}", *notes, *group_notes, *_coverage_notes(images, parts)]
    return parts, [*_ungrouped_notes(images), *said]


def group_keys(groups: pa.StringArray, content: Keys) -> Keys:
    """Returns one uint64 key per image: a hash of its group's name, or its content hash if it has no group."""
    encoded = groups.dictionary_encode()
    hashed = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        for name in encoded.dictionary.to_pylist()
    ]
    index = encoded.indices.fill_null(-1).to_numpy()
    return np.where(index >= 0, np.array([*hashed, 0], np.uint64)[index], content)


def _check_classes_in_train(images: _ReadableImages, parts: Parts) -> None:
    """DataError if val or test has a class without an image in train."""
    trained = np.unique(images.labels[parts == TRAIN])
    for part in (VAL, TEST):
        missing = np.setdiff1d(images.labels[parts == part], trained)
        if len(missing):
            names = [repr(images.classes[label]) for label in missing]
            raise DataError(
                f"{SPLITS[part]} has {counted(len(names), 'class')} without a picture in train: {some(names)}",
                f"the classes of train: {some(images.classes[label] for label in trained)}",
                "add pictures of them to train, remove them, or correct their names",
            )


def _check_groups(images: _ReadableImages, parts: Parts, settings: Data) -> list[str]:
    """Returns a note if the given split divides groups; DataError if ``settings.group`` requests groups by name."""
    if images.groups is None:
        return []
    encoded = images.groups.dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    pairs = np.unique(np.stack([index, parts], axis=1)[index >= 0], axis=0)
    divided = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    if not len(divided):
        return []
    names = some(encoded.dictionary.take(pa.array(divided)).to_pylist(), 5)
    place = place_of_groups(images.group_name)
    text = f"the split given by DATA divides {counted(len(divided), 'group')} of {place} between parts"
    if settings.group is not None:
        raise DataError(
            f"{text}: {names}",
            "each group in one part only, since data.group requests groups",
            "let stagewright make the split (--set data.split=none), or do without groups (--set data.group=none)",
        )
    return [f"{text} ({names}), so results may be too good for new groups"]


def _name_notes(classes: tuple[str, ...]) -> list[str]:
    """Returns notes about class names that may be one class by mistake, or several labels in one cell."""
    notes = []
    if similar := similar_names(classes):
        pairs = some((" and ".join(map(repr, names)) for names in similar), 5)
        notes.append(f"classes whose names differ only in case, blanks, '-', '_' or '.': {pairs}; are they one class?")
    if combined := combined_names(classes):
        notes.append(
            f"classes whose names consist of other classes' names: {some(map(repr, combined), 5)}; stagewright predicts one "
            "class for an image, and such a combination is a class of its own"
        )
    return notes


def _coverage_notes(images: _ReadableImages, parts: Parts) -> list[str]:
    """Returns notes on classes that are missing from a part, and on uneven class shares because groups stay together."""
    sizes = np.bincount(images.labels)
    notes = []
    single = np.flatnonzero(sizes == 1)
    if len(single):
        notes.append(
            f"classes with a single picture, which is used for training: {some(images.classes[label] for label in single)}"
        )
    for part in (VAL, TEST):
        counts = np.bincount(images.labels[parts == part], minlength=len(sizes))
        absent = np.flatnonzero((counts == 0) & (sizes > 1))
        if counts.any() and len(absent):
            names = some(images.classes[label] for label in absent)
            notes.append(f"{SPLITS[part]} has no picture of {counted(len(absent), 'class')}: {names}")
        if counts.any() and images.groups is not None and (images.given != part).all():
            share = counts / sizes
            lowest, highest = int(share.argmin()), int(share.argmax())
            if share[highest] - share[lowest] < _EVEN:
                continue
            notes.append(
                f"{SPLITS[part]} has {100 * share[lowest]:.0f} % of class {images.classes[lowest]} and up to "
                f"{100 * share[highest]:.0f} % ({images.classes[highest]}), since groups stay together"
            )
    return notes


def _copy_notes(images: _ReadableImages) -> list[str]:
    """Returns notes on identical images: their number, and those in several classes."""
    units, unit_of = np.unique(images.content, return_inverse=True)
    if len(units) == len(unit_of):
        return []
    notes = [f"identical copies of other pictures: {len(unit_of) - len(units):,}"]
    lowest, highest = np.full(len(units), len(images.classes)), np.full(len(units), -1)
    np.minimum.at(lowest, unit_of, images.labels)
    np.maximum.at(highest, unit_of, images.labels)
    conflicting = np.flatnonzero(lowest != highest)
    if len(conflicting):
        names = f"{images.classes[lowest[conflicting[0]]]} and {images.classes[highest[conflicting[0]]]}"
        notes.append(f"{counted(len(conflicting), 'identical picture')} in several classes, e.g. in {names}")
    return notes


def _duplicate_notes(images: _ReadableImages, parts: Parts) -> list[str]:
    """Returns notes on identical images, also on those in several parts."""
    notes = _copy_notes(images)
    trained = images.content[parts == TRAIN]
    for part in (VAL, TEST):
        leaked = int(np.isin(images.content[parts == part], trained).sum()) if notes else 0
        if leaked:
            notes.append(
                f"{counted(leaked, 'identical picture')} both in {SPLITS[part]} and in train, so results look too good"
            )
    return notes
