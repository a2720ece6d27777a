"""Turns batch specifications into batches, in order, as fast as the threads go: only speed, no decisions.

Everything that decides what a batch holds stands in its :class:`BatchSpec`, so the bits are the same for any number of
workers and any prefetch, and the loader neither knows epochs nor ever restarts: it reads straight across their seams.
Threads suffice, since Pillow and NumPy release the interpreter lock around their work. A picture that cannot be read is
zeros, not valid and named; it is never replaced. Nothing is normalised here: batches are 8-bit, a quarter of the bytes.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stagewright.data.batches.batch import BadRow, Batch, BatchSpec
from stagewright.data.images.crop import IN_MEMORY, BadPlace, crop_into, in_words
from stagewright.data.images.decode import Images
from stagewright.data.images.device_cache import Resident
from stagewright.data.load_times import LoadTimes
from stagewright.errors import Interrupted
from stagewright.system.threads import Pool

Part = Callable[[], list[BadRow]]

# Small enough to keep all threads busy on one batch, large enough that handing out costs nothing.
_PICTURES_A_TASK = 8
_ARRAYS_A_TASK = 512

# How long a thread may keep the interpreter's lock while another waits for it. Python's 5 ms make a thread that comes back
# from decoding wait for whoever runs Python: without the native decoder, 2 threads give 2.0 times the images of one with
# this, 1.8 without.
_SWITCH_SECONDS = 1e-4

SLOW_SECONDS = 30.0
"""A read that takes longer than this is named."""
_STOP_SECONDS = 0.2
"""How often it is asked, while a batch is waited for, whether to stop."""
_THREAD_NAME = "stagewright-loader"


def load_batches(
    images: Images,
    specs: Iterable[BatchSpec],
    *,
    workers: int,
    prefetch: int = 4,
    pin_memory: bool = False,
    times: LoadTimes | None = None,
    on_slow: Callable[[NDArray[np.int64], float], None] | None = None,
    resident: Resident | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Batch, None, None]:
    """The batches of ``specs``, in their order, made by ``workers`` threads (0: one that reads nothing ahead).

    Specs are drawn in the calling thread, once each, and no more than ``prefetch`` beyond the batch handed out, which
    also bounds the memory; with 0 workers none. Close the generator (``contextlib.closing``) to end the threads; being
    garbage collected or exhausted ends them too. Closing waits for the eight pictures that each thread is at, and leaves
    threads behind that hang in a read. While a batch is waited for, ``stop`` is asked several times a second and makes it
    raise :class:`~stagewright.errors.Interrupted`.
    ``pin_memory`` allocates page-locked tensors and needs CUDA. ``times`` is told where the seconds go, and
    ``on_slow`` which rows the consumer has been waiting for, with the seconds, from :data:`SLOW_SECONDS` on, ever more
    rarely. Batches that ``resident`` serves are made on its device, the moment they are handed out. An error of the reader
    that is not in ``crop.UNREADABLE`` is raised when its batch is due. ValueError for workers < 0 or prefetch < 1.
    """
    if workers < 0 or prefetch < 1:
        raise ValueError(f"workers {workers} must not be negative, prefetch {prefetch} must be at least 1")
    times = times or LoadTimes()
    times.workers = workers
    drafts = (
        _ResidentDraft(resident, spec, times)
        if not spec.unread and resident is not None and resident.serves(spec.geometry, spec.image_size)
        else _HostDraft(images, spec, pin_memory, times)
        for spec in specs
    )
    return _in_threads(drafts, max(workers, 1), prefetch if workers else 0, times, on_slow or _say_nothing, stop)


def _in_threads(
    drafts: Iterator[_Draft],
    workers: int,
    prefetch: int,
    times: LoadTimes,
    on_slow: Callable[[NDArray[np.int64], float], None],
    stop: Callable[[], bool],
) -> Generator[Batch, None, None]:
    closed = threading.Event()
    under_way: deque[tuple[_Draft, list[Future[list[BadRow]]]]] = deque()
    pool = Pool(workers, _THREAD_NAME, _alone)

    def top_up(most: int) -> None:
        while len(under_way) < most and (draft := next(drafts, None)) is not None:
            under_way.append((draft, [pool.submit(part) for part in draft.parts(closed)]))

    def take() -> Batch:
        draft, futures = under_way.popleft()
        began = time.perf_counter()
        for rows, future in zip(draft.rows_of_parts(), futures, strict=True):
            if not future.done():
                _await(future, began, lambda seconds, late=rows: on_slow(late, seconds), stop)
        batch = draft.finished(future.result() for future in futures)
        times.waited(time.perf_counter() - began)
        top_up(prefetch)
        return batch

    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
    try:
        while top_up(max(prefetch, 1)) or under_way:
            yield take()  # without a name here, or a batch would stay in memory after the consumer is done with it
    finally:
        closed.set()
        sys.setswitchinterval(interval)
        pool.close()


def _await(
    future: Future[list[BadRow]], began: float, on_slow: Callable[[float], None], stop: Callable[[], bool]
) -> None:
    """Waits for ``future``, tells ever more rarely how long it has been, and gives up where a stop is asked for."""
    patience, since = SLOW_SECONDS, time.perf_counter()
    while wait([future], timeout=min(patience, _STOP_SECONDS)).not_done:
        if stop():
            raise Interrupted
        if time.perf_counter() - since > patience:
            on_slow(time.perf_counter() - began)
            patience *= 3


def _alone() -> None:
    """Keeps torch's helpers out of the thread that calls: each would bring a team of its own, whose members spin while they
    wait and take the cores from the loader (2 threads on 2 cores: 1,150 images/s for 860 without the native decoder)."""
    torch.get_num_threads()  # sets this thread's number, which a later call would otherwise do
    threadpool_limits(1, user_api="openmp")


def _say_nothing(rows: NDArray[np.int64], seconds: float) -> None:
    pass


class _Draft(ABC):
    """A batch in the making: the pieces of work that prepare it, in any order or at once, and what is made of them."""

    def __init__(self, images: Images, spec: BatchSpec, times: LoadTimes) -> None:
        self.images, self.spec, self.times = images, spec, times

    def parts(self, closed: threading.Event) -> list[Part]:
        """The pieces of work; each returns the rows it could not read, and does nothing once ``closed`` is set."""
        return [partial(self._do, chunk, closed) for chunk in self._chunks()]

    def rows_of_parts(self) -> list[NDArray[np.int64]]:
        """The manifest rows that each piece of work reads."""
        return [self.spec.rows[chunk] for chunk in self._chunks()]

    @abstractmethod
    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """The batch, once ``bad_rows`` (of all parts, in order) is exhausted."""

    def _chunks(self) -> list[slice]:
        each = _ARRAYS_A_TASK if isinstance(self.images, IN_MEMORY) else _PICTURES_A_TASK
        return [slice(start, start + each) for start in range(0, len(self.spec.rows), each)]

    def _do(self, chunk: slice, closed: threading.Event) -> list[BadRow]:
        if closed.is_set():
            return []
        rows = self.spec.rows[chunk]
        return [(int(rows[at]), reason) for at, reason in self._fill(chunk)]

    @abstractmethod
    def _fill(self, chunk: slice) -> list[BadPlace]:
        """Prepares a chunk; which places of it could not be read."""


class _HostDraft(_Draft):
    """A batch on the host: its buffers are filled piece by piece."""

    def __init__(self, images: Images, spec: BatchSpec, pin_memory: bool, times: LoadTimes) -> None:
        super().__init__(images, spec, times)
        size = 0 if spec.unread else spec.image_size
        self.buffer = torch.empty((len(spec.rows), size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)
        self.labels = torch.empty(len(spec.rows), dtype=torch.int64, pin_memory=pin_memory)
        self.valid = torch.ones(len(spec.rows), dtype=torch.bool, pin_memory=pin_memory)
        self.labels.numpy()[:] = spec.labels

    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """The batch, in the buffers."""
        bad = tuple(row for part in bad_rows for row in part)
        spec, images = self.spec, self.buffer.permute(0, 3, 1, 2)
        return Batch(spec.step, images, self.labels, self.valid, bad, spec.draws, spec.drawn_for, spec.rows)

    def _chunks(self) -> list[slice]:
        return [] if self.spec.unread else super()._chunks()

    def _fill(self, chunk: slice) -> list[BadPlace]:
        spec, geometry = self.spec, self.spec.geometry
        bad = crop_into(
            self.images,
            spec.rows[chunk],
            geometry.boxes[chunk],
            geometry.shifts[chunk],
            geometry.flips[chunk],
            spec.interpolation,
            spec.exact,
            self.buffer.numpy()[chunk],
            self.times,
        )
        for at, _ in bad:
            self.valid.numpy()[chunk][at] = False
        return bad


class _ResidentDraft(_Draft):
    """A batch that is made on the device: the threads decode what has not been used before, and nothing else."""

    def __init__(self, resident: Resident, spec: BatchSpec, times: LoadTimes) -> None:
        super().__init__(resident.images, spec, times)
        self.resident = resident
        self.all_there = resident.holds(spec.rows)

    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """The batch, on the device."""
        bad = tuple(row for part in bad_rows for row in part)
        spec, resident = self.spec, self.resident
        began = time.perf_counter()
        valid = ~np.isin(spec.rows, [row for row, _ in bad])
        images = resident.views(spec.rows, spec.geometry, valid).permute(0, 3, 1, 2)
        labels, there = resident.copied(spec.labels), resident.copied(valid)
        self.times.loaded(len(spec.rows), 0.0, time.perf_counter() - began)
        return Batch(spec.step, images, labels, there, bad, spec.draws, spec.drawn_for, spec.rows)

    def _chunks(self) -> list[slice]:
        return [] if self.all_there else super()._chunks()

    def _fill(self, chunk: slice) -> list[BadPlace]:
        began = time.perf_counter()
        failures = self.resident.images.ensure(self.spec.rows[chunk])
        self.times.loaded(0, time.perf_counter() - began, 0.0)
        return [(at, in_words(error)) for at, error in failures.items()]
