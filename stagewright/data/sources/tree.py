"""``Tree``: the files below a place, as listings see them. A folder on the disk, or the names of the objects below a URL.

What the folders of a data set mean follows from names (and from the ends of a few small files), so the same code lists both.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stagewright.errors import StorageError
from stagewright.storage.object_files import Changed, StoredObject, read_range
from stagewright.storage.objects import open_store


class Entry(Protocol):
    """A file or a folder in a folder: what ``os.DirEntry`` tells of it."""

    @property
    def name(self) -> str:
        """Its name in the folder."""
        ...

    def is_dir(self) -> bool:
        """Whether it is a folder, or a link to one."""
        ...

    def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        ...

    def is_symlink(self) -> bool:
        """Whether it is a link."""
        ...


@dataclass(frozen=True)
class DiskTree:
    """A folder on the disk. Paths in it are relative, with ``/``; the empty path is the folder itself. Links are followed."""

    folder: Path

    @property
    def place(self) -> str:
        """The folder, without a ``/`` at the end."""
        return str(self.folder)

    def below(self, inner: str) -> DiskTree:
        """Returns the tree of the folder ``inner``, which may be absolute."""
        return DiskTree(self.folder / inner)

    def join(self, *names: str) -> str:
        """Returns the path of something in the tree."""
        return str(self.folder.joinpath(*names))

    def scan(self, inner: str) -> Iterator[os.DirEntry[str]]:
        """Yields what is in the folder ``inner``, in any order. OSError if it cannot be opened."""
        with os.scandir(os.path.join(self.folder, inner)) as opened:
            yield from opened

    def identity(self, inner: str) -> tuple[int, int]:
        """Returns what identifies the folder ``inner`` independently of links to it. OSError if it cannot be opened."""
        status = os.stat(os.path.join(self.folder, inner))
        return status.st_dev, status.st_ino

    def is_file(self, path: str) -> bool:
        """Whether ``path`` is a regular file, or a link to one."""
        return os.path.isfile(os.path.join(self.folder, path))

    def is_folder(self, path: str) -> bool:
        """Whether ``path`` is a folder, or a link to one."""
        return os.path.isdir(os.path.join(self.folder, path))

    def ends(self, path: str, most: int) -> bytes:
        """Returns the first and the last ``most`` bytes of a regular file; nothing if it cannot be read."""
        place = self.folder / path
        try:
            if not place.is_file():
                return b""
            with place.open("rb") as file:
                head = file.read(most)
                file.seek(max(os.fstat(file.fileno()).st_size - most, len(head)))
                return head + file.read(most)
        except OSError:
            return b""


@dataclass(frozen=True, slots=True)
class _Name:
    """An entry of a :class:`StoreTree`."""

    name: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


@dataclass
class _Folder:
    """Names in a folder."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class StoreTree:
    """The objects below a URL, as a folder would have them. Their names are known; only :meth:`ends` asks the store.

    Empty objects with the name of a folder, by which some programs mark folders, are left out.
    """

    def __init__(self, url: str, objects: Mapping[str, StoredObject]) -> None:
        self.place = url.rstrip("/")
        self.objects = objects
        """The files by their path in the tree."""
        self._folders = {"": _Folder()}
        for key in objects:
            self._add_folder(key.rpartition("/")[0])
        for key, one in objects.items():
            if key and (one.bytes or key not in self._folders):
                inner, _, name = key.rpartition("/")
                self._folders[inner].files.append(name)

    def below(self, inner: str) -> StoreTree:
        """Returns the tree of the folder ``inner``."""
        inner = _cleaned(inner)
        if not inner:
            return self
        start = f"{inner}/"
        named = {key.removeprefix(start): one for key, one in self.objects.items() if key.startswith(start)}
        return StoreTree(f"{self.place}/{inner}", {key: one._replace(name=key) for key, one in named.items()})

    def join(self, *names: str) -> str:
        """Returns the URL of a file or folder."""
        return "/".join((self.place, *filter(None, names)))

    def scan(self, inner: str) -> Iterator[_Name]:
        """Yields what is in the folder ``inner``. FileNotFoundError if there is none."""
        found = self._folders.get(inner)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.join(inner))
        yield from (_Name(name, False) for name in found.files)
        yield from (_Name(name, True) for name in found.folders)

    def identity(self, inner: str) -> str:
        """Returns the path itself: a store has no links."""
        return inner

    def is_file(self, path: str) -> bool:
        """Whether ``path`` is an object."""
        return path in self.objects

    def is_folder(self, path: str) -> bool:
        """Whether there are objects below ``path``."""
        return _cleaned(path) in self._folders

    def ends(self, path: str, most: int) -> bytes:
        """Returns the first and the last ``most`` bytes of an object."""
        one = self.objects.get(path)
        if one is None:
            return b""
        head = min(most, one.bytes)
        tail = min(most, one.bytes - head)
        store, data = open_store(self.place), b""
        with suppress(Changed, FileNotFoundError, StorageError):
            for offset, length in ((0, head), (one.bytes - tail, tail)):
                data += read_range(store, self.place, path, offset, length, one.etag) if length else b""
        return data

    def _add_folder(self, inner: str) -> None:
        """Adds the folder ``inner`` and those above it."""
        if inner in self._folders:
            return
        self._folders[inner] = _Folder()
        above, _, name = inner.rpartition("/")
        self._add_folder(above)
        self._folders[above].folders.append(name)


def _cleaned(path: str) -> str:
    """Returns ``path`` without ``./`` and ``..``, as far as possible, and without a ``/`` at the end."""
    path = posixpath.normpath(path)
    return "" if path == "." else path


Tree = DiskTree | StoreTree


def as_tree(place: str | Path | Tree) -> Tree:
    """Returns the tree of a folder on the disk, or ``place`` itself if it is one already."""
    return place if isinstance(place, DiskTree | StoreTree) else DiskTree(Path(place))
