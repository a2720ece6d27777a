"""Time spent on loading images: seconds by activity, and a verdict on whether loading slows down the training."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from stagewright.text import number_text, percent_text

_FAST_ENOUGH = 0.05
"""Fraction of the training time spent waiting for images, below which loading counts as fast enough."""


@dataclass
class LoadTimes:
    """Seconds that the loader's threads worked, summed over all threads, and that the consumer waited for batches."""

    workers: int = 0
    """Number of loader threads; 0: one thread that loads nothing ahead."""
    images: int = 0
    """Number of images loaded."""
    read_seconds: float = 0.0
    """Threads: reading files, or the first decoding of images that are then cached in memory."""
    decode_seconds: float = 0.0
    """Threads: decoding, cropping and resizing."""
    wait_seconds: float = 0.0
    """Consumer: waiting because the next batch was not ready."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def loaded(self, images: int, read: float, decode: float) -> None:
        """Adds the number of images that a thread has loaded, and the seconds it took. Thread-safe."""
        with self._lock:
            self.images += images
            self.read_seconds += read
            self.decode_seconds += decode

    def waited(self, seconds: float) -> None:
        """Adds the seconds that the consumer waited for a batch."""
        self.wait_seconds += seconds

    @property
    def images_per_second(self) -> float:
        """Throughput of the threads if they were never idle; 0.0 if nothing was loaded."""
        busy = self.read_seconds + self.decode_seconds
        return self.images * max(self.workers, 1) / busy if busy else 0.0

    def to_dict(self, train_seconds: float) -> dict[str, Any]:
        """Returns the numbers and the verdict for ``summary.json``.

        ``train_seconds`` is the duration of the training, including the time that the consumer waited.
        """
        return {
            "workers": self.workers,
            "images": self.images,
            "read_seconds": round(self.read_seconds, 3),
            "decode_seconds": round(self.decode_seconds, 3),
            "wait_seconds": round(self.wait_seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
            "verdict": self.verdict(train_seconds),
        }

    def verdict(self, train_seconds: float) -> str:
        """Returns one sentence: whether loading images slowed the training down, and what would help.

        ``train_seconds`` is the duration of the training, including the time that the consumer waited.
        """
        if not self.images or train_seconds <= 0:
            return "no pictures were loaded"
        share = min(self.wait_seconds / train_seconds, 1.0)
        threads = f"{self.workers} thread{'' if self.workers == 1 else 's'}" if self.workers else "no threads"
        capacity = f"{threads} can deliver {number_text(self.images_per_second)} images/s"
        if share < _FAST_ENOUGH:
            return f"reading pictures kept up ({capacity}; training waited {percent_text(100 * share)} of its time)"
        reading = self.read_seconds > self.decode_seconds
        remedy = (
            "most of this is reading files: a faster disk, or a packed copy (stagewright data pack), would help"
            if reading
            else "most of this is decoding: more threads (-j), or a packed copy (stagewright data pack), would help"
        )
        return f"training waited for pictures {percent_text(100 * share)} of its time ({capacity}); {remedy}"
