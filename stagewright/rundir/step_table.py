"""Append-only text files that survive a kill, and CSV files keyed by step built on them.

The convention: one record is one line, which a ``kill -9`` cannot lose once ``append`` has returned; a torn last line
is cut when a file is opened again. ``sync``, before a checkpoint is saved, makes lines survive a power cut too. A
resumed run calls ``truncate_after`` with its step and writes on: the bytes are then those of a run never interrupted.
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

Cell = str | int | float | bool | None


class StepLog:
    """A CSV file whose first column is the step, which never falls.

    Floats stand as ``repr`` writes them and read back to the same bits; None is an empty cell, a bool ``true`` or
    ``false``, a line break in text a space. Opening creates the file with its header, or goes on with an existing one
    after cutting a torn end; CheckpointError if that has other columns.
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
                "go on with the version of stagewright that wrote it, or start a new run",
            )
        self._last_step = self._cut(lambda step: False)

    def append(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Writes ``rows``, each a step and the rest of the header's columns, at once.

        ValueError for a row of another length or a step below the last one, TypeError for a step that is no integer;
        StorageError, and no row written, where the disk is full.
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
        """What the file holds now."""
        return self._file.seal()

    def truncate_after(self, step: int) -> None:
        """Drops every row of a step above ``step``: what a lost process wrote past the checkpoint."""
        self._last_step = self._cut(lambda found: found > step)

    def _cut(self, unwanted: Callable[[int], bool]) -> int | None:
        """Cuts last rows that are damaged or of an unwanted step; returns the step of the row that is last then."""
        header = _line(self.header).removesuffix(b"\n")

        def drop(line: bytes) -> bool:
            step = self._step(line)
            return line != header and (step is None or unwanted(step))

        self._file.cut_while(drop)
        return self._step(self._file.last_line())

    def rows(self) -> list[dict[str, str]]:
        """Every row, as :func:`read_rows` gives it."""
        return read_rows(self.path)

    def sync(self) -> None:
        """Returns when every row is on the disk; to be called before a checkpoint of the last row's step is saved."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _step(self, line: bytes) -> int | None:
        """The step of a whole row; None for the header and for what is no row of this file."""
        first = line.partition(b",")[0]
        if not first.isdigit() or len(next(csv.reader([line.decode(errors="replace")]))) != len(self.header):
            return None
        return int(first)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a StepLog's file, header -> cell, without writing to it: a torn last line, which the run may be
    writing just now, is left out. FileNotFoundError if there is none."""
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
        return repr(float(value))  # float() takes NumPy's float64 to Python's, whose repr is the number alone
    return " ".join(value.splitlines()) if isinstance(value, str) else str(operator.index(value))
