"""Files in an object store: which there are below a URL, reading parts of them, and copies of small ones in the cache folder."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from stagewright.errors import StorageError, Unreadable
from stagewright.storage.objects import PASSING, explain, first_line, kind_of

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

T = TypeVar("T")

ATTEMPTS = 5
"""A request that fails for a reason that passes is made so many times, with pauses of 0.1 to 1.6 seconds."""


class StoredObject(NamedTuple):
    """A file in an object store, as it was when it was listed."""

    name: str
    """Relative to the URL that was listed."""
    bytes: int
    etag: str
    """Changes if the content changes; empty if the store has none."""


class Changed(Exception):
    """A condition of a request does not hold: a file has another ETag, or exists already."""


def list_objects(store: ObjectStore, url: str) -> dict[str, StoredObject]:
    """Returns all files below ``url``, which ``store`` opened, by name and sorted; StorageError if they cannot be listed."""

    def listed() -> list[StoredObject]:
        pages = store_list(store)
        return [StoredObject(one["path"], one["size"], one["e_tag"] or "") for page in pages for one in page]

    from obstore import list as store_list

    found = repeated(listed, url, "listing it", "s3:ListBucket")
    return {one.name: one for one in sorted(found)}


def list_folder(store: ObjectStore, url: str) -> tuple[dict[str, StoredObject], list[str]]:
    """Returns the files directly below ``url``, which ``store`` opened, by name and sorted, and the names of the folders there;
    errors as for :func:`list_objects`, which looks into all folders and takes as long as there are files."""
    from obstore import list_with_delimiter

    found = repeated(lambda: list_with_delimiter(store), url, "listing it", "s3:ListBucket")
    files = sorted(StoredObject(one["path"], one["size"], one["e_tag"] or "") for one in found["objects"])
    return {one.name: one for one in files}, sorted(name.strip("/") for name in found["common_prefixes"])


def read_object(store: ObjectStore, url: str, name: str, etag: str = "") -> bytes:
    """Returns the content of the file ``name`` below ``url``. FileNotFoundError if there is none; :class:`Changed` if its ETag is
    another than ``etag``; StorageError if it cannot be read."""
    import obstore

    def read() -> bytes:
        return bytes(obstore.get(store, name, options=_expecting(etag)).bytes())

    return repeated(read, f"{url}/{name}", "reading it", "s3:GetObject")


def read_range(store: ObjectStore, url: str, name: str, offset: int, length: int, etag: str = "") -> bytes:
    """Returns ``length`` bytes from ``offset`` on of the file ``name`` below ``url``; errors as for :func:`read_object`, and
    StorageError if the file ends before."""
    return bytes(view_range(store, url, name, offset, length, etag))


def view_range(store: ObjectStore, url: str, name: str, offset: int, length: int, etag: str = "") -> memoryview:
    """As :func:`read_range`, without a copy of the bytes that came."""
    import obstore

    def read() -> memoryview:
        data = memoryview(
            obstore.get(store, name, options={"range": (offset, offset + length), **_expecting(etag)}).bytes()
        )
        if len(data) != length:
            raise OSError(f"{len(data):,} of {length:,} bytes came")
        return data

    return repeated(read, f"{url}/{name}", "reading it", "s3:GetObject")


class RangeFile(io.RawIOBase):
    """A file of ``size`` bytes, of which ``read_at(offset, length)`` reads a part; for libraries that read from file objects."""

    def __init__(self, size: int, read_at: Callable[[int, int], bytes | memoryview]) -> None:
        self._size, self._read_at, self._place = size, read_at, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves to a position, as of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Returns the position."""
        return self._place

    def read(self, size: int = -1, /) -> bytes | memoryview:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the bytes from the position on; -1: all that are left."""
        left = max(0, self._size - self._place)
        if not (count := left if size < 0 else min(size, left)):
            return b""
        data = self._read_at(self._place, count)
        self._place += len(data)
        return data


def _expecting(etag: str) -> GetOptions:
    return {"if_match": etag} if etag else {}


def repeated(request: Callable[[], T], url: str, doing: str, right: str) -> T:
    """Returns what ``request`` returns; calls it again if it fails for a reason that passes.

    FileNotFoundError if there is no such file, :class:`Changed` for a condition that does not hold, and StorageError as
    :func:`~stagewright.storage.objects.explain` words it: Unreadable if the store does not answer.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    for attempt in range(ATTEMPTS):
        try:
            return request()
        except (PreconditionError, AlreadyExistsError) as error:
            raise Changed(f"{url} has changed") from error
        except (BaseError, OSError) as error:
            kind = kind_of(error)
            if kind == "missing":
                raise FileNotFoundError(f"{url} does not exist") from error
            if kind not in PASSING:
                raise explain(error, url, doing, right) from error
            if attempt + 1 == ATTEMPTS:
                said = explain(error, url, doing, right)
                raise Unreadable(said.given, said.allowed, said.remedy) from error
        time.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)
    raise AssertionError(first_line(StorageError(url, doing, right)))
