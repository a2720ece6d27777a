"""What the processes of a run agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ranks import run_sizes, start_worlds


def test_an_image_that_one_rank_cannot_read_is_left_out_by_all(tmp_path: Path) -> None:
    """Of a batch that every rank reads whole; of one that they share, each image is read by one rank."""
    (ranks,) = run_sizes(tmp_path / "ranks", "read_differently", [3]).values()
    bad = [[7, "gone"], [9, "cut"]]
    for rank, (whole, shared, well, _) in enumerate(ranks):
        assert whole == [[True, False, True, False], bad, [1, 0, 1, 0]]
        own = [True, False, True, False] if rank == 1 else [True] * 4
        assert shared[:2] == [own, bad]
        assert well == [[True] * 4, [], [1] * 4]


@pytest.mark.parametrize("batches", [2, 6, 7])
def test_whole_batches_are_worked_on_in_turn(tmp_path: Path, batches: int) -> None:
    """By three ranks: fewer batches than ranks, as many for each, one more for the first. All ranks have all, in order."""
    with start_worlds(tmp_path / "ranks", "worked_in_turn", 3, {"w": {"batches": batches}}) as worlds:
        assert worlds["w"].wait() == [0, 0, 0], worlds["w"]._errors()
        for rank in range(3):
            own, rows, features, bad, tensors = worlds["w"].result(rank)
            assert own == list(range(rank, batches, 3))
            assert rows == list(range(3 * batches))
            assert features == np.repeat(np.arange(3 * batches) / 7, 2).astype(np.float32).tolist()
            assert bad == [[3 * number + 1, "cut"] for number in range(0, batches, 3)]
            assert tensors == (np.arange(batches, dtype=np.float32) / np.float32(3)).tolist()
