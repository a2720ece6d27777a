"""Stored: where the bytes of pictures lie, in a form that many of them can be cropped from in one call."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further attempt at a read that failed."""

# What another attempt does not change.
_FINAL = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """N pictures as they lie in memory: ``buffers[which[i]][offsets[i] : offsets[i] + lengths[i]]``."""

    kind: Literal["encoded", "raw"]
    """The bytes of a file of any format; or uint8 (height, width, 3), upright."""
    buffers: Sequence[Any]
    """Objects with the buffer protocol, contiguous and of single bytes."""
    which: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Bytes; 0 where a picture could not be read."""
    sizes: NDArray[np.int32] | None = None
    """Raw: (N, 2), width and height; 0 where a picture could not be read."""
    failures: dict[int, Exception] = field(default_factory=dict)
    """Why a picture could not be read, by its place here."""

    def __len__(self) -> int:
        return len(self.which)

    @classmethod
    def of_array(cls, picture: NDArray[np.uint8]) -> Stored:
        """One raw picture, uint8 (height, width, 3)."""
        flat = np.ascontiguousarray(picture).reshape(-1)
        height, width = picture.shape[:2]
        sizes, lengths = np.array([[width, height]], np.int32), np.array([flat.size], np.int64)
        return cls("raw", [flat], np.zeros(1, np.int32), np.zeros(1, np.int64), lengths, sizes)

    def data(self, at: int) -> memoryview:
        """The bytes of the picture at place ``at``."""
        start = int(self.offsets[at])
        return memoryview(self.buffers[self.which[at]]).cast("B")[start : start + int(self.lengths[at])]


class _Buffer(threading.local):
    """Memory that each thread reads files into, again and again: new memory for each would cost a third of the read."""

    memory = bytearray()

    def room(self, end: int) -> bytearray:
        """At least ``end`` bytes; what was there before is kept."""
        if len(self.memory) < end:
            self.memory = self.memory + bytes(max(end, _LEAST_ROOM, len(self.memory) * 3 // 2) - len(self.memory))
        return self.memory


_BUFFER = _Buffer()
_LEAST_ROOM = 1 << 20


def read_stored(paths: Sequence[str]) -> Stored:
    """The bytes of the files ``paths``, one after the other, until the same thread calls again; what fails is in
    ``failures``."""
    failures: dict[int, Exception] = {}
    offsets, lengths = np.zeros(len(paths), np.int64), np.zeros(len(paths), np.int64)
    end = 0
    for at, path in enumerate(paths):
        offsets[at] = end
        try:
            end = _patiently(path, lambda path, end=end: _read_behind(path, end))
        except OSError as error:
            failures[at] = error
        lengths[at] = end - offsets[at]
    return Stored("encoded", [_BUFFER.memory], np.zeros(len(paths), np.int32), offsets, lengths, failures=failures)


def read_file(path: str) -> bytes:
    """The bytes of a file. A read that fails is tried again, four times in all within 3 seconds, unless the file is
    missing or forbidden; then OSError with the name of the file."""
    end = _patiently(path, lambda path: _read_behind(path, 0))
    return bytes(memoryview(_BUFFER.memory)[:end])


def _patiently(path: str, read: Callable[[str], T]) -> T:
    for pause in (*_PAUSES, None):
        try:
            return read(path)
        except OSError as error:
            if error.errno in _FINAL:
                raise
            if pause is None:
                reason = f"{error.strerror or error}, {len(_PAUSES) + 1} attempts"
                raise OSError(error.errno or errno.EIO, reason, path) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _read_behind(path: str, start: int) -> int:
    """Reads a file into this thread's buffer from ``start`` on; returns where it ends."""
    # Fewer system calls than open().readinto(), which also seeks and asks whether it is a terminal.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        end, room = start, start + os.fstat(file).st_size + 1
        while True:
            memory = memoryview(_BUFFER.room(room))
            count = os.readv(file, [memory[end:room]])
            if not count:
                return end
            end += count
            if end == room:  # it has grown
                room += 1 << 20
    finally:
        os.close(file)
