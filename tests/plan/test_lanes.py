"""How images are divided into lanes."""

from __future__ import annotations

import pytest

from stagewright.plan.lanes import lane_sizes, num_lanes


@pytest.mark.parametrize(
    ("batch_size", "lanes", "sizes"),
    [(8, 1, [8]), (8, 3, [3, 3, 2]), (50, 8, [7, 7, 6, 6, 6, 6, 6, 6]), (9, 8, [2, 1, 1, 1, 1, 1, 1, 1])],
)
def test_sizes(batch_size: int, lanes: int, sizes: list[int]) -> None:
    assert lane_sizes(batch_size, lanes) == sizes


def test_lanes_are_complete_even_and_within_the_limit() -> None:
    for batch_size in range(1, 60):
        for most in range(1, 60):
            for spread in {1, 2, 7, batch_size}:
                if spread > batch_size:
                    continue
                lanes = num_lanes(batch_size, spread, most)
                sizes = lane_sizes(batch_size, lanes)
                assert sum(sizes) == batch_size and len(sizes) == lanes >= spread
                assert max(sizes) <= most and 1 <= min(sizes) >= max(sizes) - 1 and sizes == sorted(sizes, reverse=True)
