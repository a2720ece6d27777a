"""A cache on disk between a run and images in an object store, which fetches ahead what the run needs next.

It reads whole blocks. :meth:`BlockCache.follow` tells it when a run needs them: it fetches in the order of need, and gives up
what is needed last (:mod:`stagewright.data.remote.eviction`). Without that it fetches what is asked for as long as there is room.
What has no room is read image by image, or for Parquet files by row group, and not kept. The processes of a host share the cache.
"""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.remote import RemoteFiles, without_damaged
from stagewright.data.images.stored import Stored
from stagewright.data.remote.block_files import BlockFiles, Choose, Store
from stagewright.data.remote.capacity import capacity_of, make_room
from stagewright.data.remote.download import Download, open_download
from stagewright.data.remote.eviction import NEVER, num_due, victims
from stagewright.data.remote.pace import Pace
from stagewright.data.remote.table import BlockTable
from stagewright.errors import StorageError
from stagewright.storage.cache import cache_folder

if TYPE_CHECKING:  # it knows batches, which need torch
    from stagewright.data.remote.needs import Needs

_MOST_MAPPED = 256
_IN_FLIGHT_BYTES = 1 << 26
_FEWEST_THREADS, _MOST_THREADS = 4, 32
_LEAST_PAUSE, _PAUSES = 0.005, 10.0
"""Seconds between two looks ahead at least, and multiples of the processor time that one takes."""
_NOTHING = np.empty(0, np.uint8)


@dataclass(eq=False)
class _Job:
    """A block that is being fetched, or waits for that."""

    block: int
    urgent: bool
    """Whether somebody waited for it when it was begun."""
    done: threading.Event = field(default_factory=threading.Event)
    content: NDArray[np.uint8] | None = None
    """The block; None if there is no room for it."""
    error: Exception | None = None


class BlockCache:
    """Reads the images of ``files`` through a cache on disk, in a folder that belongs to these files and blocks.

    Folder and threads are made when they are needed; the threads end with :meth:`close` or the process.
    """

    def __init__(self, files: RemoteFiles, table: BlockTable) -> None:
        self.files, self.table = files, table
        self.download: Download = open_download(files, table)
        self.pace = Pace()
        self.cache_gb: float | None = None
        """Size of the cache in GB (10^9 bytes); None: a quarter of the free disk. Not changed after the first fetch."""
        self.fetched_bytes = 0
        """Size of all blocks that this process has fetched."""
        self._needs: Needs | None = None
        self._first, self._step, self._pending = 0, 0, 0
        self._next_use = np.full(len(table), NEVER)
        self._jobs: dict[int, _Job] = {}
        self._urgent, self._ahead = deque[_Job](), deque[int]()
        self._lock = threading.Lock()
        self._to_work, self._to_look = threading.Condition(self._lock), threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._generation = object()
        """Threads end when it is another one than they were started with."""
        self._moved, self._pause = False, _LEAST_PAUSE
        self._mapped: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._checked, self._renewed = set[int](), set[int]()
        """Blocks whose images have been compared with their checksums; and those that were fetched once more after that."""
        self._wrong = set[int]()
        """Images that are damaged in the store."""

    @cached_property
    def blocks(self) -> BlockFiles:
        """The files of the cache."""
        return BlockFiles(cache_folder("blocks", _key(self.files, self.table)), self.table.sizes)

    @cached_property
    def capacity(self) -> int:
        """Size of the cache in bytes."""
        return capacity_of(self.cache_gb, self.blocks)

    def fetch(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes of the images ``rows`` (n,), most of them as positions in memory maps. What cannot be fetched is in
        ``failures``, and what is damaged, also after its block has been fetched once more."""
        blocks = self.table.block_of[rows].tolist()
        found = self._bring(set(blocks))
        buffers, number = [_NOTHING], {}
        for block, content in found.items():
            if isinstance(content, np.ndarray):
                number[block] = len(buffers)
                buffers.append(content)
        which = np.array([number.get(block, 0) for block in blocks], np.int32)
        offsets, lengths = self.table.inner[rows], self.table.places.lengths[rows]
        failures = dict[int, Exception]()
        alone = [at for at, block in enumerate(blocks) if found[block] is None] if len(number) < len(found) else []
        read = self.download.rows(rows[alone].tolist()) if alone else []
        for at, content in zip(alone, read, strict=True):
            if isinstance(content, Exception):
                failures[at] = content
                continue
            which[at], offsets[at] = len(buffers), 0
            buffers.append(np.frombuffer(content, np.uint8))
        for at, block in enumerate(blocks):
            if isinstance(error := found[block], Exception):
                failures[at] = error
        failures = {at: _as_unreadable(error) for at, error in sorted(failures.items())}
        lengths[list(failures)] = offsets[list(failures)] = which[list(failures)] = 0
        stored = Stored("encoded", buffers, which, offsets, lengths, failures=failures)
        if not self._wrong:
            return stored
        wrong = [at for at, row in enumerate(rows.tolist()) if row in self._wrong and at not in failures]
        return without_damaged(stored, wrong)

    def follow(self, needs: Needs, step: int, pending: int = 0) -> None:
        """Fetches from now on ahead what ``needs`` tells, from the update ``step`` on. ``pending``: updates before the one that
        is told next (:meth:`at`) of which images may still be read."""
        with self._lock:
            self._needs, self._first, self._step, self._pending, self._moved = needs, step, step, pending, True
            self._start_threads()
            self._to_look.notify()

    def at(self, step: int) -> None:
        """Tells which update is read next."""
        self.pace.stepped(step)
        with self._lock:
            if step != self._step:
                self._step, self._moved = step, True
                self._to_look.notify()

    def close(self) -> None:
        """Ends the threads; what is in the cache stays. A later :meth:`fetch` starts them again."""
        with self._lock:
            self._generation, self._threads, self._needs = object(), [], None
            self._ahead.clear()
            for job in self._urgent:
                del self._jobs[job.block]
                job.error = OSError("the cache of blocks has been closed")
                job.done.set()
            self._urgent.clear()
            self._to_work.notify_all()
            self._to_look.notify()
        self.download.close()

    def _bring(self, blocks: set[int]) -> dict[int, _Found]:
        """Returns each of ``blocks``, None if there is no room for it, or the error."""
        found, jobs = dict[int, _Found](), dict[int, _Job]()
        for block in blocks:
            if (content := self._map(block)) is not None:
                found[block] = content
            else:
                jobs[block] = self._urgently(block)
        for block, job in jobs.items():
            job.done.wait()
            found[block] = job.error or job.content
        return found

    def _map(self, block: int) -> NDArray[np.uint8] | None:
        """Returns a block that is there, mapped into memory, or None. One with damaged images is removed, but not twice."""
        with self._lock:
            if (content := self._mapped.get(block)) is not None:
                self._mapped.move_to_end(block)
                return content
        content = self.blocks.map(block)
        if content is None:
            return None
        if not self._is_right(block, [content.data]):
            self.blocks.remove(block)
            return None
        with self._lock:
            self._mapped[block] = content
            while len(self._mapped) > _MOST_MAPPED:
                self._mapped.popitem(last=False)
        return content

    def _is_right(self, block: int, pieces: Iterable[memoryview]) -> bool:
        """Compares the images of a block with their checksums when this process first meets it; returns False if it must be
        fetched once more. Not with each read, as threads that load images would wait for Python's global lock each time."""
        if (crcs := self.table.places.crcs) is None or block in self._checked:
            return True
        rows, wrong = self.table.rows(block), set[int]()
        left, piece, at = iter(pieces), memoryview(b""), 0
        for row, length, crc in zip(
            rows.tolist(), self.table.places.lengths[rows].tolist(), crcs[rows].tolist(), strict=True
        ):
            if length and at == len(piece):
                piece, at = next(left), 0
            if zlib.crc32(piece[at : at + length]) != crc:
                wrong.add(row)
            at += length
        with self._lock:
            if wrong and block not in self._renewed:
                self._renewed.add(block)
                return False
            self._wrong |= wrong
            self._checked.add(block)
        return True

    def _urgently(self, block: int) -> _Job:
        """Returns the job of a block that somebody waits for, begun before those that are fetched ahead."""
        with self._lock:
            if (job := self._jobs.get(block)) is None:
                self._start_threads()
                job = self._jobs[block] = _Job(block, urgent=True)
                self._urgent.append(job)
                self._to_work.notify()
            return job

    def _start_threads(self) -> None:
        if not self._threads:
            make_room(self.blocks, self.capacity)
            most = int(self.table.sizes.max(initial=1))
            count = min(_MOST_THREADS, max(_FEWEST_THREADS, _IN_FLIGHT_BYTES // most))
            works = [self._work] * count + [self._look_ahead]
            own = (self._generation,)
            self._threads = [threading.Thread(target=work, args=own, name="blocks", daemon=True) for work in works]
            for thread in self._threads:
                thread.start()

    def _work(self, generation: object) -> None:
        while (job := self._next_job(generation)) is not None:
            try:
                kept = self._fetch(job)
            except Exception as error:  # told to whoever waits for the block
                job.error, kept = error, False
            with self._lock:
                del self._jobs[job.block]
                if not kept:  # what is needed later has no room or no store either; the next look decides again
                    self._ahead.clear()
            job.done.set()

    def _next_job(self, generation: object) -> _Job | None:
        """Waits for a block to fetch; None at the end."""
        with self._lock:
            while self._generation is generation:
                if self._urgent:
                    return self._urgent.popleft()
                while self._ahead:
                    if (block := self._ahead.popleft()) not in self._jobs:
                        job = self._jobs[block] = _Job(block, urgent=False)
                        return job
                self._to_work.wait()
            return None

    def _fetch(self, job: _Job) -> bool:
        """Fetches a block into the cache unless it is there, and completes ``job``; returns whether the block is kept."""
        block = job.block
        after = float(self._next_use[block])
        if job.urgent and after <= self._step + 1:  # as planned, and not looked at by chance, as to estimate statistics
            after = min(after, self._step)

        def choose(present: NDArray[np.int64], needed: int) -> list[int] | None:
            return victims(present, self._next_use, self.table.sizes, needed, after)

        if job.urgent and not self.blocks.has_room(
            self._coming(after) + int(self.table.sizes[block]), self.capacity, choose
        ):
            return False
        with self.blocks.making(block) as store:
            if store is not None:
                return self._made(job, store, choose)
        job.content = self._map(block)  # another process has made it
        return job.content is not None or self._fetch(job)

    def _made(self, job: _Job, store: Store, choose: Choose) -> bool:
        """Fetches a block that is not there; otherwise as :meth:`_fetch`."""
        block = job.block
        self._checked.discard(block)
        began = time.monotonic()
        pieces = self.download.block(block)
        self.pace.fetched(sum(map(len, pieces)), time.monotonic() - began, len(self._jobs))
        if not self._is_right(block, pieces):
            pieces = self.download.block(block)
            self._is_right(block, pieces)
        with self._lock:
            self.fetched_bytes += sum(map(len, pieces))
        try:
            removed = store(pieces, self.capacity, choose)
        except StorageError:  # a full disk: the content is there, only not for others
            removed = None
        with self._lock:
            let_go = [self._mapped.pop(one, None) for one in removed or ()]
        del let_go  # without the lock
        if removed is not None:
            job.content = self._map(block)
        if job.content is None:
            job.content = np.frombuffer(b"".join(pieces), np.uint8)
        return removed is not None

    def _coming(self, before: float) -> int:
        """Returns the bytes of blocks that are being fetched and are needed ``before`` this, or at the same time."""
        with self._lock:
            others = [job.block for job in self._jobs.values() if not job.urgent]
        return int(self.table.sizes[[block for block in others if self._next_use[block] <= before]].sum())

    def _look_ahead(self, generation: object) -> None:
        """Decides at each update what is fetched ahead."""
        while True:
            with self._lock:
                while (needs := self._needs) is None or not self._moved:
                    if self._generation is not generation:
                        return
                    self._to_look.wait()
                step, self._moved = self._step, False
                oldest = max(self._first, step - self._pending)
            began = time.thread_time()
            next_use = needs.next_use(oldest)
            ahead = self._to_fetch(needs, next_use, oldest, step)
            with self._lock:
                if self._generation is not generation:
                    return
                self._next_use, self._ahead = next_use, deque(block for block in ahead if block not in self._jobs)
                self._to_work.notify(len(self._ahead))
            # Updates of a few milliseconds need not be looked at one by one.
            self._pause = max(_LEAST_PAUSE, _PAUSES * (time.thread_time() - began))
            time.sleep(self._pause)

    def _to_fetch(self, needs: Needs, next_use: NDArray[np.float64], oldest: int, step: int) -> list[int]:
        """Returns the blocks to begin now: those that find room, and those that must be begun lest they come too late, as far as
        they are needed before others that would make room."""
        blocks, firsts = needs.wanted(oldest)
        present, sizes = self.blocks.present(), self.table.sizes
        there = np.zeros(len(self.table), np.bool_)
        there[present] = True
        missing = np.flatnonzero(~there[blocks])
        coming = np.cumsum(sizes[blocks[missing]])
        by_use = present[np.argsort(next_use[present])]
        kept = np.concatenate([[0], np.cumsum(sizes[by_use])])
        needed = kept[np.searchsorted(next_use[by_use], firsts[missing], "right")]
        room = int(np.append(np.flatnonzero(coming + needed > self.capacity), len(missing))[0])
        fitting = int(np.searchsorted(coming, self.capacity - kept[-1], "right"))
        if self.pace.is_known:
            seconds = (firsts[missing] - step) * self.pace.step_seconds
            latency = self.pace.latency + self._pause
            rate = self.pace.bytes_per_second(len(self._threads) - 1)
            due = num_due(seconds, sizes[blocks[missing]], rate, latency)
        else:  # as much as is in use at a time
            later = np.cumsum(np.where(firsts > step, sizes[blocks], 0))
            due = int(np.searchsorted(missing, np.searchsorted(later, needs.window_bytes, "right")))
        return blocks[missing[: min(room, max(fitting, due))]].tolist()


_Found = NDArray[np.uint8] | Exception | None


def _as_unreadable(error: Exception) -> Exception:
    """Returns the error of an image that cannot be read: that of a store is one of reading."""
    return OSError(error.given) if isinstance(error, StorageError) else error


def _key(files: RemoteFiles, table: BlockTable) -> str:
    """Returns a name for the cache of these files and blocks: others have another one."""
    digest = hashlib.blake2b(repr((files.url, files.objects)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(table.block_of, "<i4").tobytes())
    digest.update(np.ascontiguousarray(table.places.offsets, "<i8").tobytes())
    return digest.hexdigest()


def cache_of(images: object) -> BlockCache | None:
    """Returns the cache through which ``images`` are read, or None."""
    reader = getattr(images, "reader", None)
    return reader if isinstance(reader, BlockCache) else None
