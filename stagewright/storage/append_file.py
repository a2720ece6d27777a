"""A file that only grows, written whole lines at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stagewright.storage.files import patiently, unreadable, unwritable

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
