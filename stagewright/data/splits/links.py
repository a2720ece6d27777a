"""Links: a split as a tree of folders, ``DIR/train/CLASS/file``, of symbolic links, hard links or copies.

Owns the names in the tree: no two pictures get the same one, and they depend on nothing but the pictures' paths and
classes. The tree appears when all of it is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import Parts
from stagewright.data.sources.scan import digest_of
from stagewright.data.sources.walk import is_ignored
from stagewright.errors import DataError, StorageError
from stagewright.text import counted, some

Mode = Literal["symlink", "hardlink", "copy"]

_LONGEST = 255
"""Bytes of a file name, on all usual file systems."""


def check_links_folder(folder: Path, root: str | None = None) -> None:
    """DataError if ``folder`` holds anything, is a file, or lies in ``root``, where its links would count as pictures."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file", "a folder that is empty or not there yet", "name another one")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"the folder {folder} is not empty", "one that is empty or not there yet", "name another one")
    if root is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{folder} lies in {root}, the folder of the pictures",
            "a folder outside of it; in it the links would be taken for more pictures the next time",
            "name another one",
        )


def build_links(folder: Path, manifest: Manifest, trees: Mapping[str, Parts], mode: Mode) -> tuple[str, ...]:
    """Fills ``folder`` with one tree for each of ``trees`` (name, e.g. ``fold1`` or nothing; part of each picture).

    Returns notes on names that could not be kept. DataError as :func:`check_links_folder`, or if hard links are asked
    for between two file systems; StorageError if the folder cannot be written. Nothing is left of a tree that fails.
    """
    check_links_folder(folder, manifest.root)
    paths = manifest.paths.to_pylist()
    folders = class_folders(manifest.classes)
    names = file_names(paths, manifest.labels.tolist())
    new = not folder.exists()
    building = folder / f".part-{os.getpid()}"
    try:
        building.mkdir(parents=True)
        for tree, parts in trees.items():
            _plant(building, folder, tree, manifest, folders, names, parts, mode)
        for entry in sorted(building.iterdir()):
            entry.rename(folder / entry.name)
        building.rmdir()
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it is not empty, or the disk that failed fails again
                folder.rmdir()
        if isinstance(error, OSError):
            raise _failed(folder, mode, error) from error
        raise
    changed = [f"{name!r} as {to!r}" for name, to in zip(manifest.classes, folders, strict=True) if name != to]
    renamed = sum(posixpath.basename(path) != name for path, name in zip(paths, names, strict=True))
    notes = []
    if changed:
        notes.append(
            f"links: {counted(len(changed), 'class')} under another name, since it is no folder's: {some(changed)}"
        )
    if renamed:
        notes.append(f"links: {counted(renamed, 'file')} under another name, for others of the class have the same")
    return tuple(notes)


def class_folders(classes: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own where it can be one and is read as one, else one like it."""
    wanted = [_usable(name) for name in classes]
    several = {name for name, count in Counter(wanted).items() if count > 1}
    return [
        name if name == class_ or name not in several else _marked(name, class_)
        for class_, name in zip(classes, wanted, strict=True)
    ]


def file_names(paths: Sequence[str], labels: Sequence[int]) -> list[str]:
    """A file's name for each of ``paths``: its own, marked by a hash of the path where others of the class share it.

    Names that differ in upper and lower case alone count as the same, since on some file systems they are.
    """
    wanted = [_usable(posixpath.basename(path)) for path in paths]
    rows_of: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for row, (name, label) in enumerate(zip(wanted, labels, strict=True)):
        rows_of[label, _folded(name)].append(row)
    names = list(wanted)
    for rows in rows_of.values():
        if len(rows) > 1:
            for row in rows:
                names[row] = _marked(wanted[row], paths[row])
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _usable(name: str) -> str:
    """``name`` without what no file's name may hold, and such that :mod:`listing` does not pass over it."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", name)
    if is_ignored(name):
        name = f"_{name}"
    return name if len(name.encode()) <= _LONGEST else _marked(name, name)


def _marked(name: str, identity: str) -> str:
    """``name`` with 40 bits of the hash of ``identity`` before its extension, shortened where it gets too long."""
    stem, extension = os.path.splitext(name)
    mark = f"-{digest_of(identity.encode())[:5].hex()}{extension}"
    if len(mark) > 40:  # no extension, but a name with a dot far ahead
        stem, mark = name, mark[:11]
    return stem.encode()[: _LONGEST - len(mark.encode())].decode(errors="ignore") + mark


def _plant(
    building: Path,
    folder: Path,
    tree: str,
    manifest: Manifest,
    folders: Sequence[str],
    names: Sequence[str],
    parts: Parts,
    mode: Mode,
) -> None:
    """Fills ``building``/``tree``, which will be moved to ``folder``/``tree``: relative links are made for there."""
    real: Callable[[str], str] = cache(lambda at: os.path.realpath(at))
    away: Callable[[str, str], str] = cache(lambda to, at: os.path.relpath(to, at))
    made: dict[tuple[int, int], str] = {}
    rows = zip(manifest.paths.to_pylist(), manifest.labels.tolist(), names, parts.tolist(), strict=True)
    for path, label, name, part in rows:
        inner = f"{tree}/{SPLITS[part]}/{folders[label]}".lstrip("/")
        if (part, label) not in made:
            made[part, label] = os.path.join(building, inner)
            os.makedirs(os.path.dirname(made[part, label]), exist_ok=True)
            os.mkdir(made[part, label])  # fails where two classes would share a folder
        link = os.path.join(made[part, label], name)
        at, file = os.path.split(os.path.join(manifest.root, path))
        if mode == "symlink":
            os.symlink(os.path.join(away(real(at), f"{real(str(folder))}/{inner}"), file), link)
        elif mode == "hardlink":
            os.link(os.path.realpath(os.path.join(at, file)), link)
        else:
            with open(link, "xb"):  # fails where two files would share a name
                pass
            shutil.copy2(os.path.join(at, file), link)


def _failed(folder: Path, mode: Mode, error: OSError) -> DataError | StorageError:
    if error.errno == errno.EXDEV:
        return DataError(
            f"{folder} lies on another file system than the pictures",
            "one file system for hard links",
            "take symbolic links or copies, or a folder on the pictures' disk",
        )
    return StorageError(
        f"the {'copies' if mode == 'copy' else 'links'} in {folder} cannot be made: {error.strerror or error}",
        "a folder that can be written, with room for what is put there",
        "check permissions and free space, or name another folder",
    )
