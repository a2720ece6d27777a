"""Writes a split as a tree of folders, ``DIR/train/CLASS/file``, of symbolic links, hard links or copies.

This module chooses the names in the tree: they are unique, and depend only on the paths and classes of the images. The
tree is built in a temporary folder and moved to its place when it is complete.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.partition import Parts
from stagewright.data.sources.scan import Progress, digest_of
from stagewright.data.sources.walk import is_ignored
from stagewright.errors import DataError, StorageError
from stagewright.text import counted, some

Mode = Literal["symlink", "hardlink", "copy"]

_LONGEST = 255
"""Maximum length of a file name in bytes, on all usual file systems."""


def check_links_folder(folder: Path, root: str | None = None) -> None:
    """Raises DataError if ``folder`` is not empty, is a file, or is inside ``root``, the folder of the images.

    Inside ``root``, the next run would read the links as additional images.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file", "a folder that is empty or does not exist yet", "name another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(
            f"the folder {folder} is not empty", "a folder that is empty or does not exist yet", "name another folder"
        )
    if root is not None and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{folder} is inside {root}, the folder of the pictures",
            "a folder outside of it; inside, the next run would read the links as additional pictures",
            "name another folder",
        )


def build_links(
    folder: Path, manifest: Manifest, trees: Mapping[str, Parts], mode: Mode, progress: Progress | None = None
) -> tuple[str, ...]:
    """Writes one tree of links or copies into ``folder`` for each of ``trees``; returns notes on names that were changed.

    ``trees`` maps the name of a tree, e.g. ``fold1``, or "" for ``folder`` itself, to the part of each image.
    ``progress(done, total)`` counts the links.

    Raises DataError like :func:`check_links_folder`, or if ``mode`` is ``hardlink`` and ``folder`` is on another file
    system than the images; StorageError if the folder cannot be written. On an error, everything written is removed.
    """
    check_links_folder(folder, manifest.root)
    paths = manifest.paths.to_pylist()
    folders = class_folders(manifest.classes)
    names = file_names(paths, manifest.labels.tolist())
    new = not folder.exists()
    building = folder / f".part-{os.getpid()}"
    try:
        building.mkdir(parents=True)
        for number, (tree, parts) in enumerate(trees.items()):
            for done in _build_tree(building, folder, tree, manifest, folders, names, parts, mode):
                if progress is not None:
                    progress(number * len(paths) + done, len(trees) * len(paths))
        for entry in sorted(building.iterdir()):
            entry.rename(folder / entry.name)
        building.rmdir()
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # the folder is not empty, or the disk fails again
                folder.rmdir()
        if isinstance(error, OSError):
            raise _failed(folder, mode, error) from error
        raise
    changed = [f"{name!r} as {to!r}" for name, to in zip(manifest.classes, folders, strict=True) if name != to]
    renamed = sum(posixpath.basename(path) != name for path, name in zip(paths, names, strict=True))
    notes = []
    if changed:
        notes.append(
            f"links: {counted(len(changed), 'class')} renamed, because the class name cannot be used as a folder name: "
            f"{some(changed)}"
        )
    if renamed:
        notes.append(f"links: {counted(renamed, 'file')} renamed, because other files of the class have the same name")
    return tuple(notes)


def class_folders(classes: Sequence[str]) -> list[str]:
    """Returns a folder name for each class: the class name if it is a valid folder name, or else a similar one."""
    valid = [_valid_name(name) for name in classes]
    several = {name for name, count in Counter(valid).items() if count > 1}
    return [
        name if name == class_ or name not in several else _with_hash(name, class_)
        for class_, name in zip(classes, valid, strict=True)
    ]


def file_names(paths: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Returns a file name for each of ``paths``: its own, with a hash of the path if other files of the class share it.

    Names that differ only in upper and lower case are treated as equal, because some file systems do so.
    """
    valid = [_valid_name(posixpath.basename(path)) for path in paths]
    rows_of: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for row, (name, label) in enumerate(zip(valid, labels, strict=True)):
        rows_of[label, _case_folded(name)].append(row)
    names = list(valid)
    for rows in rows_of.values():
        if len(rows) > 1:
            for row in rows:
                names[row] = _with_hash(valid[row], paths[row])
    return names


def _case_folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _valid_name(name: str) -> str:
    """Returns ``name`` as a valid file name that :mod:`stagewright.data.sources.folders` does not ignore."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", name)
    if is_ignored(name):
        name = f"_{name}"
    return name if len(name.encode()) <= _LONGEST else _with_hash(name, name)


def _with_hash(name: str, identity: str) -> str:
    """Returns ``name`` with 40 bits of the hash of ``identity`` before the extension, shortened if it is too long."""
    stem, extension = os.path.splitext(name)
    suffix = f"-{digest_of(identity.encode())[:5].hex()}{extension}"
    if len(suffix) > 40:  # not an extension, but a long name that has a dot near its start
        stem, suffix = name, suffix[:11]
    return stem.encode()[: _LONGEST - len(suffix.encode())].decode(errors="ignore") + suffix


def _build_tree(
    building: Path,
    folder: Path,
    tree: str,
    manifest: Manifest,
    folders: Sequence[str],
    names: Sequence[str],
    parts: Parts,
    mode: Mode,
) -> Iterator[int]:
    """Fills ``building``/``tree``, which is moved to ``folder``/``tree`` later: relative links are valid only there. Yields how
    many links there are after each."""
    real: Callable[[str], str] = cache(lambda at: os.path.realpath(at))
    relative: Callable[[str, str], str] = cache(lambda to, at: os.path.relpath(to, at))
    made: dict[tuple[int, int], str] = {}
    rows = zip(manifest.paths.to_pylist(), manifest.labels.tolist(), names, parts.tolist(), strict=True)
    for done, (path, label, name, part) in enumerate(rows, 1):
        inner = f"{tree}/{SPLITS[part]}/{folders[label]}".lstrip("/")
        if (part, label) not in made:
            made[part, label] = os.path.join(building, inner)
            os.makedirs(os.path.dirname(made[part, label]), exist_ok=True)
            os.mkdir(made[part, label])  # fails if two classes would share a folder
        link = os.path.join(made[part, label], name)
        at, file = os.path.split(os.path.join(manifest.root, path))
        if mode == "symlink":
            os.symlink(os.path.join(relative(real(at), f"{real(str(folder))}/{inner}"), file), link)
        elif mode == "hardlink":
            os.link(os.path.realpath(os.path.join(at, file)), link)
        else:
            with open(link, "xb"):  # fails if two files would share a name
                pass
            shutil.copy2(os.path.join(at, file), link)
        yield done


def _failed(folder: Path, mode: Mode, error: OSError) -> DataError | StorageError:
    if error.errno == errno.EXDEV:
        return DataError(
            f"{folder} is on another file system than the pictures",
            "the same file system, for hard links",
            "use symbolic links or copies, or name a folder on the file system of the pictures",
        )
    return StorageError(
        f"cannot create the {'copies' if mode == 'copy' else 'links'} in {folder}: {error.strerror or error}",
        "a folder that can be written, with enough free space",
        "check permissions and free space, or name another folder",
    )
