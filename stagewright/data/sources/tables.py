"""Lists images and classes from a CSV or Parquet table with one row per image.

Defines which column names are recognized. All values are read as text (:mod:`stagewright.data.sources.table_text`). Every row
that is left out has a reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.account import Omission, by_reason
from stagewright.data.sources.embedded import Embedded, image_column, unpack
from stagewright.data.sources.folder_names import PART_WORDS
from stagewright.data.sources.folders import TABLES, UNDECIDED, Listing
from stagewright.data.sources.match_paths import Match, match_files
from stagewright.data.sources.other_tasks import refuse_boxes, refuse_several_flags, refuse_values
from stagewright.data.sources.table_text import Place, as_text, read_text
from stagewright.data.sources.tree import DiskTree, Tree
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.name_pattern import NamePattern
from stagewright.recipe.recipe import Data
from stagewright.storage.files import user_path
from stagewright.storage.parquet import one_array
from stagewright.text import counted, nearest, some

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

PATH_NAMES = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path", "img")
PATH_NAMES += ("image_id", "id", "name")
LABEL_NAMES = ("label", "labels", "class", "class_name", "classname", "category", "breed", "species", "target")
GROUP_NAMES = ("site", "location", "group", "patient", "sequence", "camera")
GROUP_NAMES += tuple(f"{name}_id" for name in GROUP_NAMES)
SPLIT_NAMES = ("split", "subset", "partition", "set")

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Columns:
    """The names of the columns that are used; ``one_hot`` is used if ``label`` is None."""

    path: str
    label: str | None
    one_hot: tuple[str, ...]
    group: str | None
    split: str | None

    def note(self, file: Place) -> str:
        """A note on which columns are used."""
        classes = f"column '{self.label}'" if self.label else f"the one-hot columns {some(self.one_hot)}"
        text = f"{file.name}: paths from column '{self.path}', classes from {classes}"
        return text + (f", train, val and test from column '{self.split}'" if self.split else "")


def is_table(path: Path) -> bool:
    """Whether ``path`` is a regular file with the extension of a table."""
    return path.suffix.lower() in TABLES and os.path.isfile(path)


def list_table(file: Path, settings: Data, files: Sequence[Path] = (), beside: Tree | None = None) -> Listing:
    """Lists the existing images that the table ``file`` names; DataError if a column is missing or no file exists.

    Images inside Parquet files are unpacked (:mod:`stagewright.data.sources.embedded`); ``files`` are then all Parquet files
    of a data set, and ``file`` is their folder. ``beside`` is what lies beside the table; default: its folder.
    """
    unpacked = unpack(files or [file], settings.path) if files or file.suffix.lower() == ".parquet" else None
    if unpacked is not None:
        return list_embedded(file, unpacked, settings)
    table, base = read_text(file), _image_folder(file, settings, beside)

    def match(names: Sequence[str]) -> Match:
        return match_files(base, [_expand_home(base, name) for name in names])

    return _listed(file, table, settings, base.place, match)


def list_embedded(file: Place, embedded: Embedded, settings: Data) -> Listing:
    """Lists the images inside of Parquet files: of ``file``, or of all in this place. Errors as for :func:`list_table`."""
    table, settings = as_text(file, embedded.table), _settings_of(file, embedded, settings)
    note = f"the pictures inside of {file.name} {embedded.where}"
    return _listed(file, table, settings, embedded.root, lambda names: Match(list(names)), (note,))


def _listed(
    file: Place,
    table: pa.Table,
    settings: Data,
    base: str,
    match_names: Callable[[Sequence[str]], Match],
    notes: tuple[str, ...] = (),
) -> Listing:
    """Lists the images below ``base`` that ``table`` names, of which ``match_names`` finds the files."""
    columns = _find_columns(file, table, settings)
    labels, left_out = _classes(file, table, columns)
    names = table[columns.path].to_pylist()
    refuse_boxes(file, table, names)
    for row in [row for row, name in enumerate(names) if not name and row not in left_out]:
        left_out[row] = f"no path in column '{columns.path}'"
    rows = [row for row in range(len(names)) if row not in left_out]
    match = match_names([names[row] for row in rows])
    left_out |= {rows[at]: reason for at, reason in match.reasons.items()}
    found = {row: path for row, path in zip(rows, match.paths, strict=True) if path is not None}
    repeated, repeat_notes = _repeated_files(found, labels)
    left_out |= {row: reason for row, reason in repeated.items() if reason}
    used_rows = [row for row in found if row not in repeated]
    if not used_rows:
        raise _no_files(file, base, names, left_out)
    listing = Listing.from_unsorted(
        base,
        pa.array([found[row] for row in used_rows], pa.string()),
        labels.take(pa.array(used_rows)),
        _parts(file, table, columns.split)[used_rows],
        _groups(table, columns.group, used_rows),
    )
    every = [columns.note(file), *notes, *match.notes, *_empty_class_notes(labels, listing.labels), *repeat_notes]
    excluded = tuple(Excluded(names[row] or f"row {row + 1:,}", left_out[row]) for row in sorted(left_out))
    return replace(listing, group_name=columns.group or "", notes=tuple(every), excluded=excluded)


@dataclass(frozen=True)
class _TablePaths:
    """The images that a table names, whether it has classes or not."""

    files: list[Path]
    left_out: tuple[Omission, ...]
    notes: tuple[str, ...]


def list_paths(file: Path, settings: Data) -> _TablePaths:
    """Returns the files that the table ``file`` names, in the order of its rows; only its paths are used. A file in several rows
    comes once. DataError if there is no column of paths, or if no file exists."""
    column, names = path_column(file, settings) or ("", [])
    base = _image_folder(file, settings)
    match = match_files(base, [_expand_home(base, name) for name in names])
    reasons = {row: reason if names[row] else f"no path in column '{column}'" for row, reason in match.reasons.items()}
    files = [Path(base.join(path)) for path in dict.fromkeys(match.paths) if path is not None]
    if not files:
        raise _no_files(file, base.place, names, reasons, classes=False)
    lost = by_reason((names[row] or f"row {row + 1:,}", reasons[row]) for row in sorted(reasons))
    return _TablePaths(files, lost, (f"{file.name}: paths from column '{column}'", *match.notes))


def path_column(file: Path, settings: Data) -> tuple[str, list[str]] | None:
    """Returns the column of paths in the table ``file`` and its values, row by row; None if it is a Parquet file that contains
    its images. DataError if there is no such column."""
    if file.suffix.lower() == ".parquet" and image_column(file, settings.path) is not None:
        return None
    table = read_text(file)
    column = _column(file, table.column_names, settings.path, PATH_NAMES, "path")
    if column is None:
        raise _no_column(file, table.column_names, "path")
    return column, table[column].to_pylist()


def _settings_of(file: Place, embedded: Embedded, settings: Data) -> Data:
    """Returns ``settings`` with the columns that the Parquet file itself describes."""
    if settings.images is not None:
        raise DataError(
            f"data.images={settings.images} with {file}, which contains its pictures",
            "data.images with a table of paths",
            "leave it out",
        )
    known = {name.casefold() for name in embedded.table.column_names} & set(LABEL_NAMES)
    by_feature = settings.label is None and not known and len(embedded.class_columns) == 1
    label = embedded.class_columns[0] if by_feature else settings.label
    return settings.model_copy(update={"path": embedded.column, "label": label})


def _find_columns(file: Place, table: pa.Table, settings: Data) -> _Columns:
    names = table.column_names
    path = _column(file, names, settings.path, PATH_NAMES, "path")
    split = _column(file, names, settings.split, SPLIT_NAMES, "split")
    if split and settings.split is None and split.casefold() != "split" and _unknown_parts(table[split]):
        split = None  # a column named "set" or "partition" may mean something else
    if isinstance(settings.label, NamePattern):
        raise DataError(
            f"data.label={settings.label} with {file}, a table, whose classes are in a column",
            "a pattern of classes with a folder of files",
            "name the column: --set data.label=NAME; or point at the folder of the images",
        )
    group = None
    if not isinstance(settings.group, NamePattern):  # list_source reads the names
        group = _column(file, names, settings.group, GROUP_NAMES, "group")
    free = [name for name in names if name not in (path, split, group)]
    label = _column(file, free if settings.label is None else names, settings.label, LABEL_NAMES, "label")
    one_hot = () if label else tuple(name for name in free if _is_flag(table[name]) and not _is_property(name))
    if label is None and path is not None and (candidates := _label_candidates(table, free)):
        raise _no_label(file, candidates, one_hot)
    if path is None or (label is None and len(one_hot) < 2):
        raise _no_column(file, names, "path" if path is None else "label")
    group = None if group == label else group
    return _Columns(path, label, one_hot, group, split)


def _no_column(file: Place, names: Sequence[str], kind: Literal["path", "label"]) -> DataError:
    known, what, other = {
        "path": (PATH_NAMES, "of paths", ""),
        "label": (
            LABEL_NAMES,
            "of classes, nor one-hot columns of 0 and 1,",
            "; or one-hot columns, one for each class",
        ),
    }[kind]
    guess = next((near for name in names if (near := nearest(name, known))), "")
    return DataError(
        f"{file} has no column {what} that is recognized by its name; its columns are {some(names, 30)}{guess}",
        f"a column named {some(known, 20)}{other}",
        f"name the column: --set data.{kind}=NAME (the first row of a CSV must have the column names)",
    )


_PROPERTY_WORDS = frozenset(
    ("is", "has", "was", "sex", "gender", "male", "female", "man", "woman", "age", "flag", "valid", "public", "private")
)
"""Words in names of columns of 0 and 1 that are a property of the image or its subject, and not a class."""


def _is_property(name: str) -> bool:
    words = set(re.split(r"[^a-z0-9]+", name.casefold()))
    return bool(words & _PROPERTY_WORDS) or any(word in PART_WORDS for word in words)


def _label_candidates(table: pa.Table, names: Sequence[str]) -> list[str]:
    """Returns the columns of text that may be the classes: two values or more, of which most come several times."""
    found = []
    known = {*PATH_NAMES, *GROUP_NAMES, *SPLIT_NAMES}
    for name in [name for name in names if name.casefold() not in known]:
        values = [value for value in table[name].to_pylist() if value]
        kinds = set(values)
        numeric = all(_NUMBER.fullmatch(value) for value in kinds)
        if not numeric and not _is_flag(table[name]) and 2 <= len(kinds) <= max(2, len(values) // 2):
            found.append(name)
    return found


_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")


def _no_label(file: Place, candidates: list[str], one_hot: tuple[str, ...]) -> DataError:
    others = f", or the columns of 0 and 1 ({some(one_hot, 5)})" if len(one_hot) > 1 else ""
    places = some(map(repr, candidates), 8)
    return DataError(
        f"{file} has no column whose name says that it holds the classes; they may be in {places}{others}",
        f"a column named {some(LABEL_NAMES, 20)}; or one-hot columns without other columns of text",
        f"name the column: --set data.label={candidates[0]!r}",
    )


def _column(file: Place, names: Sequence[str], requested: str | None, known: Sequence[str], kind: str) -> str | None:
    """Returns the column ``requested`` for, else the first of the ``known`` names that exists; letter case is ignored.

    Returns None if none of the known names exists. DataError if the table has no column ``requested``.
    """
    if requested == "none" and kind in ("group", "split"):
        return None
    folded = {name.casefold().replace(" ", "_").replace("-", "_"): name for name in reversed(names)}
    if requested is None:
        return next((folded[name] for name in known if name in folded), None)
    if requested in names:
        return requested
    if requested.casefold() in folded:
        return folded[requested.casefold()]
    raise DataError(
        f"{file} has no column {requested!r}{nearest(requested, names)}",
        f"its columns: {some(names, 30)}",
        f"correct data.{kind}, or leave it out to use the usual column names",
    )


_ONES = ("1", "1.0", "true")
_ZEROS = ("0", "0.0", "false")


def _is_flag(column: pa.ChunkedArray) -> bool:
    return set(pc.unique(pc.utf8_lower(column)).to_pylist()) <= {*_ONES, *_ZEROS}


def _classes(file: Place, table: pa.Table, columns: _Columns) -> tuple[pa.StringArray, dict[int, str]]:
    """Returns the class name of each row, and the reasons of rows without a class."""
    if columns.label is not None:
        labels = one_array(table[columns.label])
        refuse_values(file, columns.label, labels.to_pylist())
        blank = np.flatnonzero(pc.equal(labels, "").to_numpy(zero_copy_only=False))
        return labels, {int(row): f"no class in column '{columns.label}'" for row in blank}
    flags = [pc.is_in(pc.utf8_lower(table[name]), pa.array(_ONES)).to_numpy() for name in columns.one_hot]
    matrix = np.stack(flags, axis=1)
    count = matrix.sum(1)
    refuse_several_flags(file, columns.one_hot, int((count > 1).sum()), len(count))
    if (count == 1).sum() < len(count) / 2:
        raise DataError(
            f"the columns {some(columns.one_hot)} have values 0 and 1, but only {(count == 1).sum():,} of {len(count):,} rows "
            "have exactly one 1 in them",
            "a column of classes, or one-hot columns with one 1 in each row",
            "name the column of classes: --set data.label=NAME",
        )
    left_out = {int(row): "no class: none of the one-hot columns is 1" for row in np.flatnonzero(count == 0)}
    for row in np.flatnonzero(count > 1).tolist():
        left_out[row] = f"several classes: {some(np.array(columns.one_hot)[matrix[row]].tolist())}"
    return pa.array(columns.one_hot).take(pa.array(matrix.argmax(1))), left_out


def _image_folder(file: Path, settings: Data, beside: Tree | None = None) -> Tree:
    """Returns the folder that the table's paths are relative to; DataError if ``data.images`` is not a folder."""
    beside = beside or DiskTree(file.parent)
    if settings.images is None:
        return beside
    if beside.is_folder(settings.images):
        return beside.below(settings.images)
    if os.path.isdir(place := user_path(settings.images)):
        return DiskTree(place)
    raise DataError(
        f"there is no folder {settings.images!r} for the pictures of {file}",
        f"an absolute path, or a path relative to {beside.place} or to the current folder",
        "correct data.images",
    )


def _expand_home(base: Tree, name: str) -> str:
    """Expands ``~/`` in ``name`` to the home folder, unless ``base`` has a folder called ``~``."""
    return os.path.expanduser(name) if name.startswith("~/") and not base.is_folder("~") else name


def _parts(file: Place, table: pa.Table, column: str | None) -> NDArray[np.int8]:
    """Returns the part of each row (N,), UNDECIDED without a split column; DataError for unknown words."""
    if column is None:
        return np.full(len(table), UNDECIDED, np.int8)
    unknown = _unknown_parts(table[column])
    if unknown:
        raise DataError(
            f"column '{column}' of {file} has values other than train, val and test: {some(unknown)}",
            ", ".join(PART_WORDS),
            "correct the values, or let stagewright make the split: --set data.split=none",
        )
    words = pc.unique(table[column])
    parts = np.array([PART_WORDS[word.casefold()] for word in words.to_pylist()], np.int8)
    return parts[pc.index_in(table[column], words).to_numpy()]


def _unknown_parts(column: pa.ChunkedArray) -> list[str]:
    counts = Counter(column.to_pylist())
    return [
        f"{word!r} ({counted(count, 'row')})" for word, count in counts.items() if word.casefold() not in PART_WORDS
    ]


def _groups(table: pa.Table, column: str | None, rows: list[int]) -> pa.StringArray | None:
    if column is None:
        return None
    groups = one_array(table[column]).take(pa.array(rows))
    return pc.if_else(pc.equal(groups, ""), pa.scalar(None, pa.string()), groups)


def _repeated_files(found: dict[int, str], labels: pa.StringArray) -> tuple[dict[int, str], list[str]]:
    """Returns the rows to drop because several rows name the same file, and notes.

    The value is a reason if the rows of the file have different classes (all of them are dropped), else empty (the first
    row is used).
    """
    repeated = {path for path, count in Counter(found.values()).items() if count > 1}
    rows_by_path: dict[str, list[int]] = {}
    for row, path in found.items():
        if path in repeated:
            rows_by_path.setdefault(path, []).append(row)
    dropped: dict[int, str] = {}
    for rows in rows_by_path.values():
        classes = sorted({labels[row].as_py() for row in rows})
        if len(classes) > 1:
            dropped |= dict.fromkeys(rows, f"several classes for one file: {some(classes)}")
        else:
            dropped |= dict.fromkeys(rows[1:], "")
    used_once = len(rows_by_path) - len({found[row] for row, reason in dropped.items() if reason})
    notes = [f"{counted(used_once, 'file')} in several rows of the same class: each is used once"] if used_once else []
    return dropped, notes


def _empty_class_notes(before: pa.StringArray, after: pa.StringArray) -> list[str]:
    empty = sorted(set(before.unique().to_pylist()) - set(after.unique().to_pylist()) - {""})
    return [f"left out {counted(len(empty), 'class')} of the table without a picture: {some(empty)}"] if empty else []


def _no_files(file: Place, base: str, names: list[str], left_out: dict[int, str], *, classes: bool = True) -> DataError:
    tried = (f"{names[row] or f'row {row + 1}'} ({left_out[row]})" for row in sorted(left_out))
    return DataError(
        f"none of the {len(names):,} rows of {file} leads to a file{' with a class' if classes else ''} in {base}: "
        f"{some(tried, 3)}",
        f"paths relative to the folder of the table, or to data.images{'; a class in every row' if classes else ''}",
        "set the folder of the pictures: --set data.images=FOLDER",
    )
