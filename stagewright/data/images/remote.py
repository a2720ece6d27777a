"""Images whose bytes lie in a few large files of an object store: what a reader of them needs, and plain readers.

The seam between what knows where images lie (a pack, tar files, Parquet files) and what fetches their bytes: :class:`RemoteFiles`
names the files, their ETags and the place of each image; a :class:`Reader` turns rows into :class:`Stored`. :func:`plain_reader`
gives one that keeps nothing on the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places
from stagewright.data.images.row_groups import Cells, GroupMemory, RowGroups
from stagewright.data.images.stored import Stored
from stagewright.errors import DataError, StorageError
from stagewright.storage.object_files import Changed, StoredObject, read_range
from stagewright.storage.objects import open_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_GAP = 1 << 16
_TOGETHER = 1 << 23
"""Bytes: a gap between images that is read too, and the most in one request."""


@dataclass(frozen=True, eq=False)
class RemoteFiles:
    """Files below a URL, and where N images lie in them."""

    url: str
    """Without a ``/`` at the end; ``url/NAME`` is the file ``NAME`` of ``places.files``."""
    places: Places
    """Row i of the images is image i of it. With ``row_groups``, what counts as a file is the images of a Parquet file alone, one
    after the other; offsets and sizes are those in it."""
    etags: tuple[str, ...]
    """ETag of each file of ``places.files``. A file with another ETag is another file, and is not read."""
    row_groups: RowGroups | None = None
    """Where the images of Parquet files are read from; None for images that are ranges of bytes of their files."""

    def open(self) -> ObjectStore:
        """Returns the store with ``url`` as prefix; contacts nothing."""
        return open_store(self.url)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The files with sizes and ETags, as a manifest records them."""
        sizes = self.places.sizes if self.row_groups is None else self.row_groups.sizes
        return tuple(map(StoredObject, self.places.files, sizes, self.etags))


class Reader(Protocol):
    """Fetches the bytes of images of :class:`RemoteFiles`. Thread-safe."""

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,), of kind ``encoded``. What cannot be fetched is in ``failures``, and, as
        :class:`Damaged`, what does not match its checksum where ``places`` of the files has them."""
        ...


class Damaged(OSError):
    """The bytes of an image do not match its checksum."""


def plain_reader(files: RemoteFiles) -> Reader:
    """Returns a reader of ``files`` that keeps nothing on the disk."""
    return RangeReader(files) if files.row_groups is None else _RowGroupReader(files, files.row_groups)


class RangeReader:
    """Fetches images by range requests, one for those that lie side by side, and keeps nothing."""

    def __init__(self, files: RemoteFiles) -> None:
        self.files, self._store = files, files.open()

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,)."""
        places, failures = self.files.places, dict[int, Exception]()
        which, offsets, lengths = places.which[rows], places.offsets[rows], places.lengths[rows].copy()
        buffers: list[bytes] = []
        buffer_of, begins = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int64)
        for group in _neighbours(which, offsets, lengths):
            begin, end = int(offsets[group].min()), int((offsets[group] + lengths[group]).max())
            try:
                data = _read(self._store, self.files, int(which[group[0]]), begin, end - begin)
            except (OSError, DataError) as error:
                failures.update(dict.fromkeys(group.tolist(), error))
                lengths[group], data = 0, b""
            buffer_of[group], begins[group] = len(buffers), offsets[group] - begin if data else 0
            buffers.append(data)
        found = Stored("encoded", buffers, buffer_of, begins, lengths, failures=failures)
        return found if places.crcs is None else without_damaged(found, damaged_in(found, places.crcs[rows]))


class _RowGroupReader:
    """Fetches images by the row groups that they are in, and keeps the last ones in memory: for images in about their order."""

    def __init__(self, files: RemoteFiles, groups: RowGroups) -> None:
        self.files, self._store = files, files.open()
        self._groups, self._memory = groups, GroupMemory(self._read_group)

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,)."""
        failures, buffers = dict[int, Exception](), [b""] * len(rows)
        of = self._groups.of[rows]
        for group in np.unique(of).tolist():
            at = np.flatnonzero(of == group)
            try:
                cells = self._memory.get(group)
                check_cells(self.files, self._groups, cells, rows[at])
            except (OSError, DataError) as error:
                failures.update(dict.fromkeys(at.tolist(), error))
                continue
            for one in at.tolist():
                buffers[one] = bytes(
                    cells.row(int(self._groups.row[rows[one]]))
                )  # a view would keep all of the row group
        lengths = np.fromiter(map(len, buffers), np.int64, len(rows))
        which, offsets = np.arange(len(rows), dtype=np.int32), np.zeros(len(rows), np.int64)
        return Stored("encoded", buffers, which, offsets, lengths, failures=dict(sorted(failures.items())))

    def _read_group(self, group: int) -> Cells:
        content = [_read(self._store, self.files, *span) for span in self._groups.spans(group)]
        return self._groups.decode(group, content)


def check_cells(files: RemoteFiles, groups: RowGroups, cells: Cells, rows: NDArray[np.int64]) -> None:
    """DataError if ``cells``, of a row group, do not have the images ``rows`` (n,) with their lengths."""
    if not cells.have(groups.row[rows], files.places.lengths[rows]):
        raise changed(files.url, files.places.files[int(files.places.which[rows[0]])])


def _read(store: ObjectStore, files: RemoteFiles, number: int, offset: int, length: int) -> bytes:
    """Returns bytes of a file. DataError if it has changed, OSError if it cannot be read."""
    name, etag = files.places.files[number], files.etags[number]
    try:
        return read_range(store, files.url, name, offset, length, etag)
    except (Changed, FileNotFoundError) as error:
        raise changed(files.url, name, "is gone" if isinstance(error, OSError) else "has changed") from error
    except StorageError as error:
        raise OSError(error.given) from error


def _neighbours(
    which: NDArray[np.int32], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> list[NDArray[np.intp]]:
    """Returns the indices of images that are fetched together: of one file, with small gaps, and not too much at once."""
    order = np.lexsort((offsets, which))
    groups: list[list[int]] = []
    end = begin = 0
    for at in order.tolist():
        offset, length = int(offsets[at]), int(lengths[at])
        near = groups and which[groups[-1][0]] == which[at] and offset - end <= _GAP
        if near and offset + length - begin <= _TOGETHER:
            groups[-1].append(at)
            end = max(end, offset + length)
        else:
            groups.append([at])
            begin, end = offset, offset + length
    return [np.array(group) for group in groups]


def changed(url: str, name: str, what: str = "has changed") -> DataError:
    """Returns the error for a file that is not the one that was there when its images were listed."""
    return DataError(
        f"{name} of {url} {what} since its pictures were listed",
        "files that do not change while a run uses them",
        "restore it (a bucket with versions keeps earlier objects), or start a new run on the data as they are now",
    )


def refuse_changed(url: str, before: Sequence[StoredObject], now: Sequence[StoredObject]) -> None:
    """DataError with the name of the first file below ``url`` that was ``before`` and is not ``now`` the same. One without an
    ETag is the same if it has the same size."""
    current = {one.name: one for one in now}
    for one in before:
        found = current.get(one.name)
        if found is None:
            raise changed(url, one.name, "is gone")
        if found.bytes != one.bytes or (one.etag and found.etag != one.etag):
            raise changed(url, one.name, f"has changed (ETag {found.etag} in place of {one.etag})")


def damaged_in(stored: Stored, expected: NDArray[np.uint32]) -> list[int]:
    """Returns which images of ``stored`` do not have the crc32 ``expected`` (n,); those in its ``failures`` are not looked at."""
    return [
        at
        for at, crc in enumerate(expected.tolist())
        if at not in stored.failures and zlib.crc32(stored.data(at)) != crc
    ]


def without_damaged(stored: Stored, wrong: Sequence[int]) -> Stored:
    """Returns ``stored`` with a failure in place of each of the images ``wrong``."""
    if not wrong:
        return stored
    lengths = stored.lengths.copy()
    lengths[list(wrong)] = 0
    failures = {at: Damaged("the bytes of an image do not match its checksum") for at in wrong}
    return replace(stored, lengths=lengths, failures={**stored.failures, **failures})
