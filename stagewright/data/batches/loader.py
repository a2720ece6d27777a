"""Loads batches from their specifications with worker threads, in order.

The content of a batch is fully determined by its :class:`BatchSpec`, so it has the same bits for any number of workers and
any prefetch. The loader does not know epochs and never restarts: it prefetches across their boundaries. Threads are enough,
because Pillow and NumPy release Python's global lock while they work. An image that cannot be read is never replaced: its
pixels are zeros, it is marked as not valid, and its row is reported. Images are not normalised here: 8-bit batches need a
quarter of the bytes of float32.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stagewright.augment.geometry import Geometry
from stagewright.data.batches.batch import BadRow, Batch, BatchSpec
from stagewright.data.images.crop import IN_MEMORY, BadPlace, crop_into, in_words
from stagewright.data.images.decode import Images
from stagewright.data.images.device_cache import Resident
from stagewright.data.load_times import LoadTimes
from stagewright.errors import Interrupted
from stagewright.system.threads import Pool, Task

Part = Callable[[], list[BadRow]]

# Images per task: few enough that all threads work on one batch, enough that the cost of a task does not matter.
_FILES_PER_TASK = 8
_ARRAYS_PER_TASK = 512

# How long a thread may keep Python's global lock while another thread waits for it. With Python's default of 5 ms, a thread
# that has finished decoding waits too long. Without the native decoder, 2 threads have 2.0 times the throughput of one with
# this value, and 1.8 times with the default.
_SWITCH_SECONDS = 1e-4

SLOW_SECONDS = 30.0
"""A read that takes longer than this is reported with ``on_slow``."""
_STOP_SECONDS = 0.2
"""The interval at which ``stop`` is called while the consumer waits for a batch."""
_THREAD_NAME = "stagewright-loader"


def load_batches(  # many arguments, but most are independent options, given by name
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
    """Yields the batches of ``specs``, in their order, loaded by worker threads. Use it with ``contextlib.closing``.

    Args:
        images: the images of the manifest, from which the specifications select rows.
        specs: iterated in the calling thread. At most ``prefetch`` specifications are taken beyond the current batch.
        workers: number of threads. 0 means one thread that loads a batch only when it is requested.
        prefetch: number of batches that are loaded ahead, which also limits the memory. Not used with 0 workers.
        pin_memory: allocate the tensors in page-locked memory; needs CUDA.
        times: the seconds for reading, decoding and waiting are added to it.
        on_slow: called with (rows, seconds) if the consumer has waited for these rows for :data:`SLOW_SECONDS`, and then
            again after increasing intervals.
        resident: a cache on the device. If it can make a batch, the batch is made there at the moment it is yielded.
        stop: called several times per second while the consumer waits for a batch. If it returns True,
            :class:`~stagewright.errors.Interrupted` is raised.

    The threads end if the generator is closed, exhausted or garbage collected. Closing waits until each thread has finished
    its current task (8 files), but does not wait for threads that hang in a read. An error in a thread that is not in
    ``crop.UNREADABLE`` is raised when its batch is requested. Raises ValueError for workers < 0 or prefetch < 1.
    """
    if workers < 0 or prefetch < 1:
        raise ValueError(
            f"workers is {workers}, prefetch is {prefetch}; workers must be at least 0 and prefetch at least 1"
        )
    times = times or LoadTimes()
    times.workers = workers
    batches = (
        _DeviceBatch(resident, spec, times)
        if not spec.unread and resident is not None and resident.serves(spec.geometry, spec.image_size)
        else _HostBatch(images, spec, pin_memory, times)
        for spec in specs
    )
    ahead = prefetch if workers else 0
    loaded = _load_in_threads(batches, max(workers, 1), ahead, times, on_slow or _ignore_slow, stop)
    _open.add(loaded)
    return loaded


_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
"""The loaders that are neither closed nor exhausted nor collected, and some that are."""


@atexit.register
def _close_open() -> None:
    """Ends loaders that a program leaves open. Later, Python has forgotten the modules that this needs."""
    for loader in list(_open):
        with contextlib.suppress(Exception):  # another thread may be in it
            loader.close()


def _load_in_threads(
    batches: Iterator[_PendingBatch],
    workers: int,
    prefetch: int,
    times: LoadTimes,
    on_slow: Callable[[NDArray[np.int64], float], None],
    stop: Callable[[], bool],
) -> Generator[Batch, None, None]:
    closed = threading.Event()
    queue: deque[tuple[_PendingBatch, list[Task[list[BadRow]]]]] = deque()
    pool = Pool(workers, _THREAD_NAME, _use_one_thread)

    def top_up(most: int) -> None:
        while len(queue) < most and (pending := next(batches, None)) is not None:
            queue.append((pending, [pool.submit(part) for part in pending.parts(closed)]))

    def take() -> Batch:
        pending, tasks = queue.popleft()
        began = time.perf_counter()
        for rows, task in zip(pending.rows_of_parts(), tasks, strict=True):
            if not task.done():
                _await(task, began, lambda seconds, late=rows: on_slow(late, seconds), stop)
        batch = pending.finished(task.result() for task in tasks)
        times.waited(time.perf_counter() - began)
        top_up(prefetch)
        return batch

    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
    try:
        while top_up(max(prefetch, 1)) or queue:
            yield take()  # not in a variable, which would keep the batch in memory after the consumer has released it
    finally:
        closed.set()
        sys.setswitchinterval(interval)
        pool.close()


def _await(task: Task[list[BadRow]], began: float, on_slow: Callable[[float], None], stop: Callable[[], bool]) -> None:
    """Waits for ``task``, and calls ``on_slow`` with the seconds since ``began`` after increasing intervals.

    Raises Interrupted if ``stop`` returns True.
    """
    patience, since = SLOW_SECONDS, time.perf_counter()
    while not task.wait(min(patience, _STOP_SECONDS)):
        if stop():
            raise Interrupted
        if time.perf_counter() - since > patience:
            on_slow(time.perf_counter() - began)
            patience *= 3


def _use_one_thread() -> None:
    """Limits torch to one OpenMP thread within the calling thread.

    Otherwise each worker would start its own group of OpenMP threads. These use the CPU even while they wait, and slow the
    loader down: 860 instead of 1,150 images/s, for 2 workers on 2 cores without the native decoder.
    """
    torch.get_num_threads()  # torch sets the number of threads at its first call, which would undo the limit later
    threadpool_limits(1, user_api="openmp")


def _ignore_slow(rows: NDArray[np.int64], seconds: float) -> None:
    pass


class _PendingBatch(ABC):
    """A batch that is being loaded: a list of tasks, which may run in any order or in parallel, and their combined result."""

    def __init__(self, images: Images, spec: BatchSpec, times: LoadTimes) -> None:
        self.images, self.spec, self.times = images, spec, times

    def parts(self, closed: threading.Event) -> list[Part]:
        """Returns the tasks. Each returns the rows that it could not read, and does nothing if ``closed`` is set."""
        return [partial(self._do, chunk, closed) for chunk in self._chunks()]

    def rows_of_parts(self) -> list[NDArray[np.int64]]:
        """Returns the manifest rows that each task reads."""
        return [self.spec.rows[chunk] for chunk in self._chunks()]

    @abstractmethod
    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """Returns the batch, after it has waited for ``bad_rows``, the results of all tasks in order."""

    def _chunks(self) -> list[slice]:
        each = _ARRAYS_PER_TASK if isinstance(self.images, IN_MEMORY) else _FILES_PER_TASK
        return [slice(start, start + each) for start in range(0, len(self.spec.rows), each)]

    def _do(self, chunk: slice, closed: threading.Event) -> list[BadRow]:
        if closed.is_set():
            return []
        rows = self.spec.rows[chunk]
        return [(int(rows[at]), reason) for at, reason in self._fill(chunk)]

    @abstractmethod
    def _fill(self, chunk: slice) -> list[BadPlace]:
        """Loads a chunk. Returns (index into the chunk, reason) of each image that could not be read."""


class _HostBatch(_PendingBatch):
    """A batch that is loaded into host memory, chunk by chunk."""

    def __init__(self, images: Images, spec: BatchSpec, pin_memory: bool, times: LoadTimes) -> None:
        super().__init__(images, spec, times)
        size = 0 if spec.unread else spec.image_size
        self.buffer = torch.empty((len(spec.rows), size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)
        self.labels = torch.empty(len(spec.rows), dtype=torch.int64, pin_memory=pin_memory)
        self.valid = torch.ones(len(spec.rows), dtype=torch.bool, pin_memory=pin_memory)
        self.labels.numpy()[:] = spec.labels

    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """Returns the batch in host memory."""
        bad = tuple(row for part in bad_rows for row in part)
        spec, images = self.spec, self.buffer.permute(0, 3, 1, 2)
        return Batch(spec.step, images, self.labels, self.valid, bad, spec.draws, spec.drawn_for, spec.rows, spec.views)

    def _chunks(self) -> list[slice]:
        return [] if self.spec.unread else super()._chunks()

    def _fill(self, chunk: slice) -> list[BadPlace]:
        spec, geometry = self.spec, self.spec.geometry
        part = Geometry(geometry.boxes[chunk], geometry.shifts[chunk], geometry.flips[chunk])
        out = self.buffer.numpy()[chunk]
        bad = crop_into(self.images, spec.rows[chunk], part, spec.interpolation, spec.exact, out, self.times)
        for at, _ in bad:
            self.valid.numpy()[chunk][at] = False
        return bad


class _DeviceBatch(_PendingBatch):
    """A batch that is made on the device. The threads only decode images that are not in host memory yet."""

    def __init__(self, resident: Resident, spec: BatchSpec, times: LoadTimes) -> None:
        super().__init__(resident.images, spec, times)
        self.resident = resident
        self.all_on_device = resident.holds(spec.rows)

    def finished(self, bad_rows: Iterable[list[BadRow]]) -> Batch:
        """Returns the batch on the device."""
        bad = tuple(row for part in bad_rows for row in part)
        spec, resident = self.spec, self.resident
        began = time.perf_counter()
        valid = ~np.isin(spec.rows, [row for row, _ in bad])
        images = resident.views(spec.rows, spec.geometry, valid).permute(0, 3, 1, 2)
        labels, there = resident.copied(spec.labels), resident.copied(valid)
        self.times.loaded(len(spec.rows), 0.0, time.perf_counter() - began)
        return Batch(spec.step, images, labels, there, bad, spec.draws, spec.drawn_for, spec.rows, spec.views)

    def _chunks(self) -> list[slice]:
        return [] if self.all_on_device else super()._chunks()

    def _fill(self, chunk: slice) -> list[BadPlace]:
        began = time.perf_counter()
        failures = self.resident.images.ensure(self.spec.rows[chunk])
        self.times.loaded(0, time.perf_counter() - began, 0.0)
        return [(at, in_words(error)) for at, error in failures.items()]
