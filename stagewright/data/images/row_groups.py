"""Images in row groups of Parquet files in an object store: where a row group lies in its file, and the images in its bytes.

A row group is read as a whole: Parquet compresses and divides its columns into pages, so no image in it has a place of its own.
Only the column of the images is read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stagewright.data.images.places import Span
from stagewright.storage.object_files import RangeFile

_REQUEST_BYTES = 1 << 24
"""Bytes of one request at most; the row groups that the library datasets writes have 100 MB."""
_REMEMBERED_BYTES, _FEWEST_REMEMBERED = 1 << 28, 2

_Bytes = bytes | memoryview


def spans_of(file: int, offset: int, length: int) -> list[Span]:
    """Returns the requests that read so many bytes of a file."""
    begins = range(offset, offset + length, _REQUEST_BYTES)
    return [Span(file, begin, min(_REQUEST_BYTES, offset + length - begin)) for begin in begins]


def column_range(group: pq.RowGroupMetaData, at: int) -> tuple[int, int]:
    """Returns (first byte, number of bytes) of the column ``at`` of a row group."""
    column = group.column(at)
    first = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:  # some writers leave 0 for none
        first = min(first, column.dictionary_page_offset)
    return first, column.total_compressed_size


def partly_in_memory(
    size: int, parts: Sequence[tuple[int, _Bytes]], read_at: Callable[[int, int], _Bytes]
) -> RangeFile:
    """Returns a file of ``size`` bytes, of which ``parts`` (first byte, content) are in memory; ``read_at`` reads others."""

    def at(offset: int, length: int) -> _Bytes:
        for begin, content in parts:
            if begin <= offset and offset + length <= begin + len(content):
                whole = offset == begin and length == len(content)
                return content if whole else memoryview(content)[offset - begin :][:length]
        return read_at(offset, length)

    return RangeFile(size, at)


@dataclass(frozen=True, eq=False)
class Cells:
    """The bytes in a column of a row group with R rows: row i has ``data[ends[i] : ends[i + 1]]``, nothing if it is empty."""

    data: memoryview
    ends: NDArray[np.int64]
    """int64 (R + 1,)."""

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Cells:
        """Takes them from a column of bytes, or of ``struct<bytes, ...>``; copies nothing."""
        array = column.chunk(0) if column.num_chunks == 1 else _joined(column)
        if pa.types.is_struct(array.type):
            array = array.field("bytes")
        _, ends, data = array.buffers()
        kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
        if ends is None or not len(array):
            return cls(memoryview(b""), np.zeros(len(array) + 1, np.int64))
        own = np.frombuffer(ends, kind)[array.offset : array.offset + len(array) + 1]
        return cls(memoryview(data or b"").cast("B"), own.astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def row(self, row: int) -> memoryview:
        """Returns the bytes of a row, without a copy."""
        return self.data[self.ends[row] : self.ends[row + 1]]

    def rows(self, rows: NDArray[np.int64]) -> list[memoryview]:
        """Returns the bytes of ascending ``rows`` (n,), those of neighbours in one piece, without a copy."""
        cuts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        firsts, lasts = rows[cuts], rows[np.append(cuts[1:], len(rows)) - 1]
        return [self.data[begin:end] for begin, end in zip(self.ends[firsts], self.ends[lasts + 1], strict=True)]

    def have(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool:
        """Returns whether there are ``rows`` (n,), with so many bytes (n,)."""
        return bool(rows.max(initial=0) < len(self) and (self.ends[rows + 1] - self.ends[rows] == lengths).all())


def _joined(column: pa.ChunkedArray) -> pa.Array:
    """Returns the chunks of a column as one array: they are several where they have more than 2 GB."""
    if pa.types.is_struct(column.type):
        chunks = [chunk.field("bytes") for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.field("bytes").type)
    return pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in column.chunks] or [pa.array([], pa.binary())])


@dataclass(frozen=True, eq=False)
class RowGroups:
    """G row groups of P Parquet files, and which of their rows N images are."""

    column: str
    """The column with the bytes of the images, as Parquet names it: ``image.bytes``."""
    footers: tuple[bytes, ...]
    """The end of each file, which describes it (P)."""
    sizes: tuple[int, ...]
    """Size of each file in bytes (P)."""
    file: NDArray[np.int32]
    """int32 (G,): index of the file of each row group."""
    number: NDArray[np.int32]
    """int32 (G,): number of the row group in its file."""
    offsets: NDArray[np.int64]
    """int64 (G,): where the column of the row group begins in the file."""
    lengths: NDArray[np.int64]
    """int64 (G,): bytes of this column in the file."""
    of: NDArray[np.int32]
    """int32 (N,): the row group of each image."""
    row: NDArray[np.int64]
    """int64 (N,): the row of each image in its row group."""

    @classmethod
    def locate(
        cls,
        column: str,
        footers: Sequence[bytes],
        sizes: Sequence[int],
        which: NDArray[np.int32],
        rows: NDArray[np.int64],
    ) -> RowGroups:
        """Returns the row groups of files with these ``footers`` and ``sizes`` in bytes, and in them the images in ``rows`` (N,)
        of the files ``which`` (N,). ValueError if a file has no such column, or fewer rows."""
        groups, first_group, first_rows = list[tuple[int, int, int, int]](), [0], list[NDArray[np.int64]]()
        for file, footer in enumerate(footers):
            metadata = metadata_of(footer)
            paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
            at = paths.index(column)
            every = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            groups += [(file, number, *column_range(group, at)) for number, group in enumerate(every)]
            first_rows.append(np.cumsum([0, *(group.num_rows for group in every)]))
            first_group.append(len(groups))
        of, row = np.zeros(len(which), np.int32), np.zeros(len(which), np.int64)
        for file in range(len(footers)):
            own, starts = np.flatnonzero(which == file), first_rows[file]
            if len(own) and not 0 <= rows[own].min() <= rows[own].max() < starts[-1]:
                raise ValueError("an image lies outside of its file")
            number = np.searchsorted(starts, rows[own], "right") - 1
            of[own], row[own] = first_group[file] + number, rows[own] - starts[number]
        columns = np.array(groups, np.int64).reshape(-1, 4).T
        file, number = columns[0].astype(np.int32), columns[1].astype(np.int32)
        return cls(column, tuple(footers), tuple(sizes), file, number, columns[2], columns[3], of, row)

    def __len__(self) -> int:
        return len(self.file)

    @cached_property
    def num_requests(self) -> NDArray[np.int64]:
        """int64 (G,): number of requests that read each row group."""
        return -(-self.lengths // _REQUEST_BYTES)

    def spans(self, group: int) -> list[Span]:
        """Returns the requests that read a row group, without the other columns."""
        return spans_of(int(self.file[group]), int(self.offsets[group]), int(self.lengths[group]))

    def decode(self, group: int, content: Sequence[_Bytes]) -> Cells:
        """Returns the images of a row group from the bytes of its :meth:`spans`. OSError if they are damaged."""
        file = int(self.file[group])
        part = content[0] if len(content) == 1 else b"".join(content)

        def missing(offset: int, length: int) -> bytes:
            raise OSError(f"the bytes {offset:,} to {offset + length:,} are not in the column {self.column}")

        source = partly_in_memory(self.sizes[file], [(int(self.offsets[group]), part)], missing)
        try:
            described = metadata_of(self.footers[file])
            with pq.ParquetFile(
                source, metadata=described, pre_buffer=False, page_checksum_verification=True
            ) as parquet:
                table = parquet.read_row_group(int(self.number[group]), columns=[self.column], use_threads=False)
            return Cells.of(table.column(0))
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"the row group {self.number[group]} is damaged: {str(error).splitlines()[0]}") from error


def metadata_of(footer: bytes) -> pq.FileMetaData:
    """Returns what the end of a Parquet file, ``footer``, says of it. pyarrow.ArrowException or OSError if it is damaged."""
    return pq.read_metadata(pa.BufferReader(footer))


@dataclass(eq=False)
class _Remembered:
    """A row group that is in memory, or on its way."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    cells: Cells | None = None


class GroupMemory:
    """The row groups that were used last, as many as have 256 MB together, and at least two, since threads that read in order are
    in two at the end of one; ``read`` reads others.

    Thread-safe: a row group that several threads need is read once.
    """

    def __init__(self, read: Callable[[int], Cells]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._groups: OrderedDict[int, _Remembered] = OrderedDict()

    def get(self, group: int) -> Cells:
        """Returns a row group; raises what ``read`` raises."""
        with self._lock:
            one = self._groups.setdefault(group, _Remembered())
            self._groups.move_to_end(group)
        with one.lock:
            if one.cells is None:
                try:
                    one.cells = self._read(group)
                finally:
                    self._forget(group)
            return one.cells

    def known(self, group: int) -> Cells | None:
        """Returns a row group if it is in memory."""
        with self._lock:
            one = self._groups.get(group)
            return None if one is None else one.cells

    def _forget(self, newest: int) -> None:
        """Lets go of what has no room, and of a row group that could not be read."""
        with self._lock:
            if (own := self._groups.get(newest)) is not None and own.cells is None:
                del self._groups[newest]
            held = [(number, len(one.cells.data)) for number, one in self._groups.items() if one.cells is not None]
            left = sum(size for _, size in held)
            for number, size in held[:-_FEWEST_REMEMBERED]:
                if left > _REMEMBERED_BYTES:
                    del self._groups[number]
                    left -= size
