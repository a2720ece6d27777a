"""Measures wall-clock seconds by phase (set-up, training, evaluation, checkpointing), accumulated over restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager


class Clock:
    """Adds the running time of the current phase to ``seconds[phase]``.

    ``synchronize`` is called before each change of phase: on a GPU it waits for the device, so that the time of asynchronous
    work is added to the phase that started it. ``since`` is the ``time.perf_counter`` at which counting begins; None: now.
    """

    def __init__(
        self,
        seconds: MutableMapping[str, float],
        phase: str,
        synchronize: Callable[[], None] = lambda: None,
        *,
        since: float | None = None,
    ) -> None:
        self.seconds = seconds
        self._phase = phase
        self._synchronize = synchronize
        self._mark = time.perf_counter() if since is None else since

    def read(self, phase: str) -> float:
        """Returns the seconds of ``phase`` up to now."""
        self._charge()
        return self.seconds[phase]

    def switch(self, phase: str) -> None:
        """Adds time to ``phase`` from now on."""
        self._synchronize()
        self._charge()
        self._phase = phase

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Context whose time is added to ``phase``; afterwards the previous phase continues."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._mark
        self._mark = now
