"""A file to which only whole lines are appended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stagewright.storage.files import retry_io, unreadable, unwritable

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Seal:
    """The content of a file at one moment: length in bytes, SHA-256 in hexadecimal, and all bytes, compressed by zlib."""

    bytes: int
    sha256: str
    packed: bytes


class _Sealing:
    """Hash and compressed content of a growing file, updated with every write. A seal therefore costs only what was written
    since the last one."""

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
    """A file to which only whole lines are appended. Opening it creates it, or removes an incomplete last line that a killed
    process has left; ``cut_bytes`` is the number of bytes removed.

    StorageError if the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sealing: _Sealing | None = None
        self._intact_size: int | None = None
        """Length in bytes of the complete lines while a partly written line follows them, else None."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from error
        self.cut_bytes = self.cut_while(lambda line: False)

    def append(self, data: bytes) -> None:
        """Appends ``data``, which must end in a newline. If the disk is full, StorageError, and no part of it stays."""
        try:
            if self._intact_size is not None:  # an earlier write failed, and its partial line could not be removed then
                os.ftruncate(self._fd, self._intact_size)
            self._intact_size = os.fstat(self._fd).st_size
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._intact_size = None
        except OSError as error:
            if self._intact_size is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._intact_size)
                    self._intact_size = None
            raise unwritable(self.path, error) from error
        if self._sealing is not None:
            self._sealing.add(data)

    def seal(self) -> Seal:
        """Returns the current content. It is read from disk the first time and after a cut; later calls use what was
        collected while writing."""
        if self._sealing is None:
            self._sealing = retry_io(self.path, self._read_all)
        return self._sealing.seal()

    def _read_all(self, _: str) -> _Sealing:
        sealing = _Sealing()
        while block := os.pread(self._fd, _BLOCK, sealing.bytes):
            sealing.add(block)
        return sealing

    def cut_to(self, size: int) -> None:
        """Removes everything after the first ``size`` bytes."""
        try:
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)
                self._sealing = None
                self.sync()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def cut_while(self, unwanted: Callable[[bytes], bool]) -> int:
        """Removes an incomplete last line, then last lines while ``unwanted(line)`` is true; returns the number of bytes
        removed.

        It reads from the end, so that the time depends only on what is removed. A single ``ftruncate`` removes it, so that
        a process killed here leaves either the old or the finished file.
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
        """Yields (offset, line with its newline if it has one), from the last line to the first."""
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
        """Returns the ``count`` bytes from offset ``at`` on; the system may return them in several pieces."""

        def read(_: str) -> bytes:
            part = b""
            while len(part) < count and (piece := os.pread(self._fd, count - len(part), at + len(part))):
                part += piece
            return part

        return retry_io(self.path, read)

    def last_line(self) -> bytes:
        """Returns the last line without its newline, or ``b""`` if the file is empty."""
        for _, line in self._lines_from_end(os.fstat(self._fd).st_size):
            return line.removesuffix(b"\n")
        return b""

    def first_line(self) -> bytes:
        """Returns the first line without its newline, or ``b""`` if the file is empty."""
        return self._part(0, min(_BLOCK, os.fstat(self._fd).st_size)).partition(b"\n")[0]

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Closes the file. Closing it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
