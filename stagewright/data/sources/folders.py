"""Lists the files of a folder with their classes, before any of them is opened."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.account import Omission, by_reason
from stagewright.data.images.decode import image_extensions
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folder_names import (
    CLASS_AND_NUMBER,
    PART_WORDS,
    PartFolders,
    classes_in_file_names,
    own_folder,
    part_folders,
)
from stagewright.data.sources.tree import DiskTree, Tree, as_tree
from stagewright.data.sources.walk import Excluded, Walk, is_folder, is_ignored, left_out_of, walk, written_out
from stagewright.errors import DataError
from stagewright.storage.files import user_path
from stagewright.text import counted, some

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

BY_NAME, BY_LIKENESS = "file names", "near duplicates"
"""Where groups come from that are in no column (:attr:`Listing.group_name`)."""
UNDECIDED = -1
"""The part of a file that is not assigned to one yet."""
PART_NAMES = {TRAIN: "train", VAL: "val", TEST: "test"}
TABLES = frozenset({".csv", ".tsv", ".parquet"})


def absolute_path(source: str | Path) -> Path:
    """The absolute path of DATA, a folder or a file (:func:`~stagewright.storage.files.user_path`)."""
    return Path(os.path.abspath(user_path(source)))


def name_of(source: str) -> str:
    """Returns the name of DATA, for names of files made from it."""
    path = user_path(source.rstrip("/") or source)
    return (path.stem if path.is_file() else path.resolve().name if path.exists() else path.name) or "data"


@dataclass(frozen=True, eq=False)
class Listing:
    """Files and their classes, sorted by path, in columns of equal length."""

    root: str
    paths: pa.StringArray
    """Relative to ``root``, with ``/``; each path once."""
    labels: pa.StringArray
    """Names of the classes."""
    parts: NDArray[np.int8]
    """TRAIN, VAL, TEST if DATA assigns them, or UNDECIDED."""
    groups: pa.StringArray | None = None
    group_name: str = ""
    """Name of the table's column of groups; :data:`BY_NAME` or :data:`BY_LIKENESS` if they come from there."""
    notes: tuple[str, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    """Files, folders and rows that are left out, one by one."""
    left_out: tuple[Omission, ...] = ()
    """What else is left out, by reason."""

    @classmethod
    def from_unsorted(
        cls,
        root: str,
        paths: pa.StringArray,
        labels: pa.StringArray,
        parts: NDArray[np.int8],
        groups: pa.StringArray | None = None,
    ) -> Listing:
        """Sorts the columns by path. Class names that differ in their Unicode form alone become one class."""
        order = pc.sort_indices(paths)
        labels = pc.utf8_normalize(labels, form="NFC").take(order)
        return cls(
            root, paths.take(order), labels, parts[order.to_numpy()], None if groups is None else groups.take(order)
        )

    def taken(self, rows: NDArray[np.int64]) -> Listing:
        """Returns the listing with these of its rows, in this order."""
        at = pa.array(rows)
        groups = None if self.groups is None else self.groups.take(at)
        return replace(
            self, paths=self.paths.take(at), labels=self.labels.take(at), parts=self.parts[rows], groups=groups
        )


def place_of_groups(name: str) -> str:
    """Returns a listing's ``group_name`` in words: ``column 'site'``, or where else the groups come from."""
    return name if name in (BY_NAME, BY_LIKENESS) else f"column '{name}'"


def list_folder(place: Path | Tree, *, needs_train: bool = True) -> Listing:
    """Lists the images of a folder of class folders, or of a folder with train, val and test folders of class folders. Without
    ``needs_train`` the latter may lack train.

    ``place`` is a folder on the disk, or any tree. Parts are recognised by their names
    (:func:`~stagewright.data.sources.folder_names.part_folders`). DataError if there are no class folders, if it is unclear
    whether folders are classes or parts, or if stagewright itself wrote the folder.
    """
    root = as_tree(place)
    top = _Level.read(root)
    _refuse_own(root, top)
    if not top.folders:
        raise _no_class_folders(root, "", top.files)
    tables = [name for name in top.files if Path(name).suffix.lower() in TABLES]
    found = part_folders(top.folders)
    if tables and len(top.folders) == 1 and not found.names:
        raise _table_beside(root, top.folders[0], tables)
    by_part = _chosen_parts(root, found, needs_train)
    if by_part is not None:
        by_part = {part: _innermost(root, name, part) for part, name in by_part.items()}
    if by_part is None:
        return _list_classes(root, {UNDECIDED: ""}, top.notes(), top.left_out(), top.passed())
    notes, left_out = top.notes(), top.left_out()
    if any(name.casefold() not in PART_WORDS for name in by_part.values()):  # train, valid and test need no explanation
        notes.append(f"parts by their names: {_named(by_part)}")
    left_out += [(f"{name}/", "a folder that by its name has no classes") for name in found.unlabelled]
    left_out += [(f"{name}/", "a folder that is not train, val or test") for name in found.others]
    passed = top.passed()
    first = next(iter(by_part.values()))
    for part, name in list(by_part.items()):
        level = _Level.read(root, name, f"{name}/")
        passed.ignored += level.ignored
        if level.folders:
            notes += level.notes()
            left_out += level.left_out()
        elif part == TRAIN and needs_train:
            raise _no_class_folders(root, name, level.files, top.files)
        else:
            left_out += [(f"{name}/{file}", f"in {name}/ without class folders") for file in level.files]
            del by_part[part]
    if not by_part:
        raise _no_class_folders(root, first, _Level.read(root, first).files, top.files)
    return _list_classes(root, by_part, notes, left_out, passed)


def list_files(place: Path | Tree, *, needs_train: bool = True) -> Listing:
    """Lists the files of a folder at any depth, without classes: the label of each is empty, and something else has to say it.

    ``place`` is a folder on the disk, or any tree. Folders train, val and test are parts, as for :func:`list_folder`; without a
    train folder, or without ``needs_train`` any of them, folders have no meaning. DataError if there is no file, or if
    stagewright itself wrote the folder.
    """
    root = as_tree(place)
    top = _Level.read(root)
    _refuse_own(root, top)
    found = part_folders(top.folders)
    parts = found.names if TRAIN in found.names or not needs_train else {}
    by_part = _chosen_parts(root, replace(found, names=parts, others=()), needs_train) or {UNDECIDED: ""}
    notes, beside = [], []
    if UNDECIDED not in by_part:
        notes = [f"parts by their names: {_named(by_part)}"]
        others = [f"{name}/" for name in (*found.unlabelled, *found.others)]
        beside = [(written_out(name), f"beside {_named(by_part)}") for name in (*top.files, *others)]
    walks = [walk(root, name) for name in by_part.values()]
    paths = [path for one in walks for path in one.files]
    if not paths:
        raise _no_class_folders(root, "", ())
    parts_of = np.repeat(np.array(list(by_part), np.int8), [len(one.files) for one in walks])
    listing = Listing.from_unsorted(
        root.place, pa.array(paths, pa.string()), pa.array([""] * len(paths), pa.string()), parts_of
    )
    return replace(
        listing,
        notes=tuple(notes),
        excluded=tuple(one for each in walks for one in each.excluded),
        left_out=(*by_reason(beside), *left_out_of(walks)),
    )


def _innermost(root: Tree, name: str, part: int) -> str:
    """Returns the folder of a part, or the one folder in it that repeats its name (``seg_train/seg_train``, from archives that
    were unpacked into a folder of their own name)."""
    while True:
        level = _Level.read(root, name)
        if level.files or len(level.folders) != 1:
            return name
        inner = level.folders[0]
        if inner.casefold() != Path(name).name.casefold() and part not in part_folders([inner]).names:
            return name
        name = f"{name}/{inner}"


def _named(by_part: dict[int, str]) -> str:
    return ", ".join(f"{name}/ is {PART_NAMES[part]}" for part, name in by_part.items())


@dataclass(frozen=True)
class _Level:
    """The entries of one folder, sorted by name."""

    prefix: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    ignored: list[str]
    excluded: list[Excluded]
    """Folders whose names are not valid Unicode."""

    @classmethod
    def read(cls, tree: Tree, inner: str = "", prefix: str = "") -> _Level:
        try:
            entries = sorted(tree.scan(inner), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"the folder {tree.join(inner)} cannot be opened: {error.strerror or error}",
                "a folder that this user may open",
                "check its permissions, and those of the folders above it",
            ) from error
        seen = [entry for entry in entries if not is_ignored(entry.name)]
        folders = [entry.name for entry in seen if is_folder(entry)]
        files = tuple(entry.name for entry in seen if not is_folder(entry))
        unnamable = [name for name in folders if written_out(name) != name]
        reason = "the folder's name is not valid Unicode; rename it"
        excluded = [Excluded(written_out(f"{prefix}{name}"), reason) for name in unnamable]
        kept = tuple(name for name in folders if name not in unnamable)
        ignored = [f"{prefix}{entry.name}" for entry in entries if is_ignored(entry.name)]
        return cls(prefix, kept, files, ignored, excluded)

    def passed(self) -> Walk:
        """What is passed over here, as a walk."""
        return Walk(ignored=list(self.ignored), excluded=list(self.excluded))

    def left_out(self) -> list[tuple[str, str]]:
        """(path, reason) of the files next to the class folders."""
        return [(written_out(self.prefix + name), "beside the class folders") for name in self.files]

    def notes(self) -> list[str]:
        """Notes on tables next to the class folders."""
        tables = [name for name in self.files if Path(name).suffix.lower() in TABLES]
        return [f"{self.prefix}{name} is not read; point at it to train by that table" for name in tables]


def _chosen_parts(root: Tree, found: PartFolders, needs_train: bool) -> dict[int, str] | None:
    """The folder of each part, or None if the folders are classes, one of which may well be called train."""
    several = next((names for names in found.names.values() if len(names) > 1), None)
    if several:
        raise DataError(
            f"{root.place} has two folders for one part: {several[0]}/ and {several[1]}/",
            "one folder each for train, val and test",
            "join or rename them",
        )
    by_part = {part: found.names[part][0] for part in (TRAIN, VAL, TEST) if part in found.names}
    if TRAIN in by_part and (not found.others or _Level.read(root, by_part[TRAIN]).folders):
        return by_part
    if by_part and not found.others:
        if not needs_train:
            return by_part
        raise DataError(
            f"{root.place} has {some(f'{name}/' for name in sorted(by_part.values()))} but no train/",
            "class folders; or train/ with val/ and test/ beside it",
            "add the images to train on, or point at the folder that has them",
        )
    if len(by_part) > 1:
        raise _unclear(root.place, by_part, found.others)
    return None


def _unclear(place: str, by_part: dict[int, str], others: tuple[str, ...]) -> DataError:
    parts = some(f"{name}/" for name in by_part.values())
    count = counted(len(by_part) + len(others), "folder")
    return DataError(
        f"{place} can be read in two ways: {parts} are parts of the data set, or all {count} are classes, as "
        f"{some((f'{name}/' for name in others), 3)}",
        "class folders alone; or train/ with class folders in it, val/ and test/ beside it",
        f"if they are parts: put class folders into {by_part.get(TRAIN, 'train')}/; if they are classes: rename them, or give "
        "a CSV with paths and classes",
    )


def _refuse_own(root: Tree, top: _Level) -> None:
    """DataError for a folder that stagewright wrote: its example images and plots are no data set."""
    if (what := own_folder(top.files)) is not None:
        raise DataError(
            f"{root.place} is {what} of stagewright, not a data set",
            "a folder of class folders with images in them",
            f"point at the images; stagewright evaluate {root.place} measures a run"
            if what == "a run"
            else "point at the images",
        )


def _list_classes(
    root: Tree, by_part: dict[int, str], notes: list[str], left_out: list[tuple[str, str]], passed: Walk
) -> Listing:
    paths, labels, parts, walks = [], [], [], [passed]
    empty, deep = [], []
    for part, name in by_part.items():
        for folder in _Level.read(root, name).folders:
            place = f"{name}/{folder}" if name else folder
            found = walk(root, place)
            walks.append(found)
            if not found.files and not found.own:
                empty.append(place)
            if _is_deep(found.files, place):
                deep.append(place)
            paths.append(pa.array(found.files, pa.string()))
            labels.append(pa.array([folder] * len(found.files), pa.string()))
            parts.append(np.full(len(found.files), part, np.int8))
    notes = list(notes)
    if empty:
        notes.append(f"left out {counted(len(empty), 'empty class folder')}: {some(empty)}")
    if len(deep) > 1:
        notes.append(_deep_note(root, deep))
    listing = Listing.from_unsorted(
        root.place, pa.concat_arrays(paths), pa.concat_arrays(labels), np.concatenate(parts)
    )
    return replace(
        listing,
        notes=tuple(notes),
        excluded=tuple(one for found in walks for one in found.excluded),
        left_out=(*by_reason(left_out), *left_out_of(walks)),
    )


def _deep_note(root: Tree, deep: list[str]) -> str:
    text = f"the outer folders are the classes; {some((f'{one}/' for one in deep), 3)} hold folders, whose images are joined"
    if not isinstance(root, DiskTree):  # which has no links
        return text
    place = shlex.quote(root.place)
    return f"{text}. To have the inner folders as classes: mkdir classes && ln -s {place}/*/* classes/, and point at classes/"


def _is_deep(files: list[str], place: str) -> bool:
    """Whether a class folder holds several folders with files, and no files itself."""
    inner = {name.removeprefix(f"{place}/").partition("/")[0] for name in files}
    return len(inner) > 1 and all("/" in name.removeprefix(f"{place}/") for name in files)


def _table_beside(root: Tree, folder: str, tables: list[str]) -> DataError:
    return DataError(
        f"{root.place} holds one folder, {folder}/, which would be the only class, and {some(tables, 3)}",
        "two class folders or more; or a table of paths and classes",
        f"point at the table: {root.join(tables[0])} (if its paths are relative to {folder}/: --set data.images={folder})",
    )


def _no_class_folders(root: Tree, inner: str, files: tuple[str, ...], beside: tuple[str, ...] = ()) -> DataError:
    """The error for a folder ``inner`` of ``files`` alone, in ``root`` with files ``beside`` it: a table or their names may hold
    the classes."""
    folder = root.join(inner)
    if not files:
        return DataError(
            f"the folder {folder} is empty",
            "a folder of class folders with pictures in them; or train/ and val/ of such folders",
            "put the pictures of each class into a folder named after it",
        )
    places = [root.join(inner, name) for name in files] + [root.join(name) for name in beside]
    tables = [place for place in places if Path(place).suffix.lower() in TABLES]
    images = [name for name in files if Path(name).suffix.lower() in image_extensions()]
    remedy = "put the pictures of each class into a folder named after it, or give a CSV with paths and classes"
    remedy += r"; classes in the names of files: --set 'data.label=(?P<label>[^/]+)_\d+'"
    if tables:
        remedy = f"point at the table of classes instead: {tables[0]}"
    elif classes := classes_in_file_names(images):
        remedy = (
            f"the file names seem to hold the classes ({some(classes, 5)}); this reads them: point at {shlex.quote(folder)} "
            f"with --set {shlex.quote(f'data.label={CLASS_AND_NUMBER}')}"
        )
    return DataError(
        f"{folder} holds {counted(len(files), 'file')} but no class folders",
        "one folder for each class, with its pictures in it",
        remedy,
    )
