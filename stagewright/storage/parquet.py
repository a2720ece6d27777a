"""Parquet tables: written completely or not at all, read from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stagewright.storage.files import read_parsed, write_whole

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

_HASHED_ROWS = 1 << 16


def write_table(table: pa.Table, path: Path) -> None:
    """Writes ``table`` to the Parquet file ``path``, completely or not at all; it is on disk when this returns.

    StorageError if ``path`` cannot be written.
    """
    write_whole(path, lambda file: pq.write_table(table, file, compression="zstd", write_page_checksum=True))


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the Parquet file ``path``, or only ``columns`` of it; FileNotFoundError if it does not exist, Unreadable if it
    cannot be read now, pyarrow.ArrowException if it is damaged."""
    return read_parsed(path, lambda data: parse_table(data, columns))


def parse_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the table in the bytes ``data`` of a Parquet file, or only ``columns`` of it; pyarrow.ArrowException if they
    are damaged."""
    if data[:4] != b"PAR1":  # pyarrow checks only the end of the file
        raise pa.ArrowInvalid("it does not begin like a Parquet file")
    # pq.read_table would treat parent folders with names like lr=0.1 as columns of a partitioned data set.
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read(columns)
        table.validate(full=True)  # text that is no UTF-8 would raise where it is used
        table.schema.names  # noqa: B018 - decodes them
        return table
    except (OSError, UnicodeDecodeError) as error:
        # pyarrow raises OSError for a damaged footer too; the bytes are in memory, so no read has failed
        raise pa.ArrowInvalid(str(error)) from error


def one_array(column: pa.ChunkedArray) -> pa.StringArray:
    """Returns a chunked column of strings as one array."""
    return pa.concat_arrays([chunk.cast(pa.string()) for chunk in column.chunks] or [pa.array([], pa.string())])


class _Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None: ...


def hash_column(digest: _Digest, column: pa.StringArray | None) -> None:
    """Adds to ``digest`` bytes that identify the strings of ``column``: the length of each (-1 for null), then all strings; ``-``
    if there is no column. A million strings are not in memory once more for it."""
    if column is None:
        digest.update(b"-")
        return
    digest.update(pc.fill_null(pc.binary_length(column), -1).to_numpy().astype("<i4").tobytes())
    for begin in range(0, len(column), _HASHED_ROWS):
        part = column.slice(begin, _HASHED_ROWS).fill_null("")
        digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(part)], part), "")[0].as_py().encode())
