"""The blocked order: each image once a pass, a lane reads its own blocks, and nothing depends on where a stream is begun."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stagewright.data.batches.blocked_order import (
    WINDOW_BLOCKS,
    Updates,
    blocked_places,
    pass_order,
    places_by_block,
    window_blocks,
)
from stagewright.distributed.tree import share
from stagewright.plan.lanes import lane_starts

BLOCK_SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def shuffled_blocks(sizes: list[int]) -> NDArray[np.int64]:
    """The block of each place; places of a block do not lie together, as those of a mixed pack in the manifest's order."""
    return np.random.default_rng(len(sizes)).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))


def stream(blocks: NDArray[np.int64], updates: Updates, steps: int, first_pass: int = 0) -> NDArray[np.int64]:
    """The places of the first steps, (steps, B)."""
    made = places_by_block(blocks)
    return np.stack([blocked_places(7, made, updates, first_pass, step)[0] for step in range(steps)])


@given(BLOCK_SIZES, st.integers(1, 40), st.integers(1, 8), st.integers(0, 5))
def test_every_pass_has_each_place_once(sizes: list[int], batch_size: int, lanes: int, first_pass: int) -> None:
    assume(lanes <= batch_size)
    blocks = shuffled_blocks(sizes)
    n, updates, made = len(blocks), Updates(batch_size, lanes), places_by_block(blocks)
    steps = -(-3 * n // batch_size)
    found = [blocked_places(7, made, updates, first_pass, step) for step in range(steps)]
    places, passes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert passes.tolist() == [first_pass + position // n for position in range(len(places))]
    for begin in (0, n, 2 * n):
        assert sorted(places[begin : begin + n].tolist()) == list(range(n))


@given(BLOCK_SIZES, st.integers(1, 40), st.integers(1, 8))
def test_a_block_belongs_to_one_lane_but_for_those_at_the_borders(
    sizes: list[int], batch_size: int, lanes: int
) -> None:
    assume(lanes <= batch_size)
    blocks = shuffled_blocks(sizes)
    updates, made = Updates(batch_size, lanes), places_by_block(blocks)
    for index in range(3):
        order = pass_order(7, made, updates, 0, index)
        owners = [set(order.lanes[blocks[order.places] == block].tolist()) for block in np.unique(blocks)]
        assert sum(len(own) - 1 for own in owners) <= lanes - 1
        starts, n = lane_starts(batch_size, lanes), len(blocks)
        positions = (np.arange(index * n, (index + 1) * n)) % batch_size
        assert order.lanes.tolist() == (np.searchsorted(starts, positions, "right") - 1).tolist()


def test_a_lane_reads_one_window_after_the_other() -> None:
    blocks = np.repeat(np.arange(3000), 5)
    order = pass_order(1, places_by_block(blocks), Updates(64, 2), 0, 0)
    for lane in range(2):
        seen = blocks[order.places[order.lanes == lane]]
        first = {block: int(np.flatnonzero(seen == block)[0]) for block in np.unique(seen)}
        last = {block: int(np.flatnonzero(seen == block)[-1]) for block in np.unique(seen)}
        in_use = [sum(first[b] <= at <= last[b] for b in first) for at in range(0, len(seen), 97)]
        assert max(in_use) <= WINDOW_BLOCKS
        assert max(in_use) > WINDOW_BLOCKS // 2


@pytest.mark.parametrize(("blocks", "lanes", "expected"), [(35_000, 8, 64), (1024, 1, 64), (320, 2, 10), (3, 4, 1)])
def test_a_window_is_small_if_there_are_few_blocks(blocks: int, lanes: int, expected: int) -> None:
    assert window_blocks(blocks, lanes) == expected


@settings(max_examples=40)
@given(BLOCK_SIZES, st.integers(4, 24), st.integers(1, 4), st.integers(1, 4))
def test_the_parts_of_ranks_are_those_of_the_whole_batch(
    sizes: list[int], batch_size: int, lanes: int, ranks: int
) -> None:
    assume(ranks <= lanes)
    whole, starts = stream(shuffled_blocks(sizes), Updates(batch_size, lanes), 4), lane_starts(batch_size, lanes)
    own = [share(lanes, rank, ranks) for rank in range(ranks)]
    parts = [whole[:, starts[lane.start] : starts[lane.stop]] for lane in own]
    assert np.concatenate(parts, axis=1).tolist() == whole.tolist()


@settings(max_examples=30)
@given(BLOCK_SIZES, st.integers(1, 24), st.integers(1, 4))
def test_the_stream_is_the_same_from_every_step(sizes: list[int], batch_size: int, lanes: int) -> None:
    assume(lanes <= batch_size)
    blocks, updates = shuffled_blocks(sizes), Updates(batch_size, lanes)
    whole = stream(blocks, updates, 12)
    for step in reversed(range(12)):
        pass_order.cache_clear()  # as in a new process
        assert blocked_places(7, places_by_block(blocks), updates, 0, step)[0].tolist() == whole[step].tolist()


def test_seeds_and_passes_differ() -> None:
    made = places_by_block(np.repeat(np.arange(40), 3))
    orders = {
        tuple(pass_order(seed, made, Updates(8, 2), 0, index).places.tolist())
        for seed in range(12)
        for index in range(12)
    }
    assert len(orders) == 144


def test_first_places_stay_what_they_were() -> None:
    places = stream(np.repeat(np.arange(50), 4), Updates(8, 2), 2)
    assert places.tolist() == GOLDEN


GOLDEN = [[145, 144, 147, 146, 117, 118, 119, 116], [41, 43, 42, 40, 35, 33, 32, 34]]
