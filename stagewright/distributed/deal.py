"""Deals whole batches to the processes in turn, and puts their results into order again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stagewright.distributed.world import World

T = TypeVar("T")


class Deal:
    """Which of some batches each process works on: batch i belongs to rank i modulo the number of ranks."""

    def __init__(self, world: World, counts: Sequence[int]) -> None:
        """``counts`` are the numbers of rows of all batches, in order."""
        self._world, self._counts = world, list(counts)

    def own(self, batches: Sequence[T]) -> Sequence[T]:
        """Returns those of ``batches``, which are all of them, that this process works on."""
        return batches[self._world.rank :: self._world.size]

    @property
    def most(self) -> int:
        """The number of rows of the largest batch."""
        return max(self._counts, default=0)

    @property
    def idle(self) -> int:
        """In how many rounds, of which each rank has one batch, this process has none: 0 or 1."""
        rounds = -(-len(self._counts) // self._world.size)
        return rounds - len(self.own(self._counts))

    def together(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Returns the rows of all batches in order, (sum of the counts, ...), on every rank, from those of the own batches."""
        parts = self._world.gather_arrays(rows)
        starts = [0] * len(parts)
        found = []
        for at, count in enumerate(self._counts):
            rank = at % len(parts)
            found.append(parts[rank][starts[rank] : starts[rank] + count])
            starts[rank] += count
        return np.concatenate(found) if found else rows

    def largest(self, number: int) -> int:
        """Returns the largest ``number`` of all ranks."""
        return self._world.largest([number])[0]
