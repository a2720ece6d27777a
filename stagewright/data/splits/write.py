"""Makes a split or K folds of DATA and writes them as tables, and as folders of links, which can be used as DATA again.

This module guarantees that a written table reads back as the same images, classes and parts (this is checked before the
table gets its name), and that a split that DATA contains is replaced only on request.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from stagewright.data.account import Account
from stagewright.data.inspect.similar import group_similar
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.pack.remote import is_pack_source
from stagewright.data.partition import TEST, TRAIN, VAL, Parts
from stagewright.data.sources.assemble import Assembled, assemble
from stagewright.data.sources.folders import UNDECIDED, Listing, absolute_path
from stagewright.data.sources.local import list_source
from stagewright.data.sources.scan import Progress, scan
from stagewright.data.splits.folds import MOST_FOLDS, Folds
from stagewright.data.splits.links import Mode, build_links, check_links_folder
from stagewright.data.splits.summary import SplitSummary
from stagewright.data.splits.tables import check_reads_back, columns_of, copy_to, deal_manifest, paths_from, write_rows
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import remove_quietly, write_whole
from stagewright.text import counted, some

FORMATS = (".csv", ".parquet")


def split(  # the function behind `stagewright data split`: each keyword is one of its options
    source: str,
    settings: Data,
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
    """Splits the images of ``source`` like a run with ``settings``, writes the table ``out``, and returns a
    summary.

    The table (.csv or .parquet) has one row for each readable image, with the columns path, label, split, group (if there
    are groups) and hash.

    ``folds`` = K makes K folds instead: the table has a column with the fold, 1 to K, instead of the split. In addition,
    K tables ``NAME-fold1ofK`` to ``NAME-foldKofK`` are written; in each of them, one fold is val and the others are train.
    A test part is not divided into folds; if there is one, the table also has a column split.

    ``links`` is a folder in which ``train/CLASS/file`` is created for each image; with folds, ``fold1/train/CLASS/file``.
    ``mode`` selects symbolic links, hard links or copies. ``overwrite`` allows existing tables to be replaced. ``workers``
    and ``progress`` are passed to :func:`~stagewright.data.sources.scan.scan`; then ``progress`` counts the links.

    A split that DATA contains is kept; ``anew`` ignores it and makes a new one. ``settings.near`` keeps near duplicates in one
    split or fold, as groups of the table (:func:`~stagewright.data.inspect.similar.group_similar`). With folds, a test part
    is split off only if ``settings`` sets ``test`` explicitly.

    Raises DataError if the request would change a split that is kept, if ``out`` exists and ``overwrite`` is False, if
    ``links`` is not empty, and like list_source and :func:`~stagewright.data.splits.folds.deal`; StorageError if a file
    cannot be written.
    """
    out = absolute_path(out)
    links = None if links is None else absolute_path(links)
    _check_shares(settings, folds)
    tables = _table_names(out, folds)
    _check_places(source, tables, overwrite)
    if links is not None:
        check_links_folder(links, source if os.path.isdir(source) else None)
    made = load(source, settings, folds, anew, workers, progress)
    manifest, notes = made.manifest, list(made.notes)
    fold_of = None
    if folds is not None:
        fold_of, fold_notes = deal_manifest(manifest, folds, settings.split_seed)
        notes = [note for note in notes if not note.startswith("split ")]  # its number of training images is wrong now
        notes += fold_notes
    elif not len(manifest.rows("val")):
        notes.append("there is no val part: a run on this table splits its own val off from train (data.val)")
    paths, path_notes = paths_from(out.parent, manifest)
    notes += path_notes
    notes += _write_all(manifest, tables, paths, fold_of, links, mode, progress)
    return _summary(
        manifest, settings.split_seed, fold_of, folds, tables, links, len(made.excluded), made.account, tuple(notes)
    )


def _check_shares(settings: Data, folds: int | None) -> None:
    """Raises DataError if the shares leave nothing to train on, or do not fit together with folds."""
    if folds is not None and not 2 <= folds <= MOST_FOLDS:
        raise DataError(f"{counted(folds, 'fold')}", f"2 to {MOST_FOLDS} folds", "5 and 10 are usual")
    if folds is not None and "val" in settings.model_fields_set:
        raise DataError(
            f"a share of {settings.val} for val, and {folds} folds",
            f"one of the two: each fold is val once, which is 1/{folds} of the pictures",
            "leave out the share for val",
        )
    if folds is None and settings.val + settings.test >= 1:
        raise DataError(
            f"val {settings.val} and test {settings.test} leave nothing to train on",
            "shares whose sum is below 1",
            "for example 0.15 and 0.15",
        )
    if folds is None and settings.val == settings.test == 0:
        raise DataError(
            "no share for val and no share for test", "a share above 0 for at least one of them", "for example 0.15"
        )


def _table_names(out: Path, folds: int | None) -> list[Path]:
    """Returns the path of the table, and those of the tables of the folds."""
    if out.suffix.lower() not in FORMATS:
        raise DataError(
            f"a table named {out.name!r}", f"a name that ends in {' or '.join(FORMATS)}", "change the extension"
        )
    return [out, *(out.with_name(f"{out.stem}-fold{k}of{folds}{out.suffix}") for k in range(1, (folds or 0) + 1))]


def _check_places(source: str, tables: list[Path], overwrite: bool) -> None:
    """Raises DataError if a table would replace DATA, a folder, or, without ``overwrite``, an existing file."""
    existing = [table for table in tables if os.path.lexists(table)]
    own = Path(os.path.realpath(absolute_path(source)))
    if any(Path(os.path.realpath(table)) == own for table in existing):
        raise DataError(f"{own} is DATA itself", "another file for the split", "name another file with --out")
    if existing and not overwrite:
        raise DataError(
            f"{some(map(str, existing), 3)} {'exists' if len(existing) == 1 else 'exist'} already",
            "files that do not exist yet",
            "name another file with --out, or give --overwrite",
        )
    folders = [table for table in existing if table.is_dir()]
    if folders:
        raise DataError(f"{folders[0]} is a folder", "the name of a file", "name another file with --out")


def load(  # what `split` was given
    source: str,
    settings: Data,
    folds: int | None,
    anew: bool,
    workers: int,
    progress: Progress | None,
) -> Assembled:
    """Returns the manifest of ``source``, notes, and what was left out; with ``anew``, ignores the split of DATA."""
    if source.startswith("torchvision:") or is_pack_source(source):
        raise _no_files(source)
    listing = list_source(source, settings.model_copy(update={"split": "none"}) if anew else settings)
    if not anew:
        _check_room(source, listing, settings, folds)
    if folds is not None:
        test = settings.test if "test" in settings.model_fields_set else 0.0
        settings = settings.model_copy(update={"val": 0.0, "test": test})
    taken = replace(listing, parts=np.full_like(listing.parts, UNDECIDED)) if anew else listing
    if settings.near == "together":
        taken, found = group_similar(taken, workers=workers, progress=progress, max_pixels=settings.max_pixels)
    else:
        found = scan(taken.root, taken.paths, max_pixels=settings.max_pixels, workers=workers, progress=progress)
    made = assemble(source, taken, found, settings)
    given = _given(listing) if anew else ""
    ignored = (f"the split that DATA contains ({given}) is ignored",) if given else ()
    return made._replace(notes=(*made.notes, *ignored))


def _check_room(source: str, listing: Listing, settings: Data, folds: int | None) -> None:
    """Raises DataError if the requested shares or folds would change a split that DATA contains."""
    has_val, has_test = ((listing.parts == part).any() for part in (VAL, TEST))
    kept = {"val", "test"} if has_val else {"test"} if has_test else set()
    requested = [f"a share for {name}" for name in ("val", "test") if name in kept & settings.model_fields_set]
    if folds is not None and has_val:
        requested = [f"{folds} folds"]
    if settings.near == "together" and kept:
        requested.append("--near together")
    if requested:
        raise DataError(
            f"{source!r} contains a split already ({_given(listing)}), and {' and '.join(requested)} would change it",
            "the split as it is, or a new split of all pictures",
            "leave out these options to keep the split, or give --anew to make a new one",
        )


def _given(listing: Listing) -> str:
    """Returns the parts of the split that DATA contains and their sizes, as text; "" if it names only train."""
    sizes = np.bincount(listing.parts[listing.parts >= 0], minlength=len(SPLITS))
    named = ", ".join(f"{SPLITS[part]} {sizes[part]:,}" for part in np.flatnonzero(sizes))
    return named if sizes[1:].any() else ""


def _no_files(source: str) -> DataError:
    return DataError(
        f"the pictures of {source!r} are not files, so a table cannot list them",
        "a folder of pictures, or a table of them",
        "train on it directly; each run stores its split in its manifest.parquet",
    )


def _parts_of_fold(fold_of: Folds, fold: int) -> Parts:
    """Returns the part of each image, (N,) int8, if ``fold`` is val."""
    return np.where(fold_of < 0, TEST, np.where(fold_of == fold, VAL, TRAIN)).astype(np.int8)


def _write_all(
    manifest: Manifest,
    tables: list[Path],
    paths: list[str],
    fold_of: Folds | None,
    links: Path | None,
    mode: Mode,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Writes all tables and links and checks them before any table gets its final name; returns notes."""
    places = {table: table.with_name(f".{table.stem}.{os.getpid()}.part{table.suffix}") for table in tables}
    out, *fold_tables = tables
    parts_of = {out: manifest.splits} if fold_of is None else {}
    parts_of |= {table: _parts_of_fold(fold_of, at) for at, table in enumerate(fold_tables) if fold_of is not None}
    notes: tuple[str, ...] = ()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if fold_of is not None:
            write_rows(places[out], columns_of(manifest, paths, fold_of=fold_of))
        for table, parts in parts_of.items():
            write_rows(places[table], columns_of(manifest, paths, parts=parts))
        checked, parts = next(
            iter(parts_of.items())
        )  # one check is enough: the tables of the folds differ only in parts
        check_reads_back(places[checked], manifest, paths, parts)
        if links is not None:
            trees = {f"fold{at}": parts for at, parts in enumerate(parts_of.values(), 1)}
            notes = build_links(links, manifest, {"": manifest.splits} if fold_of is None else trees, mode, progress)
        for table, place in places.items():
            write_whole(table, partial(copy_to, place))
    except OSError as error:
        raise StorageError(
            f"cannot write the split to {out.parent}: {error.strerror or error}",
            "a folder that can be written",
            "check permissions and free space, or name another file with --out",
        ) from error
    finally:
        for place in places.values():
            remove_quietly(place)
    return notes


def _summary(
    manifest: Manifest,
    seed: int,
    fold_of: Folds | None,
    num_folds: int | None,
    tables: list[Path],
    links: Path | None,
    excluded: int,
    account: Account,
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
        account=account,
        tables=tuple(tables),
        links=links,
        notes=notes,
    )
