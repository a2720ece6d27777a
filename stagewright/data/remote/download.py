"""Fetches blocks and single images by range requests, with patience for a store that does not answer for a while."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from collections.abc import Callable
from typing import TypeVar

from stagewright.data.images.remote import Damaged, RemoteFiles, changed
from stagewright.data.remote.table import BlockTable, Span
from stagewright.errors import StorageError, Unreadable
from stagewright.storage.object_files import Changed, view_range
from stagewright.system.threads import Pool

T = TypeVar("T")

PATIENCE = "STAGEWRIGHT_STORE_PATIENCE"
"""Variable: seconds that a read waits for a store that does not answer, before its images count as unreadable; 300 if not set."""
_PAUSE = (1.0, 5.0)
_REQUESTS_AT_ONCE = 16


def patience_seconds() -> float:
    """Returns the value of :data:`PATIENCE`; StorageError if it is not a number of seconds."""
    given = os.environ.get(PATIENCE, "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise StorageError(f"{PATIENCE}={given}", "seconds, 0 to 86400", "correct the variable, or unset it")
    return seconds


class Download:
    """Reads the files of ``table`` from a store. Thread-safe."""

    def __init__(self, files: RemoteFiles, table: BlockTable) -> None:
        self.files, self.table = files, table
        self.patience = patience_seconds()
        self._closed = threading.Event()
        self.num_requests, self.num_bytes = 0, 0
        """Requests and bytes so far, without repeated ones."""
        self._store = files.open()
        self._requests: Pool | None = None
        self._lock = threading.Lock()
        self._is_away = False
        """Whether the store has been waited for in vain; then nobody waits until it has answered again."""

    def block(self, block: int) -> list[memoryview]:
        """Returns the content of a block, in pieces; whoever reads an image compares it with its checksum.

        DataError if the file has changed, Unreadable if the store does not answer, StorageError if it refuses.
        """
        spans = self.table.spans(block)
        if len(spans) == 1:
            read = [self._read(spans[0][0])]
        else:
            read = [task.result() for task in [self._pool().submit(self._read, span) for span, _ in spans]]
        every = zip(read, spans, strict=True)
        return [content[begin:end] for content, (_, pieces) in every for begin, end in pieces]

    def rows(self, rows: list[int]) -> list[memoryview | Exception]:
        """Returns the bytes of each image, or the error as above: all are fetched at the same time, and one that is damaged once
        more."""
        tasks = [self._pool().submit(self._row, row) for row in rows]
        found = list[memoryview | Exception]()
        for task in tasks:
            try:
                found.append(task.result())
            except Exception as error:  # whichever it is, it is told with the image
                found.append(error)
        return found

    def close(self) -> None:
        """Ends the waiting and the threads; later calls begin anew."""
        with self._lock:
            ended, self._closed = self._closed, threading.Event()
            pool, self._requests = self._requests, None
        ended.set()
        if pool is not None:
            pool.close(0.0)

    def _row(self, row: int) -> memoryview:
        places = self.table.places
        span = Span(int(places.which[row]), int(places.offsets[row]), int(places.lengths[row]))
        for _ in range(2):
            content = self._read(span)
            if places.crcs is None or zlib.crc32(content) == places.crcs[row]:
                return content
        raise Damaged("the bytes of an image do not match its checksum")

    def _read(self, span: Span) -> memoryview:
        name, etag = self.files.places.files[span.file], self.files.etags[span.file]

        def request() -> memoryview:
            return view_range(self._store, self.files.url, name, span.offset, span.length, etag)

        try:
            content = self._patiently(request)
        except (Changed, FileNotFoundError) as error:
            raise changed(self.files.url, name, "is gone" if isinstance(error, OSError) else "has changed") from error
        with self._lock:
            self.num_requests += 1
            self.num_bytes += len(content)
        return content

    def _patiently(self, request: Callable[[], T]) -> T:
        end, closed = time.monotonic() + self.patience, self._closed
        while True:
            try:
                content = request()
            except Unreadable:
                if self._is_away or time.monotonic() > end or closed.wait(random.uniform(*_PAUSE)):
                    self._is_away = True
                    raise
            else:
                self._is_away = False
                return content

    def _pool(self) -> Pool:
        with self._lock:
            if self._requests is None:
                self._requests = Pool(_REQUESTS_AT_ONCE, "requests")
            return self._requests
