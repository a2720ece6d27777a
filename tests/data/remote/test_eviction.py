"""What the cache gives up is what Belady's rule gives up; what it fetches ahead is neither too late nor harmful."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.data.batches.blocked_order import Updates, blocked_places, places_by_block
from stagewright.data.remote.eviction import fewest_fetches, num_due, victims

TRACES = st.lists(st.integers(0, 5), min_size=1, max_size=14)


def fewest_by_search(trace: list[int], capacity: int) -> int:
    """The smallest number of fetches of any cache, by trying all."""

    @cache
    def search(at: int, present: frozenset[int]) -> int:
        if at == len(trace):
            return 0
        block = trace[at]
        if block in present:
            return search(at + 1, present)
        if len(present) < capacity:
            return 1 + search(at + 1, present | {block})
        return 1 + min(search(at + 1, present - {out} | {block}) for out in present)

    return search(0, frozenset())


def fetches_on_demand(trace: list[int], num_blocks: int, capacity: int) -> list[int]:
    """The fetches of a cache that fetches what is used and missing, and gives up what :func:`victims` says."""
    sizes, present, fetched = np.ones(num_blocks, np.int64), set[int](), list[int]()
    for at, block in enumerate(trace):
        next_use = np.full(num_blocks, np.inf)
        for later in range(len(trace) - 1, at, -1):
            next_use[trace[later]] = later
        if block not in present:
            fetched.append(block)
            found = victims(np.array(sorted(present), np.int64), next_use, sizes, len(present) + 1 - capacity, at)
            assert found is not None
            present = present - set(found) | {block}
    return fetched


@settings(max_examples=150)
@given(TRACES, st.integers(1, 4))
def test_no_cache_fetches_fewer(trace: list[int], capacity: int) -> None:
    best = fewest_by_search(trace, capacity)
    assert len(fewest_fetches(trace, np.ones(6, np.int64), capacity)) == best
    assert len(fetches_on_demand(trace, 6, capacity)) == best


@pytest.mark.parametrize(("lanes", "share"), [(1, 0.25), (2, 0.3), (3, 0.5)])
def test_the_recorded_uses_of_a_run(lanes: int, share: float) -> None:
    blocks = np.random.default_rng(0).permutation(np.repeat(np.arange(64), 5))
    made, updates = places_by_block(blocks), Updates(12, lanes)
    trace = [
        block
        for step in range(3 * len(blocks) // 12)
        for block in np.unique(blocks[blocked_places(1, made, updates, 0, step)[0]]).tolist()
    ]
    capacity = int(64 * share)
    found = fetches_on_demand(trace, 64, capacity)
    assert found == fewest_fetches(trace, np.ones(64, np.int64), capacity)
    assert 64 < len(found) < 3 * 64


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=12), st.integers(-3, 60))
def test_victims_are_those_needed_last_and_no_more_than_must(blocks: list[tuple[int, int]], needed: int) -> None:
    sizes, uses = np.array([one[0] for one in blocks]), np.array([float(one[1]) for one in blocks])
    after, present = 6.0, np.arange(len(blocks))
    found = victims(present, uses, sizes, needed, after)
    allowed = uses > after
    if needed <= 0:
        assert found == []
    elif found is None:
        assert sizes[allowed].sum() < needed
    else:
        assert sizes[found].sum() >= needed > sizes[found[:-1]].sum()
        kept = np.setdiff1d(np.flatnonzero(allowed), found)
        assert not len(kept) or uses[kept].max() <= uses[found].min()


def test_blocks_are_begun_early_enough_and_in_order() -> None:
    sizes = np.full(4, 100, np.int64)
    seconds = np.array([1.0, 8.0, 8.0, 8.0])
    assert num_due(seconds, sizes, rate=100.0, latency=0.0) == 1
    assert num_due(seconds, sizes, rate=70.0, latency=0.0) == 4  # the last needs 1.5 * 400 / 70 = 8.6 s
    assert num_due(seconds, sizes, rate=1e9, latency=0.1) == 0
    assert num_due(seconds, sizes, rate=1e9, latency=4.0) == 4
    assert num_due(seconds[:0], sizes[:0], 1.0, 1.0) == 0


def test_a_block_larger_than_the_cache() -> None:
    with pytest.raises(ValueError, match="a block of 5 bytes in a cache of 4"):
        fewest_fetches([0], np.array([5]), 4)
