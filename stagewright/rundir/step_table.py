"""Append-only CSV files whose first column is the step.

One record is one line, and ``kill -9`` cannot lose it after ``append`` has returned; an incomplete last line is removed when
the file is opened again. After ``sync``, which is called before a checkpoint is saved, lines also survive a power cut. A resumed
run calls ``truncate_after`` with its step and continues to append: the file then equals that of an uninterrupted run.
"""

from __future__ import annotations

import csv
import io
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from stagewright.errors import CheckpointError
from stagewright.storage.append_file import AppendFile, Seal
from stagewright.storage.files import read_own
from stagewright.text import table_cell

Cell = str | int | float | bool | None


class StepLog:
    """A CSV file whose first column is the step, which never decreases.

    Floats are written with ``repr``, so that they are read back bit for bit; None is an empty cell, a bool ``true`` or
    ``false``, and a line break in text becomes a space. Opening creates the file with its header, or continues an existing file
    after removing an incomplete last line; CheckpointError if its columns are different.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path, self.header = path, tuple(header)
        line = _line(self.header)
        self._file = AppendFile(path)
        found = self._file.first_line() + b"\n"
        if found == b"\n":
            self._file.append(line)
            self._file.sync()
        elif found != line:
            self._file.close()
            raise CheckpointError(
                f"{path} has the columns {found.decode(errors='replace').strip()}",
                line.decode().strip(),
                "resume with the version of stagewright that wrote the file, or start a new run",
            )
        self._last_step = self._cut(lambda step: False)

    def append(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Appends ``rows`` in one write; each row has one cell per column, the step first.

        ValueError for a row of another length or a step below the last one, TypeError for a step that is not an integer.
        StorageError if the disk is full; then no row is written.
        """
        last = self._last_step
        for row in rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.path.name} has {len(self.header)} columns, the row {len(row)}: {row}")
            step = operator.index(cast(int, row[0]))
            if last is not None and step < last:
                raise ValueError(f"{self.path.name}: step {step} after step {last}")
            last = step
        self._file.append(b"".join(_line(row) for row in rows))
        self._last_step = last

    def seal(self) -> Seal:
        """Returns length, hash and compressed content of the file."""
        return self._file.seal()

    def truncate_after(self, step: int) -> None:
        """Removes all rows with a step above ``step``, which an interrupted process wrote after its last checkpoint."""
        self._last_step = self._cut(lambda found: found > step)

    def _cut(self, unwanted: Callable[[int], bool]) -> int | None:
        """Removes rows from the end while they are damaged or ``unwanted``; returns the step of the last remaining row."""
        header = _line(self.header).removesuffix(b"\n")

        def drop(line: bytes) -> bool:
            step = self._step(line)
            return line != header and (step is None or unwanted(step))

        self._file.cut_while(drop)
        return self._step(self._file.last_line())

    def rows(self) -> list[dict[str, str]]:
        """Returns all rows, as :func:`read_rows` does."""
        return read_rows(self.path)

    def sync(self) -> None:
        """Flushes all rows to the disk; call it before the checkpoint of the last row's step is saved."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _step(self, line: bytes) -> int | None:
        """Returns the step of a complete row, or None if ``line`` is the header or not a row of this file."""
        first = line.partition(b",")[0]
        if not first.isdigit() or len(next(csv.reader([line.decode(errors="replace")]))) != len(self.header):
            return None
        return int(first)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a StepLog's file, each as {column: cell}; does not change the file.

    Skips an incomplete last line, which a run may be writing at the moment. FileNotFoundError if the file does not exist.
    """
    text = read_own(path)
    whole = text[: text.rfind(b"\n") + 1].decode(errors="replace")
    header, *rows = csv.reader(io.StringIO(whole, newline="")) if whole else [[]]
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def _line(row: Sequence[Cell]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in row])
    return text.getvalue().encode()


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))  # float() because the repr of NumPy's float64 contains its type name
    return table_cell(" ".join(value.splitlines())) if isinstance(value, str) else str(operator.index(value))
