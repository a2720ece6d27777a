"""Parquet tables: written whole or not at all, read from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stagewright.storage.files import read_parsed, write_whole

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them


def write_table(table: pa.Table, path: Path) -> None:
    """Writes ``table`` as the Parquet file ``path``: whole or not at all, and on disk when this returns.

    StorageError if the place cannot be written.
    """
    write_whole(path, lambda file: pq.write_table(table, file, compression="zstd", write_page_checksum=True))


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The Parquet file ``path``, or some of its columns; FileNotFoundError if there is none, Unreadable if it cannot be read
    now, pyarrow.ArrowException if it is damaged."""
    return read_parsed(path, lambda data: parse_table(data, columns))


def parse_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that a Parquet file of the bytes ``data`` holds, or some of its columns; pyarrow.ArrowException if it is
    damaged."""
    if data[:4] != b"PAR1":  # pyarrow looks at the end alone
        raise pa.ArrowInvalid("it does not begin as a Parquet file does")
    # pq.read_table would take folders named lr=0.1 above the file for columns of a partitioned data set.
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            return file.read(columns)
    except OSError as error:  # pyarrow's word for a footer that is damaged, too: the bytes are in memory
        raise pa.ArrowInvalid(str(error)) from error


def one_array(column: pa.ChunkedArray) -> pa.StringArray:
    """A column of strings as one array."""
    return pa.concat_arrays([chunk.cast(pa.string()) for chunk in column.chunks] or [pa.array([], pa.string())])


def column_bytes(column: pa.StringArray) -> bytes:
    """The strings of ``column`` one after the other, after their lengths and which of them are null."""
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy().astype("<i4")
    text = pc.binary_join(pa.ListArray.from_arrays([0, len(column)], column.fill_null("")), "")[0].as_py()
    return lengths.tobytes() + text.encode()
