"""Marks where a process waits for others, so that it is not itself taken for the one that they wait for."""

from __future__ import annotations


class Waits:
    """Context manager around every wait for other processes; may be entered within itself.

    Entered by one thread, the main one; read by another.
    """

    def __init__(self) -> None:
        self._depth = 0
        self.count = 0
        """How many waits have begun or ended: it changes while the process makes progress."""

    @property
    def waiting(self) -> bool:
        """Whether the main thread waits now."""
        return self._depth > 0

    def __enter__(self) -> None:
        self._depth += 1
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self.count += 1
