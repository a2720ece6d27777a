"""How fast a store gives blocks and a run takes them, measured as they come."""

from __future__ import annotations

import threading
import time

_WEIGHT = 0.1
"""Share of a new measurement in its running mean."""


class Pace:
    """Running means of the seconds of an update, and of the time of a request. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step, self._at = -1, 0.0
        self.step_seconds = 0.0
        """Of an update."""
        self.latency = 0.0
        """Seconds that a request takes at least: the shortest one, forgotten slowly."""
        self.bytes_per_second = 0.0
        """Of all requests together."""

    @property
    def is_known(self) -> bool:
        """Whether both have been measured."""
        return self.step_seconds > 0 and self.bytes_per_second > 0

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
            self.bytes_per_second = _mean(self.bytes_per_second, together * num_bytes / max(seconds, 1e-6))
            self.latency = min(seconds, self.latency * (1 + _WEIGHT)) if self.latency else seconds


def _mean(old: float, new: float) -> float:
    return new if not old else (1 - _WEIGHT) * old + _WEIGHT * new
