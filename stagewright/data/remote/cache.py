"""A cache on disk between a run and images in an object store, which fetches ahead what the run needs next.

It reads whole blocks. :meth:`BlockCache.follow` tells it when a run needs them: it fetches in the order of need, and gives up
what is needed last (:mod:`stagewright.data.remote.eviction`). Without that it fetches what is asked for as long as there is room.
What has no room is read image by image, and not kept. The processes of a host share the cache.
"""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.remote import RemoteFiles
from stagewright.data.images.stored import Stored
from stagewright.data.remote.block_files import BlockFiles
from stagewright.data.remote.capacity import capacity_of
from stagewright.data.remote.download import Download
from stagewright.data.remote.eviction import NEVER, num_due, victims
from stagewright.data.remote.pace import Pace
from stagewright.data.remote.table import BlockTable
from stagewright.errors import StorageError
from stagewright.storage.cache import cache_folder

if TYPE_CHECKING:  # it knows batches, which need torch
    from stagewright.data.remote.needs import Needs

_MOST_MAPPED = 256
_IN_FLIGHT_BYTES = 1 << 26
_FEWEST, _MOST_THREADS = 4, 32
_PAUSE_SECONDS = 0.05
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
        self.download = Download(files, table)
        self.pace = Pace()
        self.cache_gb: float | None = None
        """Size of the cache in GB (10^9 bytes); None: a quarter of the free disk. Not changed after the first fetch."""
        self.fetched_bytes = 0
        """Size of all blocks that this process has fetched."""
        self._needs: Needs | None = None
        self._step = 0
        self._next_use = np.full(len(table), NEVER)
        self._jobs: dict[int, _Job] = {}
        self._urgent, self._ahead = deque[_Job](), deque[int]()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._generation = object()
        """Threads end when it is another one than they were started with."""
        self._moved = False
        self._mapped: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._renewed: set[int] = set()

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
        ``failures``."""
        blocks = self.table.block_of[rows]
        found = self._bring(np.unique(blocks).tolist())
        found = self._bring(self._damaged(rows, blocks, found), again=found)
        buffers, number = [_NOTHING], {}
        for block, content in found.items():
            if isinstance(content, np.ndarray):
                number[block] = len(buffers)
                buffers.append(content)
        which = np.array([number.get(block, 0) for block in blocks.tolist()], np.int32)
        offsets, lengths = self.table.inner[rows], self.table.places.lengths[rows]
        failures = dict[int, Exception]()
        alone = [at for at, block in enumerate(blocks.tolist()) if found[block] is None]
        read = self.download.rows(rows[alone].tolist()) if alone else []
        for at, content in zip(alone, read, strict=True):
            if isinstance(content, Exception):
                failures[at] = content
                continue
            which[at], offsets[at] = len(buffers), 0
            buffers.append(np.frombuffer(content, np.uint8))
        for at, block in enumerate(blocks.tolist()):
            if isinstance(error := found[block], Exception):
                failures[at] = error
        failures = {at: _as_unreadable(error) for at, error in sorted(failures.items())}
        lengths[list(failures)] = offsets[list(failures)] = which[list(failures)] = 0
        return Stored("encoded", buffers, which, offsets, lengths, failures=failures)

    def follow(self, needs: Needs, step: int) -> None:
        """Fetches from now on ahead what ``needs`` tells, from the update ``step`` on."""
        with self._changed:
            self._needs, self._step, self._moved = needs, step, True
            self._start_threads()
            self._changed.notify_all()

    def at(self, step: int) -> None:
        """Tells which update is read next."""
        self.pace.stepped(step)
        with self._changed:
            if step != self._step:
                self._step, self._moved = step, True
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads; what is in the cache stays. A later :meth:`fetch` starts them again."""
        with self._changed:
            self._generation, self._threads, self._needs = object(), [], None
            self._ahead.clear()
            for job in self._urgent:
                del self._jobs[job.block]
                job.error = OSError("the cache of blocks has been closed")
                job.done.set()
            self._urgent.clear()
            self._changed.notify_all()
        self.download.close()

    def _bring(self, blocks: list[int], again: dict[int, _Found] | None = None) -> dict[int, _Found]:
        """Returns each of ``blocks``, None if there is no room for it, or the error; and what is in ``again`` of others."""
        found, jobs = dict(again or {}), dict[int, _Job]()
        for block in blocks:
            if (content := self._map(block)) is not None:
                found[block] = content
            else:
                jobs[block] = self._urgently(block)
        for block, job in jobs.items():
            job.done.wait()
            if job.content is None and job.error is None and not job.urgent:  # begun ahead, when there was no room
                job = self._urgently(block)
                job.done.wait()
            found[block] = job.error or job.content
        return found

    def _damaged(self, rows: NDArray[np.int64], blocks: NDArray[np.int32], found: dict[int, _Found]) -> list[int]:
        """Removes the blocks in which an image of ``rows`` is damaged, and returns them; each block only once."""
        crcs, wrong = self.table.places.crcs, set[int]()
        if crcs is None:
            return []
        ends = self.table.inner[rows] + self.table.places.lengths[rows]
        for row, block, end in zip(rows.tolist(), blocks.tolist(), ends.tolist(), strict=True):
            content = found[block]
            if block in wrong or block in self._renewed or not isinstance(content, np.ndarray):
                continue
            if zlib.crc32(content[self.table.inner[row] : end].data) != crcs[row]:
                wrong.add(block)
        with self._changed:
            self._renewed |= wrong
            for block in wrong:
                self._mapped.pop(block, None)
        for block in wrong:
            self.blocks.remove(block)
        return sorted(wrong)

    def _map(self, block: int) -> NDArray[np.uint8] | None:
        """Returns a block that is there, mapped into memory, or None."""
        with self._changed:
            if (content := self._mapped.get(block)) is not None:
                self._mapped.move_to_end(block)
                return content
        content = self.blocks.map(block)
        if content is not None:
            with self._changed:
                self._mapped[block] = content
                while len(self._mapped) > _MOST_MAPPED:
                    self._mapped.popitem(last=False)
        return content

    def _urgently(self, block: int) -> _Job:
        """Returns the job of a block that somebody waits for, begun before those that are fetched ahead."""
        with self._changed:
            if (job := self._jobs.get(block)) is None:
                job = self._jobs[block] = _Job(block, urgent=True)
                self._urgent.append(job)
                self._start_threads()
                self._changed.notify_all()  # one alone may be the thread that looks ahead
            return job

    def _start_threads(self) -> None:
        if not self._threads:
            most = int(self.table.sizes.max(initial=1))
            # What is on the way takes room from what is there.
            count = min(_MOST_THREADS, max(_FEWEST, min(_IN_FLIGHT_BYTES, self.capacity // 4) // most))
            works = [self._work] * count + [self._look_ahead]
            own = (self._generation,)
            self._threads = [threading.Thread(target=work, args=own, name="blocks", daemon=True) for work in works]
            for thread in self._threads:
                thread.start()

    def _work(self, generation: object) -> None:
        while (job := self._next_job(generation)) is not None:
            try:
                job.content = self._fetched(job)
            except Exception as error:  # told to whoever waits for the block
                job.error = error
            with self._changed:
                del self._jobs[job.block]
                if (
                    job.content is None
                ):  # what is needed later has no room or no store either; the next update asks again
                    self._ahead.clear()
            job.done.set()

    def _next_job(self, generation: object) -> _Job | None:
        """Waits for a block to fetch; None at the end."""
        with self._changed:
            while self._generation is generation:
                if self._urgent:
                    return self._urgent.popleft()
                while self._ahead:
                    if (block := self._ahead.popleft()) not in self._jobs:
                        job = self._jobs[block] = _Job(block, urgent=False)
                        return job
                self._changed.wait()
            return None

    def _fetched(self, job: _Job) -> NDArray[np.uint8] | None:
        """Fetches a block into the cache unless it is there, and returns it; None if there is no room."""
        block = job.block
        after = float(self._next_use[block])
        if job.urgent and after <= self._step + 1:  # as planned, and not looked at by chance, as to estimate statistics
            after = min(after, self._step)

        def choose(present: NDArray[np.int64], needed: int) -> list[int] | None:
            return victims(present, self._next_use, self.table.sizes, needed, after)

        with self.blocks.making(block, self.capacity, choose) as store:
            if store is None:
                return self.blocks.map(block)
            began = time.monotonic()
            content = self.download.block(block)
            self.pace.fetched(len(content), time.monotonic() - began, len(self._jobs))
            with self._changed:
                self.fetched_bytes += len(content)
            try:
                store(content)
            except StorageError:  # a full disk: the content is there, only not for others
                return np.frombuffer(content, np.uint8)
        mapped = self.blocks.map(block)
        return np.frombuffer(content, np.uint8) if mapped is None else mapped

    def _look_ahead(self, generation: object) -> None:
        """Decides at each update what is fetched ahead."""
        while True:
            with self._changed:
                while (needs := self._needs) is None or not self._moved:
                    if self._generation is not generation:
                        return
                    self._changed.wait()
                step, self._moved = self._step, False
            next_use = needs.next_use(step)
            ahead = self._to_fetch(needs, step)
            with self._changed:
                if self._generation is not generation:
                    return
                self._next_use, self._ahead = next_use, deque(ahead)
                self._changed.notify_all()
            time.sleep(_PAUSE_SECONDS)  # updates of a few milliseconds need not be looked at one by one

    def _to_fetch(self, needs: Needs, step: int) -> list[int]:
        """Returns the blocks to begin now: those that find room, and those that must be begun lest they come too late."""
        blocks, firsts = needs.wanted(step)
        there = np.zeros(len(self.table), np.bool_)
        there[self.blocks.present()] = True
        sizes = self.table.sizes
        missing = np.flatnonzero(~there[blocks])
        free = self.capacity - int(sizes[there].sum())
        fitting = int(np.searchsorted(np.cumsum(sizes[blocks[missing]]), free, "right"))
        if self.pace.is_known:
            seconds = (firsts[missing] - step) * self.pace.step_seconds
            latency = self.pace.latency + _PAUSE_SECONDS
            due = num_due(seconds, sizes[blocks[missing]], self.pace.bytes_per_second, latency)
        else:  # as much as is in use at a time
            later = np.cumsum(np.where(firsts > step, sizes[blocks], 0))
            due = int(np.searchsorted(missing, np.searchsorted(later, needs.window_bytes, "right")))
        return blocks[missing[: max(fitting, due)]].tolist()


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
