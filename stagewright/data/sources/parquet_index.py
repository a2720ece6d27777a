"""Indexes Parquet files with images in an object store: of each row the size and the hash of its image, and the other columns.

Each row group is read once, and each image decoded once, as those on the disk are; at most one row group for each thread is in
memory. An index is cached by place, size and ETag of the file, and the end of the file, which describes it, beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.places import Span
from stagewright.data.images.remote import changed
from stagewright.data.images.row_groups import column_range, metadata_of, partly_in_memory, spans_of
from stagewright.data.sources.embedded import (
    cells_of,
    damaged,
    different_columns,
    find_column,
    opened,
    other_columns,
    path_of,
    refuse_other_column,
    with_class_names,
)
from stagewright.data.sources.scan import DIGEST_BYTES, Progress, described
from stagewright.data.sources.shard_names import Shards
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import read_file, write_whole
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import Changed, RangeFile, StoredObject, read_range
from stagewright.storage.objects import open_store, price_of
from stagewright.storage.parquet import read_table, write_table
from stagewright.system.threads import Pool, as_finished
from stagewright.text import counted

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_VERSION = 1
_FEWEST_THREADS, _MOST_THREADS = 4, 16
_END_BYTES = 1 << 16
"""Bytes of the end of a file that are read first; more where its description is longer."""
_GAP_BYTES = 1 << 16
"""Bytes between two columns that are read too: another request would take longer."""
_CELLS = 16
"""Images that are objects of Python at once."""
_MAGIC = b"PAR1"
_KEY, _OTHER = b"stagewright.parquet", "column:"
_ROWS = pa.schema(
    {
        "path": pa.string(),  # of the image, as it would be if it were unpacked; null where there is none
        "length": pa.int64(),
        "digest": pa.binary(DIGEST_BYTES),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),  # why it is no image that can be read
    }
)


@dataclass(frozen=True, eq=False)
class ParquetIndex:
    """What is in a Parquet file, row by row."""

    column: str
    """The column of the images."""
    footer: bytes
    rows: pa.Table
    """One row for each of the file, with the columns path (null without an image), length, digest, width, height, reason."""
    others: pa.Table
    """The columns without images, with class names in place of their numbers."""


def index_parquet(
    shards: Shards,
    requested: str | None,
    max_pixels: int | None,
    *,
    workers: int,
    progress: Progress | None,
    say: Callable[[str], None],
) -> list[ParquetIndex] | None:
    """Returns the indexes of the files ``shards``, or None if the first one holds no images (in the column ``requested``, if
    it is given).

    Images with more than ``max_pixels`` are unreadable; None: any index is good, as for images that were read before. ``say`` is
    told the size and the price of what must be read. DataError for a damaged file, for one that has changed, and for one with
    other columns than the first.
    """
    store, most = open_store(shards.root), MOST_PIXELS if max_pixels is None else max_pixels
    first = _File(store, shards.root, shards.files[0], requested)
    known = [first.cached(max_pixels)]
    if known[0] is not None:
        column = known[0].column
    else:
        with opened(first.file(), first.url, first.metadata) as parquet:
            if (column := find_column(parquet, first.url, requested)) is None:
                return None
    files = [first, *(_File(store, shards.root, one, column) for one in shards.files[1:])]
    known += [one.cached(max_pixels) for one in files[1:]]
    missing = [at for at, found in enumerate(known) if found is None]
    if missing:
        with Pool(min(max(workers, _FEWEST_THREADS), _MOST_THREADS), "index") as pool:
            for task in [pool.submit(lambda one: one.metadata, files[at]) for at in missing]:
                task.result()  # all of their descriptions before the first image is read
            _check_columns(files, column, known)
            made = _read_all(pool, [files[at] for at in missing], column, most, progress, say)
        for at, found in zip(missing, made, strict=True):
            known[at] = found
    return [one for one in known if one is not None]


def read_footer(store: ObjectStore, root: str, shard: StoredObject) -> bytes:
    """Returns the end of a Parquet file below ``root``, which ``store`` opened: it describes the file. Cached. DataError if it is
    no Parquet file, or has changed."""
    file = _cache_file(f"{root}/{shard.name}", shard, ".footer")
    try:
        if _is_footer(data := read_file(file), shard.bytes):
            return data
    except (FileNotFoundError, NotADirectoryError):
        pass
    url, count = f"{root}/{shard.name}", min(_END_BYTES, shard.bytes)
    data = _read(store, root, shard, shard.bytes - count, count)
    if data[-4:] != _MAGIC or len(data) < 12:
        raise damaged(
            url, ValueError("it does not end as a Parquet file does, so it is truncated or of another format")
        )
    length = int.from_bytes(data[-8:-4], "little") + 8
    if length > shard.bytes:
        raise damaged(url, ValueError("its description is longer than the file"))
    data = data[-length:] if length <= count else _read(store, root, shard, shard.bytes - length, length)
    try:
        metadata = metadata_of(data)
    except (pa.ArrowException, OSError) as error:
        raise damaged(url, error) from error
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(sum(column_range(group, at)) > shard.bytes - length for group in groups for at in range(group.num_columns)):
        raise damaged(url, ValueError("its row groups lie outside of it, so a part of it is missing"))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda out: out.write(data), durable=False)
    return data


def _is_footer(data: bytes, size: int) -> bool:
    return 8 < len(data) <= size and data[-4:] == _MAGIC and int.from_bytes(data[-8:-4], "little") + 8 == len(data)


def _cache_file(url: str, shard: StoredObject, ending: str, *more: object) -> Path:
    words = [_VERSION, url, shard.bytes, shard.etag, *more]
    return cache_folder("parquet", hashlib.blake2b(repr(words).encode(), digest_size=16).hexdigest() + ending)


def _read(store: ObjectStore, root: str, shard: StoredObject, offset: int, length: int) -> bytes:
    """Returns bytes of a file; DataError if it has changed."""
    try:
        return read_range(store, root, shard.name, offset, length, shard.etag)
    except (Changed, FileNotFoundError) as error:
        raise changed(root, shard.name) from error


class _Group(NamedTuple):
    """What is in a row group: values of the rows by the columns of the index, and the other columns."""

    rows: dict[str, list[Any]]
    others: pa.Table


class _File:
    """A Parquet file that is indexed."""

    def __init__(self, store: ObjectStore, root: str, shard: StoredObject, requested: str | None) -> None:
        self.root, self.shard, self.url = root, shard, f"{root}/{shard.name}"
        self._read = partial(_read, store, root, shard)
        self._read_footer = partial(read_footer, store, root, shard)
        self._cache = _cache_file(self.url, shard, ".parquet", PIL.__version__, requested)

    @cached_property
    def footer(self) -> bytes:
        return self._read_footer()

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        return metadata_of(self.footer)

    @cached_property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each row group."""
        counts = [self.metadata.row_group(at).num_rows for at in range(self.metadata.num_row_groups)]
        return [0, *accumulate(counts)]

    def file(self, parts: Sequence[tuple[int, bytes]] = ()) -> RangeFile:
        """Returns the file as an object, of which ``parts`` (first byte, content) are in memory."""
        return partly_in_memory(self.shard.bytes, parts, self._read)

    def cached(self, max_pixels: int | None) -> ParquetIndex | None:
        """Returns the index of an earlier call, or None."""
        try:
            table = read_table(self._cache)
            head = parse_object((table.schema.metadata or {})[_KEY])
            if max_pixels is not None and head["max_pixels"] != max_pixels:
                return None
            rows = table.select(_ROWS.names).replace_schema_metadata(None)
            others = table.select([name for name in table.column_names if name.startswith(_OTHER)])
            others = others.rename_columns([name.removeprefix(_OTHER) for name in others.column_names])
            if rows.schema.equals(_ROWS):
                return ParquetIndex(str(head["column"]), self.footer, rows, others.replace_schema_metadata(None))
        except (FileNotFoundError, NotADirectoryError, pa.ArrowException, KeyError, ValueError):
            pass
        return None

    def spans(self, number: int, columns: Sequence[str]) -> list[Span]:
        """Returns the requests that read these columns of a row group, and small gaps between them."""
        group = self.metadata.row_group(number)
        ranges = list[tuple[int, int]]()
        for at in range(group.num_columns):
            path = group.column(at).path_in_schema
            if any(path == name or path.startswith(f"{name}.") for name in columns):
                ranges.append(column_range(group, at))
        found = list[tuple[int, int]]()
        for first, length in sorted(ranges):
            if found and first - sum(found[-1]) <= _GAP_BYTES:
                found[-1] = found[-1][0], max(sum(found[-1]), first + length) - found[-1][0]
            else:
                found.append((first, length))
        return [span for first, length in found for span in spans_of(0, first, length)]

    def read(self, number: int, column: str, max_pixels: int) -> _Group:
        """Reads a row group, and decodes its images."""
        names = other_columns(self.schema, column)
        table = self._columns(number, [column, *names])
        rows: dict[str, list[Any]] = {name: [] for name in _ROWS.names}
        stem, row = Path(self.shard.name).stem, self.starts[number]
        for chunk in table[column].chunks:
            for at in range(0, len(chunk), _CELLS):
                for value, name in zip(*cells_of(chunk.slice(at, _CELLS)), strict=True):
                    found = _described(value, stem, row, name, max_pixels)
                    for key, values in rows.items():
                        values.append(found.get(key))
                    row += 1
        return _Group(rows, with_class_names(table.select(names), self.schema))

    def _columns(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Returns these columns of a row group; what was read for them is not kept. DataError if it is damaged."""
        spans = self.spans(number, columns)
        parts = _adjoined([(span.offset, self._read(span.offset, span.length)) for span in spans])
        with opened(self.file(parts), self.url, self.metadata) as parquet:
            return parquet.read_row_group(number, columns=columns, use_threads=False)

    def finish(self, column: str, groups: Sequence[_Group], max_pixels: int) -> ParquetIndex:
        """Returns the index of all row groups, after caching it."""
        rows = pa.concat_tables(
            [_ROWS.empty_table(), *(pa.Table.from_pydict(group.rows, _ROWS) for group in groups)]
        ).combine_chunks()
        names = other_columns(self.schema, column)
        others = pa.concat_tables([group.others for group in groups]) if groups else self._empty(names)
        others = others.replace_schema_metadata(None)
        table = rows
        for name in others.column_names:
            table = table.append_column(f"{_OTHER}{name}", others[name])
        head = json.dumps({"column": column, "max_pixels": max_pixels}).encode()
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        write_table(table.replace_schema_metadata({_KEY: head}), self._cache)
        return ParquetIndex(column, self.footer, rows, others)

    def _empty(self, names: Sequence[str]) -> pa.Table:
        return with_class_names(pa.schema([self.schema.field(name) for name in names]).empty_table(), self.schema)


def _adjoined(parts: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Returns ``parts`` of a file, with those that follow each other as one."""
    runs = list[tuple[int, list[bytes]]]()
    for first, content in parts:
        if runs and runs[-1][0] + sum(map(len, runs[-1][1])) == first:
            runs[-1][1].append(content)
        else:
            runs.append((first, [content]))
    return [(first, every[0] if len(every) == 1 else b"".join(every)) for first, every in runs]


def _described(value: bytes | None, stem: str, row: int, name: str | None, max_pixels: int) -> dict[str, Any]:
    """Returns what the index says of an image."""
    if value is None:
        return {"length": 0}
    return {"path": path_of(stem, row, value, name), "length": len(value), **described(value, max_pixels)}


def _check_columns(files: Sequence[_File], column: str, known: Sequence[ParquetIndex | None]) -> None:
    """DataError with the name of the first file that has other columns than the first one; those ``known`` have passed."""
    names = other_columns(files[0].schema, column)
    for file, found in zip(files[1:], known[1:], strict=True):
        if found is None:
            schema = file.schema
            refuse_other_column(schema, file.url, column, files[0].shard.name)
            if other_columns(schema, column) != names:
                raise different_columns(file.root)


def _read_all(
    pool: Pool,
    files: Sequence[_File],
    column: str,
    max_pixels: int,
    progress: Progress | None,
    say: Callable[[str], None],
) -> list[ParquetIndex]:
    """Reads and indexes ``files``; each is cached when it is complete, so that what was interrupted goes on there."""
    counts = [file.metadata.num_row_groups for file in files]
    todo = [(at, number) for at, count in enumerate(counts) for number in range(count)]
    names = [[column, *other_columns(file.schema, column)] for file in files]
    spans = [span for at, number in todo for span in files[at].spans(number, names[at])]
    say(
        f"Indexing {counted(len(files), 'Parquet file')} of {files[0].root}: every picture is read once, "
        f"{sum(span.length for span in spans) / 1e9:,.2f} GB, about ${price_of(len(spans))} for requests, and what "
        "the store asks for traffic that leaves its region."
    )
    tasks = {pool.submit(files[at].read, number, column, max_pixels): (at, number) for at, number in todo}
    groups: list[dict[int, _Group]] = [{} for _ in files]
    made = [
        file.finish(column, [], max_pixels) if not count else None for file, count in zip(files, counts, strict=True)
    ]
    for done, task in enumerate(as_finished(tasks), 1):
        at, number = tasks[task]
        groups[at][number] = task.result()
        if len(groups[at]) == counts[at]:
            every = [groups[at].pop(own) for own in range(counts[at])]
            made[at] = files[at].finish(column, every, max_pixels)
        if progress is not None:
            progress(done, len(tasks))
    return [one for one in made if one is not None]
