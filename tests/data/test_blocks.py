"""Blocks: neighbours of one split in one part, of about the same size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.data.blocks import MOST_BLOCK_BYTES, block_bytes, blocks_of
from stagewright.data.images.places import Places


@pytest.mark.parametrize(
    ("total", "expected"), [(10**6, 65_536), (10**9, 3_906_250), (10**11, MOST_BLOCK_BYTES), (0, 65_536)]
)
def test_a_small_data_set_has_smaller_blocks(total: int, expected: int) -> None:
    assert block_bytes(total) == expected


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=200), st.integers(1, 4), st.integers(0, 3))
def test_blocks_are_neighbours_in_a_part_and_of_one_split(sizes: list[int], parts: int, seed: int) -> None:
    random, count = np.random.default_rng(seed), len(sizes)
    which = np.sort(random.integers(0, parts, count)).astype(np.int32)
    lengths, splits = np.array(sizes, np.int64), random.integers(0, 3, count).astype(np.int8)
    offsets = np.cumsum(lengths) - lengths
    order = random.permutation(count)  # the manifest's
    files = tuple(map(str, range(parts)))
    places = Places(files, (int(lengths.sum()),) * parts, which[order], offsets[order], lengths[order])
    blocks = blocks_of(places, splits[order])
    assert sorted(set(blocks.tolist())) == list(range(blocks.max() + 1))
    rank = np.empty(count, np.int64)  # of each image among those of its split in its part, by offset
    for split in range(3):
        for part in range(parts):
            own = np.flatnonzero((splits[order] == split) & (which[order] == part))
            rank[own] = np.argsort(np.argsort(offsets[order][own]))
    target = block_bytes(int(lengths.sum()))
    for block in range(blocks.max() + 1):
        own = np.flatnonzero(blocks == block)
        assert len(set(which[order][own].tolist())) == len(set(splits[order][own].tolist())) == 1
        assert sorted(rank[own].tolist()) == list(range(rank[own].min(), rank[own].max() + 1))
        assert lengths[order][own].sum() <= 1.5 * target + lengths.max()


def test_no_images_have_no_blocks() -> None:
    empty = np.empty(0, np.int64)
    assert len(blocks_of(Places((), (), empty.astype(np.int32), empty, empty), empty.astype(np.int8))) == 0
