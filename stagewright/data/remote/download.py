"""Fetches blocks and single images from an object store, with patience for a store that does not answer for a while.

:class:`Download` is the seam between the cache of blocks and what blocks are made of: ranges of bytes of files, or row groups of
Parquet files.
"""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from stagewright.data.images.places import Span
from stagewright.data.images.remote import Damaged, RemoteFiles, changed, check_cells
from stagewright.data.images.row_groups import Cells, GroupMemory, RowGroups
from stagewright.data.remote.table import BlockTable
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


def open_download(files: RemoteFiles, table: BlockTable) -> Download:
    """Returns what reads the blocks of ``table`` from ``files``."""
    groups = table.row_groups
    return _RangeDownload(files, table) if groups is None else _RowGroupDownload(files, table, groups)


class Download:
    """Reads the images of ``table`` from the files of a store. Thread-safe."""

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

    @abstractmethod
    def block(self, block: int) -> list[memoryview]:
        """Returns the content of a block, in pieces; whoever reads an image compares it with its checksum.

        DataError if the file has changed, Unreadable if the store does not answer, StorageError if it refuses.
        """

    @abstractmethod
    def rows(self, rows: list[int]) -> list[memoryview | Exception]:
        """Returns the bytes of each image, or the error as above; one that is damaged is fetched once more."""

    def close(self) -> None:
        """Ends the waiting and the threads; later calls begin anew."""
        with self._lock:
            ended, self._closed = self._closed, threading.Event()
            pool, self._requests = self._requests, None
        ended.set()
        if pool is not None:
            pool.close(0.0)

    def read_all(self, spans: Sequence[Span]) -> list[memoryview]:
        """Returns the bytes of each of ``spans``, all of which are fetched at the same time; errors as for :meth:`block`."""
        if len(spans) == 1:
            return [self.read(spans[0])]
        return [task.result() for task in [self.pool().submit(self.read, span) for span in spans]]

    def read(self, span: Span) -> memoryview:
        """Returns a range of bytes of a file; errors as for :meth:`block`."""
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

    def pool(self) -> Pool:
        """Returns the threads that fetch what belongs together."""
        with self._lock:
            if self._requests is None:
                self._requests = Pool(_REQUESTS_AT_ONCE, "requests")
            return self._requests


class _RangeDownload(Download):
    """Reads images that are ranges of bytes of their files."""

    def block(self, block: int) -> list[memoryview]:
        """Returns the content of a block by one request for images that lie side by side."""
        spans = self.table.spans(block)
        every = zip(self.read_all([span for span, _ in spans]), spans, strict=True)
        return [content[begin:end] for content, (_, pieces) in every for begin, end in pieces]

    def rows(self, rows: list[int]) -> list[memoryview | Exception]:
        """Returns the bytes of each image by a request of its own; all are fetched at the same time."""
        tasks = [self.pool().submit(self._row, row) for row in rows]
        found = list[memoryview | Exception]()
        for task in tasks:
            try:
                found.append(task.result())
            except Exception as error:  # whichever it is, it is told with the image
                found.append(error)
        return found

    def _row(self, row: int) -> memoryview:
        places = self.table.places
        span = Span(int(places.which[row]), int(places.offsets[row]), int(places.lengths[row]))
        for _ in range(2):
            content = self.read(span)
            if places.crcs is None or zlib.crc32(content) == places.crcs[row]:
                return content
        raise Damaged("the bytes of an image do not match its checksum")


class _RowGroupDownload(Download):
    """Reads images in row groups of Parquet files, as ``groups`` says. Of those that single images need, the last ones stay in
    memory."""

    def __init__(self, files: RemoteFiles, table: BlockTable, groups: RowGroups) -> None:
        super().__init__(files, table)
        self._groups, self._memory = groups, GroupMemory(self._read_group)

    def block(self, block: int) -> list[memoryview]:
        """Returns the content of a block from the row groups that it needs, one after the other."""
        rows, pieces = self.table.rows(block), list[memoryview]()
        of = self._groups.of[rows]
        for group in np.unique(of).tolist():
            own = rows[of == group]
            if (cells := self._memory.known(group)) is None:
                cells = self._read_group(group)
            check_cells(self.files, self._groups, cells, own)
            pieces += cells.rows(self._groups.row[own])
        return pieces

    def rows(self, rows: list[int]) -> list[memoryview | Exception]:
        """Returns the bytes of each image; the row groups are read one after the other, so that one at a time is in memory."""
        found: list[memoryview | Exception] = [memoryview(b"")] * len(rows)
        every = np.array(rows, np.int64)
        of = self._groups.of[every]
        for group in np.unique(of).tolist():
            at = np.flatnonzero(of == group)
            try:
                cells = self._memory.get(group)
                check_cells(self.files, self._groups, cells, every[at])
            except Exception as error:  # whichever it is, it is told with the image
                for one in at.tolist():
                    found[one] = error
                continue
            for one in at.tolist():  # copied, as a view would keep all of the row group
                found[one] = memoryview(bytes(cells.row(int(self._groups.row[every[one]]))))
        return found

    def _read_group(self, group: int) -> Cells:
        spans = self._groups.spans(group)
        try:
            return self._groups.decode(group, self.read_all(spans))
        except OSError:  # damaged, as on the way
            content = self.read_all(spans)
        try:
            return self._groups.decode(group, content)
        except OSError as error:
            raise Damaged(f"{self.files.places.files[spans[0].file]}: {error}") from error
