"""Makes a pack in an object store, part by part: at no time more than one part is on this machine's disk.

``packing.json`` and a small table of the records of each part lie there until the pack is finished, so an interrupted packing
continues on any machine, and with the same objects as without the interruption. ``pack.json`` is written last. Parts that are
there are not read again: that they have the expected size is enough, since every record is compared when it is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stagewright.data.pack.format import HEAD, INDEX, UNFINISHED, VERSION, Extents, Head, PartFile, has_crc32
from stagewright.data.pack.making import Missing, Say, check_space, same_pack, write_parts
from stagewright.data.pack.place import clear
from stagewright.data.pack.reader import Pack
from stagewright.data.pack.records import Job
from stagewright.data.pack.remote import RemotePack
from stagewright.data.pack.writer import finish, write_head
from stagewright.data.sources.scan import Progress
from stagewright.errors import DataError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import make_folders
from stagewright.storage.object_files import StoredObject, list_objects, read_object, repeated
from stagewright.storage.objects import CONCURRENCY, open_store
from stagewright.storage.objects import part_bytes as upload_bytes
from stagewright.storage.parquet import parse_table, write_table
from stagewright.text import some

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_OWN = re.compile(
    r"part-\d{5,9}\.arrow|records-\d{5,9}\.parquet|" + "|".join(map(re.escape, (HEAD, UNFINISHED, INDEX)))
)
_RECORDS_SCHEMA = pa.schema({"offset": pa.int64(), "length": pa.int64(), "crc32": pa.uint32()})


def store_workplace(url: str) -> Path:
    """Returns the folder in which the files of the pack at ``url`` are made before they are uploaded, and makes it."""
    folder = cache_folder("packing", hashlib.blake2b(url.encode(), digest_size=16).hexdigest())
    make_folders(folder)
    return folder


def make_in_store(
    job: Job, url: str, workers: int, overwrite: bool, part_bytes: int, progress: Progress | None, say: Say
) -> tuple[int, Head]:
    """Makes the pack at ``url``, from what is there of it. Returns the number of records that it wrote, and the head.

    Raises DataError if other files are there, or another pack (without ``overwrite``); StorageError if the store refuses.
    """
    there = _Place(url)
    clear(job.folder)
    old = there.same_pack(job, overwrite)
    checked = there.extents(old, job.folder) if old else []
    missing = Missing.of(job, old.parts if old else (), checked, say)
    if old and not len(missing.todo) and HEAD in there.found and old.version == VERSION and there.opens():
        return 0, old
    check_space(job, missing.todo, say, most=2.0 * part_bytes)

    def save(part: PartFile | None = None) -> None:
        head = replace(job.head, parts=tuple(missing.parts))
        if part is not None:
            there.upload(job.folder / part.file)
            span = slice(part.first, part.first + part.rows)
            columns = [
                column[span] for column in (missing.extents.offsets, missing.extents.lengths, missing.extents.crcs)
            ]
            records = job.folder / _records_of(part)
            write_table(pa.table(columns, schema=_RECORDS_SCHEMA), records)
            there.upload(records)
            for file in (job.folder / part.file, records):
                file.unlink()
        write_head(job.folder / UNFINISHED, head)
        there.upload(job.folder / UNFINISHED)

    if old is None:
        there.delete([HEAD, *(name for name in there.found if name != HEAD)])
    save()
    there.delete([HEAD])
    write_parts(job, missing, workers, part_bytes, progress, say, save)
    finish(job, missing.parts, missing.extents)
    for name in (INDEX, HEAD):
        there.upload(job.folder / name)
    kept = {HEAD, INDEX, *(part.file for part in missing.parts)}
    there.delete([name for name in list_objects(there.store, url) if name not in kept])
    head = Head.read(job.folder / HEAD)
    clear(job.folder)
    return len(missing.todo), head


class _Place:
    """The place of a pack in an object store, with what was there at first."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store: ObjectStore = open_store(url)
        self.found: dict[str, StoredObject] = list_objects(self.store, url)
        foreign = [name for name in self.found if not _OWN.fullmatch(name)]
        if foreign or (self.found and not self.found.keys() & {HEAD, UNFINISHED}):
            raise DataError(
                f"{url} contains other files: {some(foreign or self.found, 3)}",
                "a URL below which nothing is, or a pack of the same pictures",
                "choose another URL with --out",
            )

    def same_pack(self, job: Job, overwrite: bool) -> Head | None:
        """Returns the head of the same pack, finished or not; None if there is none or it is to be replaced."""
        name = HEAD if HEAD in self.found else UNFINISHED
        if name not in self.found:
            return None
        try:
            (job.folder / name).write_bytes(read_object(self.store, self.url, name))
            old = Head.read(job.folder / name)
        except DataError:
            if not overwrite:
                raise
            return None
        return same_pack(old, job, self.url, overwrite)

    def extents(self, old: Head, folder: Path) -> list[Extents | None]:
        """Returns where the records of each part of ``old`` lie; None if the part is not there, or this is not known. Uses
        ``folder`` for copies of small files."""
        if HEAD not in self.found:
            return [self._extents_of(part) for part in old.parts]
        try:
            return self._extents_in_index(old, folder)
        except (DataError, FileNotFoundError):
            return [None] * len(old.parts)

    def opens(self) -> bool:
        """Whether the pack is whole, as far as this can be told without reading it."""
        try:
            RemotePack.open_url(self.url)
        except DataError:
            return False
        return True

    def upload(self, file: Path) -> None:
        """Uploads ``file`` under its name."""
        import obstore

        def put() -> None:
            size = upload_bytes(file.stat().st_size)
            obstore.put(self.store, file.name, file, chunk_size=size, max_concurrency=CONCURRENCY)

        repeated(put, f"{self.url}/{file.name}", "writing it", "s3:PutObject")

    def delete(self, names: Sequence[str]) -> None:
        """Deletes the objects ``names``, in this order, as far as they exist."""
        import obstore

        for name in names:
            with suppress(FileNotFoundError):
                repeated(
                    lambda name=name: obstore.delete(self.store, name), self.url, f"deleting {name}", "s3:DeleteObject"
                )

    def _extents_in_index(self, old: Head, folder: Path) -> list[Extents | None]:
        (folder / INDEX).write_bytes(read_object(self.store, self.url, INDEX))
        if not has_crc32(folder / INDEX, old.index_crc32):
            return [None] * len(old.parts)
        pack = Pack(folder, old) if old.version > 1 else RemotePack.open_url(self.url)
        places = pack.places()
        found: list[Extents | None] = []
        for number, part in enumerate(old.parts):
            rows = np.flatnonzero(places.which == number)
            rows = rows[np.argsort(places.offsets[rows])]
            assert places.crcs is not None
            extents = Extents(places.offsets[rows], places.lengths[rows], places.crcs[rows])
            found.append(extents if self._has(part) else None)
        return found

    def _has(self, part: PartFile) -> bool:
        return part.file in self.found and self.found[part.file].bytes == part.bytes

    def _extents_of(self, part: PartFile) -> Extents | None:
        if not self._has(part):
            return None
        try:
            table = parse_table(read_object(self.store, self.url, _records_of(part)))
        except (FileNotFoundError, pa.ArrowException):
            return None
        if not table.schema.equals(_RECORDS_SCHEMA) or len(table) != part.rows:
            return None
        return Extents(*(table[name].to_numpy() for name in _RECORDS_SCHEMA.names))


def _records_of(part: PartFile) -> str:
    """Returns the name of the table of the records of ``part``."""
    return part.file.replace("part-", "records-").replace(".arrow", ".parquet")
