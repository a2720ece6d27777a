"""Listing: files with their classes, as folders or a table give them, before any of them is opened.

Owns what counts as train, val and test by name, and which files are passed over without a look.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.errors import DataError
from stagewright.storage.files import user_path
from stagewright.text import counted, some

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

UNDECIDED = -1

PART_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
}

TABLES = frozenset({".csv", ".tsv", ".parquet"})

# Thumbnails and remains that operating systems and storage boxes leave behind; hidden names (.x) are passed over too.
_FOREIGN = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def place_of(source: str | Path) -> Path:
    """The absolute path that DATA, a folder or a file, names (:func:`~stagewright.storage.files.user_path`)."""
    return Path(os.path.abspath(user_path(source)))


@dataclass(frozen=True)
class Excluded:
    """A file or a row that DATA names and the run leaves out."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Listing:
    """Files and their classes, sorted by path, in columns of equal length."""

    root: str
    paths: pa.StringArray
    """Relative to ``root``, with ``/``; no path twice."""
    labels: pa.StringArray
    """The class by name."""
    parts: NDArray[np.int8]
    """TRAIN, VAL, TEST as DATA says, or UNDECIDED."""
    groups: pa.StringArray | None = None
    group_name: str = ""
    """What the groups are called (a table's column)."""
    notes: tuple[str, ...] = ()
    excluded: tuple[Excluded, ...] = ()

    @classmethod
    def of(
        cls,
        root: str,
        paths: pa.StringArray,
        labels: pa.StringArray,
        parts: NDArray[np.int8],
        groups: pa.StringArray | None = None,
    ) -> Listing:
        """A listing of unsorted columns. Names of classes that differ in their Unicode form alone become one."""
        order = pc.sort_indices(paths)
        labels = pc.utf8_normalize(labels, form="NFC").take(order)
        return cls(
            root, paths.take(order), labels, parts[order.to_numpy()], None if groups is None else groups.take(order)
        )


@dataclass
class Walk:
    """The files below a folder, and what was passed over."""

    files: list[str] = field(default_factory=list)
    """Relative to the folder, with ``/``."""
    ignored: int = 0
    """Hidden and foreign files and folders (a folder counts as one)."""
    excluded: list[Excluded] = field(default_factory=list)
    """Folders that cannot be opened, names that are not Unicode."""


def walk(folder: str, below: str = "") -> Walk:
    """All files in ``folder``/``below``, at any depth, in no particular order; their paths are relative to ``folder``.

    Links are followed, except to a folder that they lie in.
    """
    found = Walk()
    parents = [os.path.join(folder, parent) for parent in PurePath(below).parents]
    stack = [(below, tuple(_identity(parent) for parent in parents))]
    while stack:
        inner, above = stack.pop()
        try:
            here = _identity(os.path.join(folder, inner))
            entries = list(os.scandir(os.path.join(folder, inner)))
        except OSError as error:
            found.excluded.append(
                Excluded(_printable(inner), f"the folder cannot be opened: {error.strerror or error}")
            )
            continue
        if here in above:
            continue
        for entry in entries:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if passed_over(entry.name):
                found.ignored += 1
            elif _printable(path) != path:
                found.excluded.append(Excluded(_printable(path), "its name is not valid Unicode; rename it"))
            elif _is_folder(entry):
                stack.append((path, (*above, here)))
            elif entry.is_symlink() or entry.is_file():  # a link to nothing is reported when it is opened
                found.files.append(path)
            else:
                found.ignored += 1
    return found


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is not looked at."""
    return name.startswith(".") or name in _FOREIGN


def list_folder(root: Path) -> Listing:
    """The pictures of a folder of class folders, or of one with train, val and test folders of class folders.

    DataError if there are no class folders.
    """
    top = _Level.of(root)
    if not top.folders:
        raise _no_class_folders(root, top.files)
    notes = top.left_out()
    by_part = _part_folders(root, top)
    if by_part is None:
        return _list_classes(root, {UNDECIDED: ""}, top.ignored, notes)
    others = [f"{name}/" for name in top.folders if name not in by_part.values()]
    if others:
        notes.append(f"left out {some(others)}: not train, val or test")
    ignored = top.ignored
    for part, name in list(by_part.items()):
        level = _Level.of(root / name, f"{name}/")
        ignored += level.ignored
        if level.folders:
            notes += level.left_out()
        elif part == TRAIN:
            raise _no_class_folders(root / name, level.files, root, top.files)
        else:
            notes.append(
                f"left out {name}/: without class folders its {counted(len(level.files), 'file')} have no classes"
            )
            del by_part[part]
    return _list_classes(root, by_part, ignored, notes)


@dataclass(frozen=True)
class _Level:
    """One folder's own entries."""

    prefix: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    ignored: int

    @classmethod
    def of(cls, folder: Path, prefix: str = "") -> _Level:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"the folder {folder} cannot be opened: {error.strerror or error}", remedy="check its permissions"
            ) from error
        seen = [entry for entry in entries if not passed_over(entry.name)]
        folders = tuple(entry.name for entry in seen if _is_folder(entry))
        files = tuple(entry.name for entry in seen if not _is_folder(entry))
        return cls(prefix, folders, files, len(entries) - len(seen))

    def left_out(self) -> list[str]:
        """A note on files beside the folders."""
        names = some((self.prefix + name for name in self.files), 3)
        return [f"left out {counted(len(self.files), 'file')} beside the class folders: {names}"] if self.files else []


def _part_folders(root: Path, top: _Level) -> dict[int, str] | None:
    """The folder of each part; None where the folders are classes, one of which may well be called train."""
    words = [name for name in top.folders if name.casefold() in PART_WORDS]
    by_part: dict[int, str] = {}
    for name in words:
        part = PART_WORDS[name.casefold()]
        if part in by_part:
            raise DataError(
                f"{root} has two folders for one part: {by_part[part]}/ and {name}/",
                "one folder each for train, val and test",
                "join or rename them",
            )
        by_part[part] = name
    if TRAIN in by_part and (_Level.of(root / by_part[TRAIN]).folders or len(words) == len(top.folders)):
        return by_part
    if words and len(words) == len(top.folders):
        raise DataError(
            f"{root} has {some([name + '/' for name in words])} but no train/",
            "class folders; or train/ with val/ and test/ beside it",
            "add the pictures to train on, or point at the folder that has them",
        )
    return None


def _list_classes(root: Path, by_part: dict[int, str], ignored: int, notes: list[str]) -> Listing:
    paths, labels, parts, excluded = [], [], [], []
    empty = []
    for part, name in by_part.items():
        for folder in _Level.of(root / name).folders:
            found = walk(str(root), f"{name}/{folder}" if name else folder)
            ignored += found.ignored
            excluded += found.excluded
            if not found.files:
                empty.append(f"{name}/{folder}" if name else folder)
            paths.append(pa.array(found.files, pa.string()))
            labels.append(pa.array([folder] * len(found.files), pa.string()))
            parts.append(np.full(len(found.files), part, np.int8))
    if ignored:
        notes.append(f"hidden or foreign files and folders passed over: {ignored:,}")
    if empty:
        notes.append(f"left out {counted(len(empty), 'empty class folder')}: {some(empty)}")
    listing = Listing.of(str(root), pa.concat_arrays(paths), pa.concat_arrays(labels), np.concatenate(parts))
    return replace(listing, notes=tuple(notes), excluded=tuple(excluded))


def _no_class_folders(
    folder: Path, files: tuple[str, ...], root: Path | None = None, beside: tuple[str, ...] = ()
) -> DataError:
    """The error for a ``folder`` that holds ``files`` only, in ``root`` with files ``beside``: a table may name classes."""
    if not files:
        return DataError(
            f"the folder {folder} is empty",
            "a folder of class folders with pictures in them; or train/ and val/ of such folders",
            "put the pictures of each class into a folder named after it",
        )
    places = [folder / name for name in files] + [(root or folder) / name for name in beside]
    tables = [place for place in places if place.suffix.lower() in TABLES]
    return DataError(
        f"{folder} holds {counted(len(files), 'file')} but no class folders",
        "one folder for each class, with its pictures in it",
        f"point at the table of classes instead: {tables[0]}"
        if tables
        else "put the pictures of each class into a folder named after it, or give a CSV with paths and classes",
    )


def _identity(folder: str) -> tuple[int, int]:
    """What is the same for a folder by whatever links it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _printable(name: str) -> str:
    """``name`` with bytes that are not Unicode written out."""
    return os.fsencode(name).decode(errors="backslashreplace")
