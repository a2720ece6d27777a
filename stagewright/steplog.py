"""Append-only text files that survive a kill, and CSV files keyed by step built on them.

The convention: one record is one line, which a ``kill -9`` cannot lose once ``append`` has returned; a torn last line
is cut when a file is opened again. ``sync``, before a checkpoint is saved, makes lines survive a power cut too. A
resumed run calls ``truncate_after`` with its step and writes on: the bytes are then those of a run never interrupted.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import operator
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from stagewright.errors import CheckpointError
from stagewright.storage.files import patiently, read_own, unreadable, unwritable

Cell = str | int | float | bool | None
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file held at a moment: its length in bytes, its SHA-256 in hexadecimal, and all of it, packed by zlib."""

    bytes: int
    sha256: str
    packed: bytes


class _Sealing:
    """Hash and packed content of a file that grows, kept up as it does: a seal costs what was written since the last one."""

    def __init__(self) -> None:
        self.bytes, self.sha256 = 0, hashlib.sha256()
        self._packer, self._packed = zlib.compressobj(1), bytearray()

    def add(self, data: bytes) -> None:
        self.bytes += len(data)
        self.sha256.update(data)
        self._packed += self._packer.compress(data)

    def seal(self) -> Seal:
        return Seal(self.bytes, self.sha256.hexdigest(), bytes(self._packed) + self._packer.copy().flush())


class AppendFile:
    """A file that only grows, by whole lines. Opening creates it, or cuts the torn last line of a killed process.

    ``cut_bytes`` says how much went. StorageError where the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sealing: _Sealing | None = None
        self._torn: int | None = None
        """Length of the whole lines, where a line that failed stands behind them."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from error
        self.cut_bytes = self.cut_while(lambda line: False)

    def append(self, data: bytes) -> None:
        """Writes ``data``, which ends in a newline; on a full disk, StorageError and nothing of it is left."""
        try:
            if self._torn is not None:  # what an earlier failure left could not be cut then
                os.ftruncate(self._fd, self._torn)
            self._torn = os.fstat(self._fd).st_size
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._torn = None
        except OSError as error:
            if self._torn is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._torn)
                    self._torn = None
            raise unwritable(self.path, error) from error
        if self._sealing is not None:
            self._sealing.add(data)

    def seal(self) -> Seal:
        """What the file holds now. The first time, and after a cut, it is read; then kept up."""
        if self._sealing is None:
            self._sealing = patiently(self.path, self._read_all)
        return self._sealing.seal()

    def _read_all(self, _: str) -> _Sealing:
        sealing = _Sealing()
        while block := os.pread(self._fd, _BLOCK, sealing.bytes):
            sealing.add(block)
        return sealing

    def cut_to(self, size: int) -> None:
        """Cuts all behind the first ``size`` bytes."""
        try:
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)
                self._sealing = None
                self.sync()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def cut_while(self, unwanted: Callable[[bytes], bool]) -> int:
        """Cuts a torn last line, then last lines as long as they are ``unwanted``; returns the number of bytes cut.

        Reads from the end, so that a long file costs no more than what is cut; one ``ftruncate`` does it, so that a
        kill leaves the file as it was or as it should be.
        """
        try:
            size = os.fstat(self._fd).st_size
            end = size
            for start, line in self._lines_from_end(size):
                if line.endswith(b"\n") and not unwanted(line[:-1]):
                    break
                end = start
        except OSError as error:
            raise unreadable(self.path, error) from error
        self.cut_to(end)
        return size - end

    def _lines_from_end(self, size: int) -> Iterator[tuple[int, bytes]]:
        """(offset, line with its newline if it has one) of each line, the last first."""
        position, pending = size, b""
        while position > 0:
            count = min(_BLOCK, position)
            position -= count
            pending = self._part(position, count) + pending
            # The last byte ends the last line; a newline before it ends the line before.
            while (at := pending.rfind(b"\n", 0, len(pending) - 1)) >= 0:
                yield position + at + 1, pending[at + 1 :]
                pending = pending[: at + 1]
        if pending:
            yield 0, pending

    def _part(self, at: int, count: int) -> bytes:
        """The ``count`` bytes from ``at`` on, in however many pieces the system hands them out."""

        def read(_: str) -> bytes:
            part = b""
            while len(part) < count and (piece := os.pread(self._fd, count - len(part), at + len(part))):
                part += piece
            return part

        return patiently(self.path, read)

    def last_line(self) -> bytes:
        """The last line without its newline; empty in an empty file."""
        for _, line in self._lines_from_end(os.fstat(self._fd).st_size):
            return line.removesuffix(b"\n")
        return b""

    def first_line(self) -> bytes:
        """The first line without its newline; empty in an empty file."""
        return self._part(0, min(_BLOCK, os.fstat(self._fd).st_size)).partition(b"\n")[0]

    def sync(self) -> None:
        """Returns when everything written is on the disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
