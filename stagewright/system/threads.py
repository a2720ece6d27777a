"""A pool of daemon threads, for which Python does not wait when the process ends.

concurrent.futures does not serve here, for two reasons. Python waits at its end for its threads, and a thread that hangs while
reading from a dead mount never returns. And Ctrl-C, which Python raises between any two instructions of the main thread, can
leave a lock of a Future held for ever, so that the thread that would set its result waits for ever (seen once in 500 stops).
Here the two sides share no lock but one that the worker alone opens.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """A call in a pool: ``call(*given)``, whether it has ended, and with which result."""

    def __init__(self, call: Callable[..., T], given: tuple[Any, ...]) -> None:
        self._call: Callable[[], T] | None = partial(call, *given)
        self._value: T
        self._error: BaseException | None = None
        self._ended = False
        self._opened_at_end = threading.Lock()
        self._opened_at_end.acquire()
        self._listener: queue.SimpleQueue[Task[T]] | None = None

    def done(self) -> bool:
        """Whether the call has returned, raised or been cancelled."""
        return self._ended

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the call, at most ``seconds``, and returns :meth:`done`."""
        if not self._ended and self._opened_at_end.acquire(timeout=-1 if seconds is None else seconds):
            self._opened_at_end.release()
        return self._ended

    def result(self, seconds: float | None = None) -> T:
        """Waits, and returns what the call returned or raises what it raised.

        Raises CancelledError if the pool was closed before the call began, and TimeoutError after ``seconds``.
        """
        if not self.wait(seconds):
            raise TimeoutError
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del (
                self
            )  # the traceback holds this frame, which would hold the error: a circle that keeps batches in memory

    def run(self) -> None:
        """Makes the call, in a thread of the pool."""
        assert self._call is not None
        try:
            self._value = self._call()
        except BaseException as error:  # raised again by result, in the thread that waits for it
            self._error = error
        self._end()

    def cancel(self) -> None:
        """Ends the call before it has begun."""
        self._error = CancelledError()
        self._end()

    def notify(self, listener: queue.SimpleQueue[Task[T]]) -> None:
        """Puts this task into ``listener`` when it has ended; twice if it ends at this moment."""
        self._listener = listener
        if self._ended:
            listener.put(self)

    def _end(self) -> None:
        self._call = None
        self._ended = True
        self._opened_at_end.release()
        if self._listener is not None:
            self._listener.put(self)


def as_finished(tasks: Iterable[Task[T]]) -> Iterator[Task[T]]:
    """Yields each of ``tasks`` when it has ended."""
    ended: queue.SimpleQueue[Task[T]] = queue.SimpleQueue()
    pending = set(tasks)
    for task in list(pending):
        task.notify(ended)
    while pending:
        task = ended.get()
        if task in pending:
            pending.remove(task)
            yield task


class Pool:
    """A pool of ``workers`` daemon threads, named ``name-N``; each calls ``initializer`` first. As a context manager it
    closes itself at the end."""

    def __init__(self, workers: int, name: str, initializer: Callable[[], object] | None = None) -> None:
        self._tasks: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._initializer = initializer
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., T], *given: Any) -> Task[T]:
        """Queues ``call(*given)`` for the threads."""
        task = Task(call, given)
        self._tasks.put(task)
        return task

    def close(self, patience: float = 2.0) -> None:
        """Cancels queued calls and waits up to ``patience`` seconds for running ones; threads that still run then are
        abandoned."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                task.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        end = time.monotonic() + patience
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        if self._initializer is not None:
            self._initializer()
        while (task := self._tasks.get()) is not None:
            task.run()
            del task  # otherwise a batch would stay in memory until the next call
