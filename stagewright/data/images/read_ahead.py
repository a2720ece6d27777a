"""Reads whole image files of an object store ahead of the threads that decode them: many requests at once, little memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numpy import int64
from numpy.typing import NDArray

from stagewright.system.threads import Pool, Task

_AT_ONCE = 32
"""Requests: at 50 ms each they bring 640 images a second."""
_AHEAD = 128
_AHEAD_BYTES = 1 << 28
"""Images, and bytes, that are read and have not been taken, at most; one image may be larger."""

Read = Callable[[int], bytes]
"""Returns the bytes of a row."""


@contextmanager
def read_ahead(read: Read, rows: NDArray[int64], lengths: NDArray[int64]) -> Iterator[Read]:
    """Context manager of a function that returns ``read(row)`` and, from several threads at once, reads the next of ``rows`` (n,)
    meanwhile. ``lengths`` (n,) are their sizes in bytes. Each row is taken once, and about in this order; what ``read`` raises is
    raised for that row."""
    ahead = _Ahead(read, rows, lengths)
    try:
        yield ahead.take
    finally:
        ahead.pool.close()


class _Ahead:
    """Reads rows in order. Nobody waits for a row that has not been begun: who asks for one reads it."""

    def __init__(self, read: Read, rows: NDArray[int64], lengths: NDArray[int64]) -> None:
        self.read, self.pool = read, Pool(min(_AT_ONCE, max(len(rows), 1)), "read")
        self._order = zip(rows.tolist(), lengths.tolist(), strict=True)
        self._next = next(self._order, None)
        self._begun: dict[int, tuple[Task[bytes], int]] = {}
        self._passed: set[int] = set()
        """Rows that were taken before they were begun."""
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, row: int) -> bytes:
        """Returns the bytes of ``row``."""
        with self._lock:
            self._begin()
            found = self._begun.get(row)
            if found is None:
                self._passed.add(row)
        if found is None:
            return self.read(row)
        try:
            return found[0].result()
        finally:
            with self._lock:
                del self._begun[row]
                self._bytes -= found[1]
                self._begin()

    def _begin(self) -> None:
        """Begins as many rows as may wait."""
        while self._next is not None:
            row, length = self._next
            if row in self._passed:
                self._passed.remove(row)
            elif not self._begun or (len(self._begun) < _AHEAD and self._bytes + length <= _AHEAD_BYTES):
                self._begun[row] = self.pool.submit(self.read, row), length
                self._bytes += length
            else:
                return
            self._next = next(self._order, None)
