"""A pool of daemon threads, for which Python does not wait when the process ends.

Python waits at its end for the threads of concurrent.futures, and a thread that hangs while reading from a dead mount never
returns.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Pool:
    """A pool of ``workers`` daemon threads, named ``name-N``; each calls ``initializer`` first. As a context manager it
    closes itself at the end."""

    def __init__(self, workers: int, name: str, initializer: Callable[[], object] | None = None) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._initializer = initializer
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., T], *given: Any) -> Future[T]:
        """Queues ``call(*given)`` for the threads and returns its Future."""
        future: Future[T] = Future()
        self._jobs.put((future, call, given))
        return future

    def close(self, patience: float = 2.0) -> None:
        """Cancels queued calls and waits up to ``patience`` seconds for running ones; threads that still run then are
        abandoned."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
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
        while (job := self._jobs.get()) is not None:
            future, call, given = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*given))
            except BaseException as error:  # raised again by Future.result in the thread that waits for it
                future.set_exception(error)
            del job, future, call, given  # otherwise a batch would stay in memory until the next call
