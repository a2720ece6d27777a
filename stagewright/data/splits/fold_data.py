"""The folds that a cross-validation trains on: made of DATA, or read from the column ``fold`` of a table; and their tables.

Images of DATA's test part are in no fold. The table of fold k has the fold as its test part and all other folds as train, so that
a run splits its validation part off from what it may train on, and meets the fold once, at its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.inspect.similar import group_similar
from stagewright.data.manifest import Manifest
from stagewright.data.pack.remote import is_pack_source
from stagewright.data.partition import TEST, TRAIN, VAL, Parts
from stagewright.data.sources.assemble import assemble
from stagewright.data.sources.folders import Listing, absolute_path
from stagewright.data.sources.local import list_source
from stagewright.data.sources.scan import Progress, scan
from stagewright.data.sources.table_text import column_names
from stagewright.data.sources.tables import is_table, list_table
from stagewright.data.splits.folds import MOST_FOLDS, Folds
from stagewright.data.splits.tables import check_reads_back, columns_of, deal_manifest, paths_from, write_rows
from stagewright.data.splits.write import load
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import temporary_name, write_whole
from stagewright.storage.parquet import hash_column
from stagewright.text import count_text, counted, some

COLUMN = "fold"


@dataclass(frozen=True, eq=False)
class FoldData:
    """Images in K folds."""

    manifest: Manifest
    """All readable images; only those outside of its test part are in folds."""
    fold_of: Folds
    """(N,) int16: the fold of each image, from 0; -1 in the test part."""
    num_folds: int
    notes: tuple[str, ...]
    """Sentences for the user."""

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) number of images of each fold."""
        return np.bincount(self.fold_of[self.fold_of >= 0], minlength=self.num_folds)

    @property
    def num_test(self) -> int:
        """Number of images that are in no fold, since they are DATA's test part."""
        return int((self.fold_of < 0).sum())

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the classes, and of hash, label, group and fold of all images, in the order of their hashes."""
        manifest = self.manifest
        order = np.lexsort((self.fold_of, np.array(manifest.hashes.to_pylist())))
        digest = hashlib.sha256(json.dumps(["stagewright folds", 1, len(manifest), manifest.classes]).encode())
        for column in (manifest.hashes, manifest.groups):
            hash_column(digest, None if column is None else column.take(pa.array(order)))
        digest.update(np.ascontiguousarray(manifest.labels[order], "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.fold_of[order], "<i2").tobytes())
        return digest.hexdigest()


def make_folds(
    source: str, settings: Data, num_folds: int, *, workers: int = 2, progress: Progress | None = None
) -> FoldData:
    """Makes ``num_folds`` folds of the images of ``source``, as ``data split --folds`` does: groups and identical images
    together, near duplicates too where ``settings.near`` says so, class shares even.

    A test part of DATA stays apart, and so does a share that ``settings`` sets as ``test`` itself. DataError if DATA has a
    validation part, unless ``settings.split`` is ``none``, which divides all of its images anew; and like
    :func:`stagewright.data.splits.folds.deal`.
    """
    if not 2 <= num_folds <= MOST_FOLDS:
        raise DataError(
            f"--folds {num_folds}", f"2 to {MOST_FOLDS} folds", "5 and 10 are usual; each one is a training run"
        )
    _refuse_no_files(source)
    anew = settings.split == "none"
    if not anew:
        _check_parts(source, list_source(source, settings), settings)
    made = load(source, settings, num_folds, anew, workers, progress)
    fold_of, notes = deal_manifest(made.manifest, num_folds, settings.split_seed)
    kept = [note for note in made.notes if not note.startswith("split ")]  # the parts are other ones now
    if is_table(absolute_path(source)) and _has_column(absolute_path(source)):
        kept.append(f"the column {COLUMN!r} of {source} is not used: --folds given would use it")
    return FoldData(made.manifest, fold_of, num_folds, (*kept, *notes))


def given_folds(source: str, settings: Data, *, workers: int = 2, progress: Progress | None = None) -> FoldData:
    """Reads the folds in the column ``fold`` of the table ``source``, as ``data split --folds`` writes it.

    Any values are names of folds; numbers are sorted as such. Images without one are those whose split is test. DataError if
    there is no such column, if an image has neither or both, if there are too few or too many folds, and if a class is in one
    fold alone; notes say what else is wrong with them, such as divided groups.
    """
    file = absolute_path(source)
    if not is_table(file) or not _has_column(file):
        what = "has no column 'fold'" if is_table(file) else "is not a table"
        raise DataError(
            f"--folds given, and {source!r} {what}",
            "a .csv or .parquet with a column 'fold', as stagewright data split --folds writes it",
            "give a number: --folds 5; or DATA as such a table",
        )
    listing = list_source(source, settings)
    if (listing.parts == VAL).any():
        raise _has_val(source)
    scanned = scan(listing.root, listing.paths, max_pixels=settings.max_pixels, workers=workers, progress=progress)
    if settings.near == "together":
        grouped, _ = group_similar(listing, workers=workers, progress=progress, max_pixels=settings.max_pixels)
    else:
        grouped = listing
    made = assemble(source, grouped, scanned, settings.model_copy(update={"val": 0.0, "test": 0.0}))
    names = list_table(file, settings.model_copy(update={"group": COLUMN})).groups
    assert names is not None
    by_path = dict(zip(listing.paths.to_pylist(), names.to_pylist(), strict=True))
    found = [by_path[path] for path in made.manifest.paths.to_pylist()]
    order = _sorted(set(found) - {None})
    at = {name: number for number, name in enumerate(order)}
    fold_of = np.array([-1 if name is None else at[name] for name in found], np.int16)
    _check_given(source, made.manifest, fold_of, order)
    kept = [note for note in made.notes if not note.startswith("split ")]
    return FoldData(made.manifest, fold_of, len(order), (*kept, *_divided(made.manifest, fold_of)))


def write_folds(folder: Path, data: FoldData) -> None:
    """Writes ``folds.csv`` (all images, with a column ``fold``), ``all.csv`` (all that are in folds, without parts) and
    ``foldKofN.csv`` for each fold to ``folder``, each completely or not at all.

    DataError if names cannot be stored in a table, StorageError if a file cannot be written.
    """
    manifest = data.manifest
    paths, _ = paths_from(absolute_path(folder), manifest)
    rows = np.flatnonzero(data.fold_of >= 0)
    inner, inner_paths = manifest.taken(rows), [paths[row] for row in rows.tolist()]
    for name, content in (
        ("folds.csv", columns_of(manifest, paths, fold_of=data.fold_of)),
        ("all.csv", columns_of(inner, inner_paths)),
    ):
        _put(folder / name, content)
    for fold in range(data.num_folds):
        parts = parts_of_fold(data.fold_of[rows], fold)
        place = folder / table_name(fold, data.num_folds)
        _put(place, columns_of(inner, inner_paths, parts=parts))
        if fold == 0:  # the others differ only in parts
            check_reads_back(place, inner, inner_paths, parts)


def table_names(num_folds: int) -> list[str]:
    """Returns the names of all files that :func:`write_folds` writes."""
    return ["folds.csv", "all.csv", *(table_name(fold, num_folds) for fold in range(num_folds))]


def table_name(fold: int, num_folds: int) -> str:
    """Returns the name of the table of a fold, which is counted from 0."""
    return f"{fold_name(fold, num_folds)}.csv"


def fold_name(fold: int, num_folds: int) -> str:
    """Returns ``fold2of5`` for the second fold, which is number 1."""
    return f"fold{fold + 1}of{num_folds}"


def parts_of_fold(fold_of: Folds, fold: int) -> Parts:
    """Returns the part of each image, (N,) int8, if ``fold`` is held out: it is test, the others are train."""
    return np.where(fold_of == fold, TEST, TRAIN).astype(np.int8)


def _put(place: Path, content: dict[str, list[str | None]]) -> None:
    temporary = temporary_name(place).with_suffix(".csv")
    try:
        write_rows(temporary, content)
        write_whole(place, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_no_files(source: str) -> None:
    if source.startswith("torchvision:") or is_pack_source(source):
        raise DataError(
            f"--folds with {source!r}, whose pictures are not files, so that the tables of the folds cannot list them",
            "a folder of pictures, or a table of them",
            "give the files from which it was made",
        )


def _check_parts(source: str, listing: Listing, settings: Data) -> None:
    """DataError if parts that DATA gives leave nothing to decide, or contradict ``settings``."""
    if (listing.parts == VAL).any():
        raise _has_val(source)
    has_test = bool((listing.parts == TEST).any())
    if has_test and "test" in settings.model_fields_set and settings.test:
        raise DataError(
            f"data.test={settings.test} with {source!r}, which has a test part of its own",
            "the test part of DATA, which stays out of the folds, or a share for one",
            "leave data.test out; or divide all pictures anew: --set data.split=none",
        )
    if has_test and settings.near == "together":
        raise DataError(
            f"data.near=together with {source!r}, whose test part is given and may hold near duplicates of the others",
            "near duplicates together in folds of all pictures",
            "leave data.near out; or divide all pictures anew: --set data.split=none",
        )


def _has_val(source: str) -> DataError:
    return DataError(
        f"--folds with {source!r}, which has a validation part of its own",
        "data without parts, or with train and test: each run takes its validation pictures from its own training pictures",
        "divide all pictures anew, whatever parts they have: --set data.split=none; or point at the train part alone",
    )


def _has_column(file: Path) -> bool:
    return COLUMN in [name.casefold() for name in column_names(file)]


def _sorted(names: set[str]) -> list[str]:
    """Returns names of folds in their order: as numbers where all of them are."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _check_given(source: str, manifest: Manifest, fold_of: Folds, order: Sequence[str]) -> None:
    test, paths = manifest.splits == TEST, manifest.paths
    for wrong, what in (
        ((fold_of < 0) & ~test, "have no fold and are not in the test part"),
        ((fold_of >= 0) & test, "have a fold and are in the test part"),
    ):
        if wrong.any():
            names = some((repr(paths[int(row)].as_py()) for row in np.flatnonzero(wrong)), 3)
            raise DataError(
                f"{count_text(int(wrong.sum()), 'picture')} of {source!r} {what}: {names}",
                "a fold for each picture outside of the test part, and none for those in it",
                "correct the column fold or split",
            )
    if not 2 <= len(order) <= MOST_FOLDS:
        raise DataError(
            f"the column 'fold' of {source!r} has {counted(len(order), 'value')}",
            f"2 to {MOST_FOLDS} folds",
            "write the folds with stagewright data split DATA --folds 5",
        )
    pairs = np.unique(np.stack([manifest.labels, fold_of], axis=1)[fold_of >= 0], axis=0)
    single = np.flatnonzero(np.bincount(pairs[:, 0], minlength=len(manifest.classes)) < 2)
    if len(single):
        raise DataError(
            f"{counted(len(single), 'class')} in fewer than two folds of {source!r}, so that there is nothing to train on when "
            f"it is held out: {some(repr(manifest.classes[int(label)]) for label in single)}",
            "pictures of every class in at least two folds",
            "write other folds with stagewright data split DATA --folds 5, or remove these classes",
        )


def _divided(manifest: Manifest, fold_of: Folds) -> list[str]:
    """Returns notes on groups and on identical images that are in several folds."""
    notes = []
    inside = np.flatnonzero(fold_of >= 0)
    copies = _in_several(np.unique(manifest.content[inside], return_inverse=True)[1], fold_of[inside])
    if copies:
        notes.append(f"{counted(copies, 'identical picture')} in several folds, so results look too good")
    if manifest.groups is not None:
        encoded = manifest.groups.take(pa.array(inside)).dictionary_encode().indices.fill_null(-1).to_numpy()
        known = encoded >= 0
        if groups := _in_several(encoded[known].astype(np.int64), fold_of[inside][known]):
            notes.append(f"{counted(groups, 'group')} in several folds, so results may be too good for new groups")
    return notes


def _in_several(units: NDArray[np.int64], fold_of: Folds) -> int:
    """Returns how many units have images in more than one fold."""
    pairs = np.unique(np.stack([units, fold_of.astype(np.int64)], axis=1), axis=0)
    return int((np.bincount(pairs[:, 0]) > 1).sum()) if len(pairs) else 0
