"""How fast a store gives blocks and a run takes them, measured as they come."""

from __future__ import annotations

import threading
import time

_WEIGHT = 0.1
"""Share of a new measurement in its running mean."""
_FORGOTTEN = 0.01
"""By so much the shortest time of a request grows with each other request."""


class Pace:
    """Running means of the seconds of an update, and of the time of a request. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step, self._at = -1, 0.0
        self.step_seconds = 0.0
        """Of an update."""
        self.latency = 0.0
        """Seconds that a request takes at least: the shortest one, forgotten slowly."""
        self._block_bytes, self._more_seconds, self._bytes_together = 0.0, 0.0, 0.0
        """Of a block: its size, what it took above the latency, and the size of all blocks that came with it."""

    @property
    def is_known(self) -> bool:
        """Whether both have been measured."""
        return self.step_seconds > 0 and self.latency > 0

    def bytes_per_second(self, together: int) -> float:
        """What the store gives to so many requests together: no more than each brings in a latency."""
        rate = self._bytes_together / max(self._more_seconds, 1e-6)
        return min(rate, together * self._block_bytes / self.latency)

    def stepped(self, step: int) -> None:
        """Notes that the batch of ``step`` is read now."""
        now = time.monotonic()
        with self._lock:
            if 0 <= self._step < step:
                self.step_seconds = _mean(self.step_seconds, (now - self._at) / (step - self._step))
            self._step, self._at = step, now

    def fetched(self, num_bytes: int, seconds: float, together: int) -> None:
        """Notes a block that came in ``seconds``, one of so many that came together."""
        with self._lock:
            self.latency = max(1e-6, min(seconds, self.latency * (1 + _FORGOTTEN)) if self.latency else seconds)
            self._block_bytes = _mean(self._block_bytes, num_bytes)
            self._more_seconds = _mean(self._more_seconds, max(0.0, seconds - self.latency))
            self._bytes_together = _mean(self._bytes_together, together * num_bytes)


def _mean(old: float, new: float) -> float:
    return new if not old else (1 - _WEIGHT) * old + _WEIGHT * new
