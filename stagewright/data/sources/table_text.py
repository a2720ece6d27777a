"""Reads a CSV or Parquet table as text. All values stay as they are written, so that class ``007`` stays ``007``."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute
from pyarrow import csv

from stagewright.errors import DataError
from stagewright.storage.files import read_parsed
from stagewright.storage.parquet import one_array, parse_table
from stagewright.text import from_table_cell

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them


class Place(Protocol):
    """What texts name a table by: a path, or a URL."""

    @property
    def name(self) -> str:
        """The last part of it."""
        ...


def column_names(file: Path) -> list[str]:
    """Returns the names of the columns of the table ``file``; errors as for :func:`read_text`."""
    return read_text(file).column_names


def read_text(file: Path) -> pa.Table:
    """Reads the table ``file`` (.csv, .tsv or .parquet) with all values as trimmed text; missing values are empty.

    CSV columns may be separated by commas, semicolons, tabs or ``|``. DataError if the file is not a table or has no rows,
    Unreadable if it cannot be read now.
    """
    try:
        table = read_parsed(file, parse_table if file.suffix.lower() == ".parquet" else _parse_csv)
    except (FileNotFoundError, pa.ArrowException, UnicodeDecodeError) as error:  # the last one for names of columns
        raise DataError(
            f"{file} cannot be read as a table: {str(error).splitlines()[0]}",
            "a CSV in UTF-8 whose first row names the columns, or a Parquet file",
            "open it in a text editor or a spreadsheet and save it again",
        ) from error
    return as_text(file, table)


def as_text(file: Place, table: pa.Table) -> pa.Table:
    """Returns ``table``, read from ``file``, with all values as trimmed text; errors as for :func:`read_text`."""
    names = [name.strip() for name in table.column_names]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{file} has several columns named {twice[0]!r}", "each name once", "rename one of them")
    if not len(table):
        raise DataError(f"{file} has no rows", "one row for each picture", "check how it was written")
    return pa.table({name: _to_text(column) for name, column in zip(names, table.columns, strict=True)})


def _parse_csv(data: bytes) -> pa.Table:
    header = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", errors="replace").readline()
    parse = csv.ParseOptions(delimiter=max(",;\t|", key=header.count), newlines_in_values=True)
    with csv.open_csv(pa.BufferReader(data), parse_options=parse) as reader:
        names = reader.schema.names
    return csv.read_csv(
        pa.BufferReader(data),
        parse_options=parse,
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )


def _to_text(column: pa.ChunkedArray) -> pa.StringArray:
    if pa.types.is_struct(column.type) and "path" in [field.name for field in column.type]:
        column = pc.struct_field(column, "path")  # images of Hugging Face that are files
    try:
        text = one_array(column)
    except pa.ArrowException:  # lists, structs or image bytes, which cannot be a path, a class or a group
        return pa.array([""] * len(column), pa.string())
    text = pc.utf8_trim_whitespace(text.fill_null(""))
    quoted = pc.starts_with(text, "'")
    if not pc.any(quoted).as_py():
        return text
    return pc.if_else(quoted, pa.array([from_table_cell(cell) for cell in text.to_pylist()], pa.string()), text)
