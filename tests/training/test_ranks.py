"""What the processes of a run agree on."""

from __future__ import annotations

from pathlib import Path

from ranks import run_sizes


def test_an_image_that_one_rank_cannot_read_is_left_out_by_all(tmp_path: Path) -> None:
    """Of a batch that every rank reads whole; of one that they share, each image is read by one rank."""
    (ranks,) = run_sizes(tmp_path / "ranks", "read_differently", [3]).values()
    bad = [[7, "gone"], [9, "cut"]]
    for rank, (whole, shared, well, _) in enumerate(ranks):
        assert whole == [[True, False, True, False], bad, [1, 0, 1, 0]]
        own = [True, False, True, False] if rank == 1 else [True] * 4
        assert shared[:2] == [own, bad]
        assert well == [[True] * 4, [], [1] * 4]
