"""Batches that are kept in memory: the same ones again, read once, and only where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import pytest
import torch

from stagewright.augment.geometry import Geometry
from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.training.batches import Batches
from stagewright.training.kept_batches import KeptBatches


class _Counting:
    """Makes a batch of each specification, and counts them."""

    made = 0

    @contextmanager
    def load(self, specs: Iterable[BatchSpec]) -> Iterator[Iterator[Batch]]:
        yield map(self._make, specs)

    def _make(self, spec: BatchSpec) -> Batch:
        self.made += 1
        count = len(spec.rows)
        images = torch.from_numpy(spec.rows.astype(np.uint8))[:, None, None, None].expand(count, 3, 4, 4)
        return Batch(spec.step, images, torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool), ())


def specs(first: int, size: int = 4, count: int = 3) -> list[BatchSpec]:
    nothing = np.zeros((2, 4), np.float32)
    geometry = cast(Geometry, nothing)
    return [
        BatchSpec(at, np.arange(first + 2 * at, first + 2 * at + 2), np.zeros(2, np.int64), geometry, size, "bilinear")
        for at in range(count)
    ]


def read(kept: KeptBatches, asked: list[BatchSpec], most: int | None = None) -> list[int]:
    with kept.load(asked) as batches:
        return [int(batch.images[0, 0, 0, 0]) for _, batch in zip(range(most or len(asked)), batches, strict=False)]


@pytest.fixture
def source() -> _Counting:
    return _Counting()


def test_the_same_batches_are_read_once(source: _Counting) -> None:
    kept = KeptBatches(cast(Batches, source))
    assert read(kept, specs(0)) == read(kept, specs(0)) == [0, 2, 4] and source.made == 3
    assert read(kept, specs(10)) == [10, 12, 14] and source.made == 6  # of another split
    assert read(kept, specs(10, size=8)) == [10, 12, 14] and source.made == 9  # of another size
    assert read(kept, specs(0)) == [0, 2, 4] and source.made == 12


def test_a_reading_that_was_interrupted_is_not_kept(source: _Counting) -> None:
    kept = KeptBatches(cast(Batches, source))
    assert read(kept, specs(0), most=2) == [0, 2]
    assert read(kept, specs(0)) == [0, 2, 4] and source.made == 5
    assert read(kept, specs(0)) == [0, 2, 4] and source.made == 5


def test_what_does_not_fit_is_read_again(source: _Counting) -> None:
    kept = KeptBatches(cast(Batches, source), most_bytes=3 * 16 * 6 - 1)
    assert read(kept, specs(0)) == read(kept, specs(0)) == [0, 2, 4] and source.made == 6
    kept = KeptBatches(cast(Batches, source), most_bytes=3 * 16 * 6)
    assert read(kept, specs(0)) == read(kept, specs(0)) and source.made == 9
