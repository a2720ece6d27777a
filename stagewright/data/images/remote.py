"""Images whose bytes lie in a few large files of an object store: what a reader of them needs, and a plain reader.

The seam between what knows where images lie (a pack, tar files) and what fetches their bytes: :class:`RemoteFiles` names the
files, their ETags and the place of each image; a :class:`Reader` turns rows into :class:`Stored`. :class:`RangeReader` fetches
each image by itself and keeps nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places
from stagewright.data.images.stored import Stored
from stagewright.errors import DataError, StorageError
from stagewright.storage.object_files import Changed, StoredObject, read_range
from stagewright.storage.objects import open_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore


@dataclass(frozen=True, eq=False)
class RemoteFiles:
    """Files below a URL, and where N images lie in them."""

    url: str
    """Without a ``/`` at the end; ``url/NAME`` is the file ``NAME`` of ``places.files``."""
    places: Places
    """Row i of the images is image i of it."""
    etags: tuple[str, ...]
    """ETag of each file of ``places.files``. A file with another ETag is another file, and is not read."""

    def open(self) -> ObjectStore:
        """Returns the store with ``url`` as prefix; contacts nothing."""
        return open_store(self.url)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The files with sizes and ETags, as a manifest records them."""
        return tuple(map(StoredObject, self.places.files, self.places.sizes, self.etags))


class Reader(Protocol):
    """Fetches the bytes of images of :class:`RemoteFiles`. Thread-safe."""

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,), of kind ``encoded``. What cannot be fetched is in ``failures``. The
        bytes need not be checked: who holds the reader does it (:func:`checked`)."""
        ...


class RangeReader:
    """Fetches each image by a range request of its own."""

    def __init__(self, files: RemoteFiles) -> None:
        self.files, self._store = files, files.open()

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,)."""
        places, failures = self.files.places, dict[int, Exception]()
        buffers: list[bytes] = []
        for at, row in enumerate(rows.tolist()):
            name, etag = (one[places.which[row]] for one in (places.files, self.files.etags))
            try:
                where = int(places.offsets[row]), int(places.lengths[row])
                buffers.append(read_range(self._store, self.files.url, name, *where, etag))
            except (Changed, FileNotFoundError) as error:
                failures[at] = changed(self.files.url, name, "is gone" if isinstance(error, OSError) else "has changed")
                buffers.append(b"")
            except StorageError as error:
                failures[at] = OSError(error.given)
                buffers.append(b"")
        return stored_bytes(buffers, failures)


def stored_bytes(buffers: Sequence[bytes], failures: dict[int, Exception]) -> Stored:
    """Returns the images with the bytes ``buffers``, which are empty for those in ``failures``."""
    count = len(buffers)
    lengths = np.fromiter(map(len, buffers), np.int64, count)
    which, offsets = np.arange(count, dtype=np.int32), np.zeros(count, np.int64)
    return Stored("encoded", buffers, which, offsets, lengths, failures=failures)


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


def checked(stored: Stored, expected: NDArray[np.uint32], names: Sequence[str]) -> Stored:
    """Returns ``stored`` with a failure for each image whose bytes do not have the crc32 ``expected`` (n,); ``names`` (n,) are
    the images' names for the message."""
    wrong = dict[int, Exception]()
    for at in range(len(stored)):
        if at not in stored.failures and zlib.crc32(stored.data(at)) != expected[at]:
            wrong[at] = OSError(f"{names[at]} is damaged: its bytes do not match its checksum")
    if not wrong:
        return stored
    lengths = stored.lengths.copy()
    lengths[list(wrong)] = 0
    return replace(stored, lengths=lengths, failures={**stored.failures, **wrong})
