"""Which tar files DATA names: one, a pattern with braces or ``*``, a folder or a prefix of them; on the disk or in a store. And
which Parquet files of a store."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.data.images.decode import image_extensions
from stagewright.data.sources.folders import absolute_path
from stagewright.data.sources.walk import is_ignored
from stagewright.errors import DataError
from stagewright.storage.files import size_of
from stagewright.storage.object_files import StoredObject, list_folder, list_objects
from stagewright.storage.objects import is_remote, open_store
from stagewright.text import counted, some

TAR, PARQUET = ".tar", ".parquet"
_MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000


@dataclass(frozen=True)
class Shards:
    """Tar or Parquet files below one place."""

    root: str
    """Folder or URL, without a ``/`` at the end."""
    files: tuple[StoredObject, ...]
    """Sorted by name; on the disk without ETag."""

    @property
    def remote(self) -> bool:
        """Whether they are in an object store."""
        return is_remote(self.root)

    def path(self, name: str) -> str:
        """Returns the path or URL of the file ``name``."""
        return f"{self.root}/{name}" if self.remote else os.path.join(self.root, name)


def names_shards(source: str) -> bool:
    """Returns True if ``source`` names tar files: by its ending, or as a folder or prefix in which they are and no images."""
    if source.rstrip("/").endswith(TAR):
        return True
    if is_remote(source):
        return not _MAGIC.search(source) and bool(_below(source))
    path = absolute_path(source)
    return source != "digits" and path.is_dir() and bool(_in_folder(path))


def find_parquet(source: str) -> Shards | None:
    """Returns the Parquet files of an object store that ``source`` names: one, or those of a place without folders, or of its
    only folder ``data``. None for anything else. What is in them is not known yet."""
    if not is_remote(source):
        return None
    url = source.rstrip("/")
    if url.lower().endswith(PARQUET):
        root, _, name = url.rpartition("/")
        files, _ = list_folder(open_store(root), root)
        return Shards(root, (files[name],)) if name in files else None
    files, folders = list_folder(open_store(url), url)
    named, folders = _parquet_of(files), [name for name in folders if not is_ignored(name)]
    if not named and folders == ["data"]:
        url = f"{url}/data"
        files, folders = list_folder(open_store(url), url)
        named, folders = _parquet_of(files), [name for name in folders if not is_ignored(name)]
    return Shards(url, named) if named and not folders else None


def _parquet_of(files: Mapping[str, StoredObject]) -> tuple[StoredObject, ...]:
    return tuple(one for name, one in files.items() if name.lower().endswith(PARQUET) and not is_ignored(name))


def find_shards(source: str) -> Shards:
    """Returns the tar files that ``source`` names. DataError if one of them, or all, do not exist."""
    if is_remote(source):
        return _find_remote(source)
    path = absolute_path(source)
    if path.is_dir():
        return Shards(str(path), tuple(StoredObject(name, size_of(path / name), "") for name in _in_folder(path)))
    if path.is_file():
        return Shards(str(path.parent), (StoredObject(path.name, size_of(path), ""),))
    root, pattern = _split(str(path))
    if not _MAGIC.search(pattern):
        raise _none(source, [])
    there = _walked(Path(root), pattern.count("/") + 1) if os.path.isdir(root) else ()
    names = _chosen(source, pattern, there)
    return Shards(root, tuple(StoredObject(name, size_of(Path(root, name)), "") for name in names))


def _find_remote(source: str) -> Shards:
    if not source.rstrip("/").endswith(TAR):
        return Shards(source.rstrip("/"), tuple(_below(source)))
    root, pattern = _split(source)
    found = list_objects(open_store(root), root)
    names = _chosen(source, pattern, found)
    return Shards(root, tuple(found[name] for name in names))


def _split(place: str) -> tuple[str, str]:
    """Returns (folder or URL without magic characters, pattern below it)."""
    magic = _MAGIC.search(place)
    cut = place.rindex("/", 0, magic.start() if magic else len(place.rstrip("/")))
    return place[:cut], place[cut + 1 :].rstrip("/")


def _chosen(source: str, pattern: str, there: Iterable[str]) -> list[str]:
    """Returns the names ``there`` that match ``pattern``, sorted; every name that braces stand for must be there."""
    names = set(there)
    chosen: set[str] = set()
    for wanted in _expanded(pattern):
        matches = [wanted] if wanted in names else fnmatch.filter(names, wanted)
        if not matches:
            raise _none(source, sorted(names), wanted)
        chosen.update(matches)
    return sorted(chosen)


def _expanded(pattern: str) -> list[str]:
    """Returns the patterns that ``{000..146}`` and ``{a,b}`` stand for. DataError for more than a million."""
    parts = _BRACES.split(pattern)
    choices: list[Sequence[str]] = []
    for at, part in enumerate(parts):
        if at % 2 == 0:
            choices.append([part])
        elif (ends := _RANGE.fullmatch(part)) is not None:
            first, last = int(ends[1]), int(ends[2])
            width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
            choices.append([f"{number:0{width}d}" for number in range(first, min(last, first + _MOST) + 1)])
        else:
            choices.append(part.split(","))
    count = 1
    for choice in choices:
        count *= len(choice)
    if not 0 < count <= _MOST:
        raise DataError(
            f"{pattern} stands for {counted(count, 'file')}",
            f"1 to {_MOST:,} files, e.g. train-{{000..146}}.tar",
            "correct the range in braces",
        )
    return ["".join(one) for one in itertools.product(*choices)]


def _below(url: str) -> list[StoredObject]:
    """Returns the tar files below ``url``, or none if images are there too."""
    found = list_objects(open_store(url), url)
    return [found[name] for name in _only_tars(found)]


def _in_folder(folder: Path) -> list[str]:
    """Returns the tar files of a folder, and of its folders, in which no images are."""
    return _only_tars(_walked(folder, 2))


def _only_tars(names: Iterable[str]) -> list[str]:
    images, tars = image_extensions(), list[str]()
    for name in names:  # as few as possible are looked at, since there may be a million images
        if any(is_ignored(part) for part in name.split("/")):
            continue
        if os.path.splitext(name)[1].lower() in images:
            return []
        if name.endswith(TAR):
            tars.append(name)
    return sorted(tars)


def _walked(folder: Path, depth: int, prefix: str = "") -> Iterator[str]:
    """Yields the names of the files in ``folder`` and in folders below it, ``depth`` levels in all."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield prefix + entry.name
            elif depth > 1 and not is_ignored(entry.name):
                yield from _walked(Path(entry.path), depth - 1, f"{prefix}{entry.name}/")


def _none(source: str, there: Sequence[str], wanted: str = "") -> DataError:
    what = f"there is no {wanted} for" if wanted and wanted != source else "there is no file for"
    return DataError(
        f"{what} {source!r}",
        f"the names of files that are there{': ' + some(there, 5) if there else ''}",
        "check the name and the range in braces",
    )
