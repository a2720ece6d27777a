"""Packs in an object store: opened without reading the parts, whose records are fetched when they are needed.

Head and index are fetched to the cache folder, once for each ETag of the head. At the start the parts' sizes are compared with
the head, and their ETags with those that a run has recorded. A record is compared with its crc32 when it is read; a damaged one
is an image that cannot be read. A pack of version 1 is indexed once from the footers of its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.remote import Damaged, RangeReader, Reader, RemoteFiles, changed, refuse_changed
from stagewright.data.images.stored import Stored
from stagewright.data.pack.footers import find_records
from stagewright.data.pack.format import HEAD, INDEX, UNFINISHED, Extents, Head, PartFile, damaged, has_crc32
from stagewright.data.pack.images import PackRows
from stagewright.data.pack.reader import Pack, is_pack
from stagewright.data.sources.folders import absolute_path
from stagewright.errors import DataError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import make_folders, write_whole
from stagewright.storage.object_files import Changed, StoredObject, list_objects, read_object, read_range
from stagewright.storage.objects import is_remote, open_store
from stagewright.storage.parquet import read_table, write_table
from stagewright.system.threads import Pool
from stagewright.text import counted

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PLACES = "places.parquet"
_PLACES_SCHEMA = pa.schema({"offset": pa.int64(), "length": pa.int64()})
_FOOTERS_AT_ONCE = 16


def open_pack(place: str, before: Sequence[StoredObject] = ()) -> Pack:
    """Opens the pack at ``place``, a folder or a URL; errors as for :meth:`Pack.open` and :meth:`RemotePack.open_url`."""
    return RemotePack.open_url(place, before) if is_remote(place) else Pack.open(absolute_path(place))


@dataclass(frozen=True, eq=False)
class RemotePack(Pack):
    """A finished pack in an object store; ``folder`` has copies of its head and its index."""

    url: str
    found: tuple[StoredObject, ...]
    """The parts, with sizes and ETags."""

    @classmethod
    def open_url(cls, url: str, before: Sequence[StoredObject] = ()) -> RemotePack:
        """Opens the pack at ``url``. ``before`` are the files that a run has recorded; none for a new one.

        Raises DataError if there is no pack, if it is not finished, if a part is missing or has another size or, by name, another
        ETag than ``before``. Raises StorageError if the store cannot be read.
        """
        url = url.rstrip("/")
        store = open_store(url)
        found = list_objects(store, url)
        if HEAD not in found:
            raise _no_pack(url, found)
        folder = _fetched(store, url, found[HEAD])
        head = Head.read(folder / HEAD)
        refuse_changed(url, before, tuple(found.values()))
        for part in head.parts:
            if part.file not in found:
                raise damaged(url, f"{part.file} is missing")
            if (size := found[part.file].bytes) != part.bytes:
                raise damaged(url, f"{part.file} has {size:,} bytes instead of {part.bytes:,}")
        if (rows := sum(part.rows for part in head.parts)) != head.num_records:
            raise damaged(url, f"its parts have {rows:,} records instead of {head.num_records:,}")
        if not _has_index(folder, head):
            _fetch(store, url, INDEX, folder)
            if not _has_index(folder, head):
                raise damaged(url, f"{INDEX} changed after the pack was written")
        return cls(folder, head, url, tuple(found[part.file] for part in head.parts))

    @property
    def place(self) -> str:
        """The URL of the pack."""
        return self.url

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The parts, with sizes and ETags."""
        return self.found

    def images(self, paths: pa.StringArray, hashes: pa.StringArray | None = None) -> RemotePackImages:
        """Returns the images of ``paths``, which are fetched when they are read; errors as for a pack on the disk."""
        rows = self.rows_for(paths, hashes)
        return RemotePackImages(rows, RemoteFiles(self.url, rows.places, tuple(one.etag for one in self.objects)))

    def extents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns offset and length of each record of a pack of version 1, by number; they are cached beside its index."""
        count, file = self.head.num_records, self.folder / _PLACES
        try:
            table = read_table(file)
            if not table.schema.equals(_PLACES_SCHEMA) or len(table) != count:
                raise pa.ArrowInvalid("another table")
        except (FileNotFoundError, pa.ArrowException):
            found = self._indexed()
            table = pa.table([found.offsets, found.lengths], schema=_PLACES_SCHEMA)
            write_table(table, file)
        return table["offset"].to_numpy(), table["length"].to_numpy()

    def _indexed(self) -> Extents:
        """Finds all records from the footers of the parts."""
        store, found = open_store(self.url), Extents.empty(self.head.num_records)

        def index(part: PartFile, etag: str) -> None:
            def read(offset: int, length: int) -> bytes:
                return read_range(store, self.url, part.file, offset, length, etag)

            span = slice(part.first, part.first + part.rows)
            try:
                offsets, lengths = find_records(read, part.bytes)
            except ValueError as error:
                raise damaged(self.url, f"{part.file} cannot be read ({error})") from error
            except (Changed, FileNotFoundError) as error:
                raise changed(self.url, part.file) from error
            if len(offsets) != part.rows:
                raise damaged(self.url, f"{part.file} has {len(offsets):,} records instead of {part.rows:,}")
            found.offsets[span], found.lengths[span] = offsets, lengths

        with Pool(_FOOTERS_AT_ONCE, "index") as pool:
            for task in [
                pool.submit(index, part, one.etag) for part, one in zip(self.head.parts, self.objects, strict=True)
            ]:
                task.result()
        return found


class RemotePackImages(PackRows):
    """The images of a pack in an object store, by row. All methods are thread-safe."""

    def __init__(self, rows: PackRows, files: RemoteFiles) -> None:
        self.__dict__.update(vars(rows))
        self.files = files
        self.reader: Reader = RangeReader(files)
        """Fetches the bytes of rows. A cache of blocks takes its place for a training."""

    def read(self, row: int) -> bytes:
        """Returns the bytes of ``row``: a JPEG file, or raw pixels. Raises OSError if they cannot be read or are damaged."""
        stored = self.stored(np.array([row]))
        if 0 in stored.failures:
            raise stored.failures[0]
        return bytes(stored.data(0))

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Fetches the images of ``rows``. Those that cannot be fetched, or do not match their crc32, are in its ``failures``."""
        found = self.reader.fetch(rows)
        for at, error in found.failures.items():
            if isinstance(error, Damaged):
                name = self.paths[int(rows[at])].as_py()
                found.failures[at] = OSError(f"{name} is damaged: its bytes do not match its checksum")
        return self.with_sizes(found, rows)


def _fetched(store: ObjectStore, url: str, head: StoredObject) -> Path:
    """Returns a folder of the cache with a copy of the ``head`` of the pack at ``url``."""
    key = hashlib.blake2b(f"{url}\n{head.etag}".encode(), digest_size=16).hexdigest()
    folder = cache_folder("packs", "remote", key)
    if not (folder / HEAD).is_file():
        make_folders(folder)
        _fetch(store, url, HEAD, folder, head.etag)
    return folder


def _fetch(store: ObjectStore, url: str, name: str, folder: Path, etag: str = "") -> None:
    try:
        write_whole(folder / name, read_object(store, url, name, etag), durable=False)
    except FileNotFoundError as error:
        raise damaged(url, f"{name} is missing") from error
    except Changed as error:
        raise changed(url, name) from error


def _has_index(folder: Path, head: Head) -> bool:
    try:
        return has_crc32(folder / INDEX, head.index_crc32)
    except FileNotFoundError:
        return False


def _no_pack(url: str, found: dict[str, StoredObject]) -> DataError:
    if UNFINISHED in found:
        parts = sum(name.startswith("part-") for name in found)
        return DataError(
            f"the pack {url} is not finished: {counted(parts, 'part')} of it are written",
            "a finished pack",
            "run the same data pack command again: it continues where it stopped",
        )
    return DataError(
        f"there is no pack {url}: {'no file' if not found else HEAD + ' is not'} below this address",
        f"the URL of a pack, with {HEAD}, {INDEX} and part-00000.arrow directly below it",
        "check the URL, or make a pack there: stagewright data pack DATA --out " + url,
    )


def is_pack_source(source: str) -> bool:
    """Returns True if ``source`` is a pack: a folder, or a URL whose name ends with ``.pack`` or below which a head lies."""
    if not is_remote(source):
        return is_pack(absolute_path(source))
    if source.rstrip("/").endswith(".pack"):
        return True
    try:
        read_object(open_store(source), source, HEAD)
    except FileNotFoundError:
        return False
    return True
