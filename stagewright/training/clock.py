"""Wall-clock seconds by phase (set-up, training, evaluation, checkpointing), kept apart and added up over restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager


class Clock:
    """Adds the running time of the current phase to ``seconds[phase]``.

    ``settle`` is called before each change of phase: on a GPU it waits for the device, so that work is charged to the
    phase that asked for it.
    """

    def __init__(
        self,
        seconds: MutableMapping[str, float],
        phase: str,
        settle: Callable[[], None] = lambda: None,
        *,
        since: float | None = None,
    ) -> None:
        self.seconds = seconds
        self._phase = phase
        self._settle = settle
        self._mark = time.perf_counter() if since is None else since

    def read(self, phase: str) -> float:
        """Seconds of ``phase`` up to now."""
        self._charge()
        return self.seconds[phase]

    def switch(self, phase: str) -> None:
        """From now on time is charged to ``phase``."""
        self._settle()
        self._charge()
        self._phase = phase

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Charges the time inside to ``phase`` and goes back to the one before."""
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
