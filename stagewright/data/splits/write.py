"""Splitting: a split or K folds of DATA, written down as tables, and as folders of links, that are DATA themselves.

Owns two promises: a table that is written reads back as the same pictures, classes and parts, which is checked before
it appears; and a split that DATA brings is never made anew unless that is asked for.
"""

from __future__ import annotations

import binascii
import csv
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.data.dataset import load_dataset
from stagewright.data.images.decode import FileImages
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import TEST, TRAIN, VAL, Parts
from stagewright.data.sources.assemble import assemble, group_keys
from stagewright.data.sources.folders import TABLES, UNDECIDED, Listing, absolute_path, list_folder
from stagewright.data.sources.scan import DIGEST_BYTES, Progress, scan
from stagewright.data.sources.tables import list_table
from stagewright.data.sources.walk import Excluded
from stagewright.data.splits.folds import MOST_FOLDS, Folds, deal
from stagewright.data.splits.links import Mode, build_links, check_links_folder
from stagewright.data.splits.summary import SplitSummary
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import remove_quietly, write_whole
from stagewright.text import counted, some

FORMATS = (".csv", ".parquet")

Loaded = tuple[Manifest, tuple[str, ...], tuple[Excluded, ...]]


def split(
    source: str,
    settings: Data,
    seed: int,
    *,
    out: Path,
    links: Path | None = None,
    mode: Mode = "symlink",
    folds: int | None = None,
    anew: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
) -> SplitSummary:
    """Splits the pictures of ``source`` as a run with ``settings`` and ``seed`` would, and writes the table ``out``.

    The table (.csv or .parquet) has one row for each readable picture, with its path, label, split, group (if there are
    groups) and hash. With ``folds`` = K it has the fold, 1 to K, instead of the split (and a split too if there is a
    test part, which folds leave alone), and beside it stand K tables ``NAME-fold1ofK`` in which one fold validates and
    the others train. ``links`` is a folder to fill with ``train/CLASS/file`` in ``mode``; with folds, with
    ``fold1/train/CLASS/file``. ``workers`` and ``progress`` are those of :func:`~stagewright.data.dataset.load_dataset`.

    What DATA says of train, val and test is kept; with ``anew`` it is set aside. A share counts as asked for if it is set
    in ``settings``, not left at its default: with folds only such a ``test`` is split off.

    DataError if a split that is kept leaves no room for what is asked, if ``out`` exists and may not be overwritten, if
    ``links`` is not empty, or as from load_dataset and :func:`~stagewright.data.splits.folds.deal`; StorageError if a place
    cannot be written.
    """
    out = absolute_path(out)
    links = None if links is None else absolute_path(links)
    _check_shares(settings, folds)
    tables = _table_names(out, folds)
    _check_places(source, tables, overwrite)
    if links is not None:
        check_links_folder(links, source if os.path.isdir(source) else None)
    manifest, loaded_notes, excluded = _load(source, settings, seed, folds, anew, workers, progress)
    notes = list(loaded_notes)
    fold_of = None
    if folds is not None:
        fold_of, fold_notes = _deal(manifest, folds, seed)
        notes = [note for note in notes if not note.startswith("split ")]  # what it says of train is no longer so
        notes += fold_notes
    elif not len(manifest.rows("val")):
        notes.append("there is no val: a run on what is written here splits its own off train (data.val)")
    paths, path_notes = _paths_from(out.parent, manifest)
    notes += path_notes
    notes += _write_all(manifest, tables, paths, fold_of, links, mode)
    return _summary(manifest, seed, fold_of, folds, tables, links, len(excluded), tuple(notes))


def _check_shares(settings: Data, folds: int | None) -> None:
    """DataError for shares that leave nothing to train on, or that folds have no use for."""
    if folds is not None and not 2 <= folds <= MOST_FOLDS:
        raise DataError(f"{counted(folds, 'fold')}", f"2 to {MOST_FOLDS} folds", "5 and 10 are usual")
    if folds is not None and "val" in settings.model_fields_set:
        raise DataError(
            f"a share of {settings.val} for val, and {folds} folds",
            f"one of the two: each fold validates once, which is 1/{folds} of the pictures",
            "leave out the share for val",
        )
    if folds is None and settings.val + settings.test >= 1:
        raise DataError(
            f"val {settings.val} and test {settings.test} leave nothing to train on",
            "shares whose sum is below 1",
            "for example 0.15 and 0.15",
        )
    if folds is None and settings.val == settings.test == 0:
        raise DataError("no share for val and none for test", "a share above 0 for one of them", "for example 0.15")


def _table_names(out: Path, folds: int | None) -> list[Path]:
    """The table ``out``, and those of the folds."""
    if out.suffix.lower() not in FORMATS:
        raise DataError(f"a table named {out.name!r}", f"a name that ends in {' or '.join(FORMATS)}", "name it so")
    return [out, *(out.with_name(f"{out.stem}-fold{k}of{folds}{out.suffix}") for k in range(1, (folds or 0) + 1))]


def _check_places(source: str, tables: list[Path], overwrite: bool) -> None:
    there = [table for table in tables if os.path.lexists(table)]
    own = Path(os.path.realpath(absolute_path(source)))
    if any(Path(os.path.realpath(table)) == own for table in there):
        raise DataError(f"{own} is DATA itself", "another file for the split", "name another one")
    if there and not overwrite:
        raise DataError(
            f"{some(map(str, there), 3)} {'is' if len(there) == 1 else 'are'} there already",
            "files that do not exist yet",
            "name another file with --out, or give --overwrite",
        )
    folders = [table for table in there if table.is_dir()]
    if folders:
        raise DataError(f"{folders[0]} is a folder", "a file's name", "name another one")


def _load(
    source: str, settings: Data, seed: int, folds: int | None, anew: bool, workers: int, progress: Progress | None
) -> Loaded:
    """The pictures of ``source`` with their parts, notes, and what is left out; with ``anew``, whatever DATA says."""
    if source.startswith("torchvision:"):
        raise _no_files(source)
    place = absolute_path(source)
    listing: Listing | None = None
    if source != "digits" and place.is_dir():
        listing = list_folder(place)
    elif place.is_file() and place.suffix.lower() in TABLES:
        listing = list_table(place, settings.model_copy(update={"split": "none"}) if anew else settings)
    if listing is not None and not anew:
        _check_room(source, listing, settings, folds)
    if folds is not None:
        test = settings.test if "test" in settings.model_fields_set else 0.0
        settings = settings.model_copy(update={"val": 0.0, "test": test})
    if listing is not None and anew:
        open_ = replace(listing, parts=np.full_like(listing.parts, UNDECIDED))
        found = scan(open_.root, open_.paths, workers=workers, progress=progress)
        manifest, notes, excluded = assemble(source, open_, found, settings, seed)
        given = _given(listing)
        set_aside = f"the split that DATA gives ({given}) is set aside"
        return manifest, (*notes, set_aside) if given else notes, excluded
    dataset = load_dataset(source, settings, seed, workers=workers, progress=progress)
    if not isinstance(dataset.images, FileImages):
        raise _no_files(source)
    return dataset.manifest, dataset.notes, dataset.excluded


def _check_room(source: str, listing: Listing, settings: Data, folds: int | None) -> None:
    """DataError if DATA brings parts that what is asked for would have to change."""
    has_val, has_test = ((listing.parts == part).any() for part in (VAL, TEST))
    kept = {"val", "test"} if has_val else {"test"} if has_test else set()
    asked = [f"a share for {name}" for name in ("val", "test") if name in kept & settings.model_fields_set]
    if folds is not None and has_val:
        asked = [f"{folds} folds"]
    if asked:
        raise DataError(
            f"{source!r} brings a split of its own ({_given(listing)}), and {' and '.join(asked)} would change it",
            "the split as it is, or one made anew of all its pictures",
            "leave them out to keep it, or ask for a new one (--anew)",
        )


def _given(listing: Listing) -> str:
    """The parts that DATA names, if these are more than train."""
    sizes = np.bincount(listing.parts[listing.parts >= 0], minlength=len(SPLITS))
    if not sizes[1:].any():
        return ""
    return ", ".join(f"{SPLITS[part]} {sizes[part]:,}" for part in np.flatnonzero(sizes))


def _no_files(source: str) -> DataError:
    return DataError(
        f"the pictures of {source!r} are not files that a table could name",
        "a folder of pictures, or a table of them",
        "train on it as it is; its split is kept in the run's manifest.parquet",
    )


def _deal(manifest: Manifest, num_folds: int, seed: int) -> tuple[Folds, tuple[str, ...]]:
    """The fold of each picture, -1 for those that test; and notes."""
    raw = np.frombuffer(binascii.unhexlify("".join(manifest.hashes.to_pylist())), np.uint8)
    content = np.ascontiguousarray(raw.reshape(-1, DIGEST_BYTES)[:, :8]).view("<u8").ravel().astype(np.uint64)
    rows = np.flatnonzero(manifest.splits != TEST)
    groups = None if manifest.groups is None else group_keys(manifest.groups, content)[rows]
    folds = np.full(len(manifest), -1, np.int16)
    folds[rows], notes = deal(content[rows], manifest.labels[rows], num_folds, seed, manifest.classes, groups)
    return folds, notes


def _parts_of_fold(fold_of: Folds, fold: int) -> Parts:
    """Train, val and test when ``fold`` validates."""
    return np.where(fold_of < 0, TEST, np.where(fold_of == fold, VAL, TRAIN)).astype(np.int8)


def _paths_from(folder: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """The pictures' paths relative to ``folder``, absolute if the two have nothing in common; and a note if so."""
    root, base = os.path.abspath(manifest.root), str(folder)
    inside = Path(root).is_relative_to(base)
    if not inside:  # the way up must neither start from a link to a folder nor end in one
        root, base = os.path.realpath(root), os.path.realpath(base)
    try:
        shared = os.path.commonpath([root, base])
    except ValueError:  # on two drives
        shared = ""
    near = inside or os.path.dirname(shared) != shared
    prefix = os.path.relpath(root, base) if near else root
    notes = []
    if not near:
        notes.append(f"the paths are absolute, since {folder} and the pictures in {root} have no folder in common")
    elif prefix.startswith(".."):
        notes.append(f"the paths lead out of {folder} to {prefix}: move table and pictures together, or neither")
    joined = (os.path.normpath(os.path.join(prefix, path)).replace(os.sep, "/") for path in manifest.paths.to_pylist())
    return list(joined), notes


def _write_all(
    manifest: Manifest, tables: list[Path], paths: list[str], fold_of: Folds | None, links: Path | None, mode: Mode
) -> tuple[str, ...]:
    """Writes and checks all tables and links before any of them gets its name; returns notes."""
    places = {table: table.with_name(f".{table.stem}.{os.getpid()}.part{table.suffix}") for table in tables}
    out, *fold_tables = tables
    parts_of = {out: manifest.splits} if fold_of is None else {}
    parts_of |= {table: _parts_of_fold(fold_of, at) for at, table in enumerate(fold_tables) if fold_of is not None}
    notes: tuple[str, ...] = ()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if fold_of is not None:
            _write(places[out], _columns(manifest, paths, fold_of=fold_of))
        for table, parts in parts_of.items():
            _write(places[table], _columns(manifest, paths, parts=parts))
        checked, parts = next(iter(parts_of.items()))  # the tables of the folds differ in their parts alone
        _check_reads_back(places[checked], manifest, paths, parts)
        if links is not None:
            trees = {f"fold{at}": parts for at, parts in enumerate(parts_of.values(), 1)}
            notes = build_links(links, manifest, {"": manifest.splits} if fold_of is None else trees, mode)
        for table, place in places.items():
            write_whole(table, partial(_copy, place))
    except OSError as error:
        raise StorageError(
            f"the split cannot be written to {out.parent}: {error.strerror or error}",
            "a folder that can be written",
            "check permissions and free space, or name another place",
        ) from error
    finally:
        for place in places.values():
            remove_quietly(place)
    return notes


def _copy(file: Path, out: BinaryIO) -> None:
    with file.open("rb") as opened:
        shutil.copyfileobj(opened, out)


def _columns(
    manifest: Manifest, paths: list[str], *, parts: Parts | None = None, fold_of: Folds | None = None
) -> dict[str, list[str | None]]:
    """The columns of a table with a split, or of the table of all folds."""
    columns: dict[str, list[str | None]] = {
        "path": [*paths],
        "label": [manifest.classes[label] for label in manifest.labels.tolist()],
    }
    if fold_of is not None:
        columns["fold"] = [str(fold + 1) if fold >= 0 else None for fold in fold_of.tolist()]
        if (fold_of < 0).any():
            parts = np.where(fold_of < 0, TEST, TRAIN).astype(np.int8)
    if parts is not None:
        columns["split"] = [SPLITS[part] for part in parts.tolist()]
    if manifest.groups is not None:
        columns["group"] = manifest.groups.to_pylist()
    return columns | {"hash": manifest.hashes.to_pylist()}


def _write(file: Path, columns: dict[str, list[str | None]]) -> None:
    if file.suffix.lower() == ".parquet":
        typed = {name: pa.array(column, pa.string()) for name, column in columns.items()}
        if "fold" in typed:
            typed["fold"] = typed["fold"].cast(pa.int16())
        pq.write_table(pa.table(typed), file, compression="zstd")
    else:
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def _check_reads_back(file: Path, manifest: Manifest, paths: list[str], parts: Parts) -> None:
    """DataError if the table would not be read as it was meant: spaces at the ends of names are trimmed, for example."""
    read = list_table(file, Data())
    groups = [None] * len(read.paths) if read.groups is None else read.groups.to_pylist()
    folder = str(file.parent)
    found = {
        os.path.normpath(os.path.join(folder, path)): rest
        for path, *rest in zip(
            read.paths.to_pylist(), read.labels.to_pylist(), read.parts.tolist(), groups, strict=True
        )
    }
    groups = [None] * len(paths) if manifest.groups is None else manifest.groups.to_pylist()
    rows = zip(paths, manifest.labels.tolist(), parts.tolist(), groups, strict=True)
    lost = [
        path
        for path, label, part, group in rows
        if found.get(os.path.normpath(os.path.join(folder, path))) != [manifest.classes[label], part, group]
    ]
    if lost:
        raise DataError(
            f"{counted(len(lost), 'picture')} would not be read from a table as they are, e.g. {some(map(repr, lost), 3)}",
            "names of files, classes and groups without spaces at their ends and without backslashes",
            "rename them",
        )


def _summary(
    manifest: Manifest,
    seed: int,
    fold_of: Folds | None,
    num_folds: int | None,
    tables: list[Path],
    links: Path | None,
    excluded: int,
    notes: tuple[str, ...],
) -> SplitSummary:
    names, at = [*SPLITS], manifest.splits.astype(np.int64)
    if fold_of is not None and num_folds is not None:
        names = [*(f"fold {k}" for k in range(1, num_folds + 1)), "test"]
        at = np.where(fold_of < 0, num_folds, fold_of).astype(np.int64)
    pictures = np.zeros((len(names), len(manifest.classes)), np.int64)
    np.add.at(pictures, (at, manifest.labels), 1)
    shown = np.flatnonzero(pictures.sum(1))
    groups = None
    if manifest.groups is not None:
        groups = tuple(
            len(manifest.groups.take(pa.array(np.flatnonzero(at == row))).drop_null().unique()) for row in shown
        )
    return SplitSummary(
        source=manifest.source,
        seed=seed,
        classes=manifest.classes,
        num_folds=num_folds,
        parts=tuple(names[row] for row in shown),
        pictures=pictures[shown],
        groups=groups,
        excluded=excluded,
        tables=tuple(tables),
        links=links,
        notes=notes,
    )
