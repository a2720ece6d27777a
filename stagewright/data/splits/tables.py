"""The tables of a split or of folds: their columns, writing one, and the check that it reads back as the same images."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import TEST, TRAIN, Parts
from stagewright.data.sources.assemble import group_keys
from stagewright.data.sources.tables import list_table
from stagewright.data.splits.folds import Folds, deal
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.text import counted, path_cell, some, table_cell


def deal_manifest(manifest: Manifest, num_folds: int, seed: int) -> tuple[Folds, tuple[str, ...]]:
    """Returns the fold of each image, (N,) int16 from 0, or -1 if it is in the test part; and notes."""
    content = manifest.content
    rows = np.flatnonzero(manifest.splits != TEST)
    groups = None if manifest.groups is None else group_keys(manifest.groups, content)[rows]
    folds = np.full(len(manifest), -1, np.int16)
    folds[rows], notes = deal(content[rows], manifest.labels[rows], num_folds, seed, manifest.classes, groups)
    return folds, notes


def paths_from(folder: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Returns the paths of the images relative to ``folder``, or absolute if the two have no folder in common; and notes.

    The notes report paths that are absolute or lead out of ``folder``.
    """
    root, base = os.path.abspath(manifest.root), str(folder)
    inside = Path(root).is_relative_to(base)
    if not inside:  # ".." is the parent of a link's target, so links to folders must be resolved first
        root, base = os.path.realpath(root), os.path.realpath(base)
    try:
        shared = os.path.commonpath([root, base])
    except ValueError:  # the two are on different drives
        shared = ""
    near = inside or os.path.dirname(shared) != shared
    prefix = os.path.relpath(root, base) if near else root
    notes = []
    if not near:
        notes.append(f"the paths are absolute, because {folder} and the pictures in {root} have no folder in common")
    elif prefix.startswith(".."):
        notes.append(f"the paths lead out of {folder} to {prefix}: if you move the table, move the pictures with it")
    joined = (os.path.normpath(os.path.join(prefix, path)).replace(os.sep, "/") for path in manifest.paths.to_pylist())
    return list(joined), notes


def columns_of(
    manifest: Manifest, paths: list[str], *, parts: Parts | None = None, fold_of: Folds | None = None
) -> dict[str, list[str | None]]:
    """Returns the columns of a table, by name: with ``parts`` those of a split, with ``fold_of`` those of all folds."""
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


def write_rows(file: Path, columns: dict[str, list[str | None]]) -> None:
    """Writes the table ``file``, .csv or .parquet, which is on disk when this returns; not atomic."""
    if file.suffix.lower() == ".parquet":
        typed = {name: pa.array(column, pa.string()) for name, column in columns.items()}
        if "fold" in typed:
            typed["fold"] = typed["fold"].cast(pa.int16())
        pq.write_table(pa.table(typed), file, compression="zstd")
    else:
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                path, *others = row
                writer.writerow([path_cell(path or ""), *(table_cell(cell) if cell else cell for cell in others)])
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def check_reads_back(file: Path, manifest: Manifest, paths: list[str], parts: Parts) -> None:
    """Raises DataError if the table reads back differently, e.g. because spaces at the ends of names are trimmed."""
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
            f"{counted(len(lost), 'picture')} cannot be stored in a table exactly as named, e.g. {some(map(repr, lost), 3)}",
            "names of files, classes and groups without spaces at their ends and without backslashes",
            "rename them",
        )


def copy_to(file: Path, out: BinaryIO) -> None:
    """Copies the content of ``file`` to ``out``."""
    with file.open("rb") as opened:
        shutil.copyfileobj(opened, out)
