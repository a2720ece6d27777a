"""Writes the parts, the index and the head of a pack. Each file is written completely or not at all."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.pack.format import (
    HEAD,
    INDEX,
    INDEX_SCHEMA,
    PART_SCHEMA,
    PARTS,
    UNFINISHED,
    Extents,
    Head,
    PartFile,
    crc32_of,
    open_part,
)
from stagewright.data.pack.records import Job, Record
from stagewright.storage.files import remove_quietly, sync_directory, write_whole
from stagewright.storage.parquet import write_table

_PART_ROWS = 1 << 17
_BATCH_BYTES = 1 << 25
_BATCH_ROWS = 1 << 12


@dataclass(frozen=True)
class Span:
    """A range of records to write: one part, or all parts up to the last record."""

    number: int
    """Number of the first part."""
    first: int
    """Number of the first record."""
    rows: int | None
    """Number of records of the part; None for as many parts as the remaining records need."""


def write_span(
    job: Job, span: Span, records: Iterator[Record], extents: Extents, part_bytes: int
) -> Iterator[tuple[int, PartFile]]:
    """Writes the parts of ``span``, and where their records lie to ``extents``. Yields (number, description) of each part when
    it is complete."""
    number, first = span.number, span.first
    while first < len(job.rows):
        part = _write_part(job, number, first, span.rows, records, extents.crcs, part_bytes)
        here = slice(first, first + part.rows)
        _, extents.offsets[here], extents.lengths[here] = open_part(job.folder, part)
        yield number, part
        if span.rows is not None:
            return
        number, first = number + 1, first + part.rows


def _write_part(
    job: Job,
    number: int,
    first: int,
    rows: int | None,
    records: Iterator[Record],
    crcs: NDArray[np.uint32],
    part_bytes: int,
) -> PartFile:
    """Writes one part, starting with record ``first``, and returns its description when it is on the disk.

    The part has ``rows`` records; with None it ends when it is full. If an error occurs, no file is left.
    """
    name = f"part-{number:05d}.arrow"
    temporary = job.folder / f".{name}"
    last = min(first + (rows or _PART_ROWS), len(job.rows)) - 1
    size = original_bytes = 0
    at = first
    try:
        with temporary.open("wb") as file:
            sink = _Sink(file)
            with pa.ipc.new_file(sink, PART_SCHEMA) as writer:
                batch: list[Record] = []
                batch_bytes = 0
                for record in records:
                    at = record.at
                    crcs[at] = zlib.crc32(record.data)
                    batch.append(record)
                    batch_bytes += len(record.data)
                    size += len(record.data)
                    original_bytes += record.original_bytes
                    full = at == last or (rows is None and size >= part_bytes)
                    if full or batch_bytes >= _BATCH_BYTES or len(batch) == _BATCH_ROWS:
                        writer.write_batch(_as_batch(job, batch))
                        batch, batch_bytes = [], 0
                    if full:
                        break
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, job.folder / name)
    except BaseException:
        remove_quietly(temporary)
        raise
    sync_directory(job.folder)
    return PartFile(name, first, at + 1 - first, sink.size, sink.crc32, original_bytes, PIL.__version__)


class _Sink(io.RawIOBase):
    """A file that also computes the size and the crc32 of everything that is written to it."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.size, self.crc32 = file, 0, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any, /) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        written = self.file.write(data)
        self.size += written
        return written


def _as_batch(job: Job, batch: list[Record]) -> pa.RecordBatch:
    records = np.array([record.at for record in batch])
    rows = pa.array(job.rows[records])
    columns = [
        job.listing.paths.take(rows),
        job.listing.labels.take(rows),
        pa.array(job.widths[records]),
        pa.array(job.heights[records]),
        pa.array([record.data for record in batch], pa.large_binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PART_SCHEMA)


def finish(job: Job, parts: list[PartFile], extents: Extents) -> None:
    """Writes the index, then the head. Removes all other part files and temporary files."""
    write_table(_index(job, parts, extents), job.folder / INDEX)
    head = replace(job.head, parts=tuple(parts), index_crc32=crc32_of(job.folder / INDEX))
    write_head(job.folder / HEAD, head)
    (job.folder / UNFINISHED).unlink(missing_ok=True)
    leftovers = [path for path in job.folder.glob("*part-*.arrow") if path.name not in {part.file for part in parts}]
    for path in (*leftovers, *job.folder.glob(".*.tmp")):
        path.unlink()
    sync_directory(job.folder)


def _index(job: Job, parts: list[PartFile], extents: Extents) -> pa.Table:
    listing, found, count = job.listing, job.found, len(job.listing.paths)
    of_record = {
        "stored_width": job.widths,
        "stored_height": job.heights,
        "file": np.repeat(np.arange(len(parts), dtype=np.int32), [part.rows for part in parts]),
        "offset": extents.offsets,
        "length": extents.lengths,
        "crc32": extents.crcs,
    }
    position = np.full(count, -1)
    position[job.rows] = np.arange(len(job.rows))
    taken = pa.array(position, mask=position < 0)
    picture = np.ones(count, bool)
    picture[list(found.not_images)] = False
    words = pa.array(PARTS.values()).take(pa.array([list(PARTS).index(part) for part in listing.parts.tolist()]))
    digests = [None, pa.py_buffer(np.ascontiguousarray(found.digests).tobytes())]
    columns = {
        "path": listing.paths,
        "label": listing.labels,
        "split": words,
        "group": pa.nulls(count, pa.string()) if listing.groups is None else listing.groups,
        "digest": pa.FixedSizeBinaryArray.from_buffers(INDEX_SCHEMA.field("digest").type, count, digests),
        "width": pa.array(found.widths),
        "height": pa.array(found.heights),
        **{name: pa.array(values).take(taken) for name, values in of_record.items()},
        "reason": pa.array([found.reasons.get(row) for row in range(count)], pa.string()),
        "picture": pa.array(picture),
    }
    listed = pa.table(columns, schema=INDEX_SCHEMA)
    beyond = pa.Table.from_pylist(
        [{"path": item.path, "reason": item.reason} for item in listing.excluded], INDEX_SCHEMA
    )
    return pa.concat_tables([listed, beyond])


def write_head(file: Path, head: Head) -> None:
    """Writes ``head`` to ``file``, completely or not at all. It is on the disk when the function returns."""
    write_whole(file, head.to_json())
