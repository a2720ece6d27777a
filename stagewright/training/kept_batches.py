"""Keeps the batches of a split in memory, for several evaluations of the same images in a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.training.batches import Batches

MOST_BYTES = 2**30
"""Batches of a split that need more than this are read again for each evaluation."""

_Key = tuple[tuple[int, int, int], ...]


@dataclass
class KeptBatches:
    """Loads batches as :class:`Batches` does, and yields those of the last complete reading again if the same are asked for."""

    batches: Batches
    most_bytes: int = MOST_BYTES
    _of: _Key = field(init=False, default=())
    _kept: list[Batch] = field(init=False, default_factory=list[Batch])

    @contextmanager
    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Iterator[Batch]]:
        """Context that yields the batches of ``specs``, which evaluate whole images."""
        specs = list(specs)
        # A batch of an evaluation follows from its images and their size: all else is the plan's.
        asked = tuple((int(one.rows[0]), len(one.rows), one.image_size) for one in specs)
        if asked == self._of and len(self._kept) == len(specs):
            yield iter(self._kept)
            return
        self._of, self._kept = asked, []
        fits = sum(3 * size**2 * count for _, count, size in asked) <= self.most_bytes
        with self.batches.load(specs) as batches:
            yield self._keeping(batches) if fits else batches

    def _keeping(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._kept.append(batch)
            yield batch
