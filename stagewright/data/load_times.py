"""Times: where the loader's seconds go, and what that means for the training, in words."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from stagewright.text import number_text, percent_text

_KEEPS_UP = 0.05
"""Share of its time that a training may wait for pictures before that is worth a word."""


@dataclass
class LoadTimes:
    """Seconds of the loader's threads, added up, and of whoever waited for them."""

    workers: int = 0
    images: int = 0
    read_seconds: float = 0.0
    """Threads: getting at the bytes of files, or decoding sets that are kept in memory for the first time."""
    decode_seconds: float = 0.0
    """Threads: decoding, cutting out, resizing."""
    wait_seconds: float = 0.0
    """The consumer: blocked because the next batch was not there."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def loaded(self, images: int, read: float, decode: float) -> None:
        """A thread is done with some pictures."""
        with self._lock:
            self.images += images
            self.read_seconds += read
            self.decode_seconds += decode

    def waited(self, seconds: float) -> None:
        """The consumer has waited for a batch."""
        self.wait_seconds += seconds

    @property
    def images_per_second(self) -> float:
        """What the threads would deliver if nobody kept them waiting; 0.0 where nothing was loaded."""
        busy = self.read_seconds + self.decode_seconds
        return self.images * max(self.workers, 1) / busy if busy else 0.0

    def to_dict(self, train_seconds: float) -> dict[str, Any]:
        """Numbers and verdict for ``summary.json``, given the seconds of training that the consumer's wait is part of."""
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
        """Whether reading pictures held the training up, and what would help."""
        if not self.images or train_seconds <= 0:
            return "no pictures were loaded"
        share = min(self.wait_seconds / train_seconds, 1.0)
        threads = f"{self.workers} thread{'' if self.workers == 1 else 's'}" if self.workers else "no threads"
        able = f"{threads} can deliver {number_text(self.images_per_second)} images/s"
        if share < _KEEPS_UP:
            return f"reading pictures kept up ({able}; training waited {percent_text(100 * share)} of its time)"
        reading = self.read_seconds > self.decode_seconds
        remedy = (
            "most of it is reading files: a faster disk, or a packed copy (stagewright data pack), would help"
            if reading
            else "most of it is decoding: more threads (-j), or a packed copy (stagewright data pack), would help"
        )
        return f"training waited for pictures {percent_text(100 * share)} of its time ({able}); {remedy}"
