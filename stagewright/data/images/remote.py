"""Images whose bytes lie in a few large files of an object store: what a reader of them needs, and a plain reader.

The seam between what knows where images lie (a pack, tar files) and what fetches their bytes: :class:`RemoteFiles` names the
files, their ETags and the place of each image; a :class:`Reader` turns rows into :class:`Stored`. :class:`RangeReader` fetches
each image by itself and keeps nothing.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places
from stagewright.data.images.stored import Stored
from stagewright.errors import DataError
from stagewright.storage.objects import explain, first_line, kind_of, open_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_ATTEMPTS = 5
_FINAL = ("no bucket", "no rights", "credentials", "expired", "region", "missing")
"""Kinds of errors that another attempt does not change."""


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

    def taken(self, rows: NDArray[np.int64]) -> RemoteFiles:
        """Returns the images ``rows`` (n,) alone, in their order, in the same files."""
        return replace(self, places=self.places.taken(rows))


class Reader(Protocol):
    """Fetches the bytes of images of :class:`RemoteFiles`. Thread-safe."""

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,), of kind ``encoded``. What cannot be fetched is in ``failures``, as
        OSError. The bytes need not be checked (:func:`checked`)."""
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
            try:
                buffers.append(self._read(int(places.which[row]), int(places.offsets[row]), int(places.lengths[row])))
            except (OSError, DataError) as error:
                failures[at] = error
                buffers.append(b"")
        count = len(buffers)
        lengths = np.fromiter(map(len, buffers), np.int64, count)
        return Stored(
            "encoded", buffers, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), lengths, failures=failures
        )

    def _read(self, number: int, offset: int, length: int) -> bytes:
        return read_range(
            self._store, self.files.url, self.files.places.files[number], offset, length, self.files.etags[number]
        )


def read_range(store: ObjectStore, url: str, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
    """Returns ``length`` bytes from ``offset`` on of the file ``name`` below ``url``, which ``store`` opened; a failed request is
    repeated a few times.

    DataError if the file does not have the ``etag`` any more, or is gone; OSError if the store does not answer.
    """
    import obstore
    from obstore.exceptions import BaseError, PreconditionError

    for attempt in range(_ATTEMPTS):
        try:
            wanted = {"range": (offset, offset + length), **({"if_match": etag} if etag else {})}
            data = bytes(obstore.get(store, name, options=wanted).bytes())  # pyright: ignore[reportArgumentType]
            if len(data) == length:
                return data
            reason = f"{len(data):,} of {length:,} bytes came"
        except PreconditionError:
            raise changed(url, name) from None
        except (BaseError, OSError) as error:
            reason = first_line(error)
            if kind_of(error) == "missing":
                raise changed(url, name, "is gone") from error
            if kind_of(error) in _FINAL:
                raise explain(error, f"{url}/{name}", "reading it", "s3:GetObject") from error
        if attempt + 1 < _ATTEMPTS:
            time.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)
    raise OSError(f"{url}/{name} cannot be read: {reason}")


def changed(url: str, name: str, what: str = "has changed") -> DataError:
    """Returns the error for a file that is not the one that was there when its images were listed."""
    return DataError(
        f"{name} of {url} {what} since its pictures were listed",
        "files that do not change while they are used",
        "restore it (a versioned bucket keeps earlier objects), or start a new run on the data as they are now",
    )


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
    sizes = stored.sizes if stored.sizes is None else stored.sizes.copy()
    if sizes is not None:
        sizes[list(wrong)] = 0
    return replace(stored, lengths=lengths, sizes=sizes, failures={**stored.failures, **wrong})
