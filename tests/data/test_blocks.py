"""Blocks: neighbours of one split in one part, of about the same size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.data.blocks import MOST_BLOCK_BYTES, block_bytes, blocks_of
from stagewright.data.images.places import Places
from stagewright.data.images.row_groups import RowGroups


@pytest.mark.parametrize(
    ("total", "by_class", "mixed"),
    [
        (10**6, 65_536, 65_536),
        (10**8, 390_625, 1_562_500),
        (10**9, 3_906_250, 8 * 10**6),
        (10**11, 8 * 10**6, 8 * 10**6),
    ],
)
def test_a_small_data_set_has_smaller_blocks(total: int, by_class: int, mixed: int) -> None:
    assert block_bytes(total, mixed=False) == by_class and block_bytes(total, mixed=True) == mixed <= MOST_BLOCK_BYTES


@pytest.mark.parametrize("classes", [1, 2, 30])
def test_pictures_by_class_have_smaller_blocks_than_mixed_ones(classes: int) -> None:
    count, each = 1200, 20_000
    by_class = np.repeat(np.arange(classes, dtype=np.int32), count // classes)
    mixed = np.random.default_rng(0).permutation(by_class)
    offsets = np.arange(count, dtype=np.int64) * each
    places = Places(("a",), (count * each,), np.zeros(count, np.int32), offsets, np.full(count, each, np.int64))
    found = [blocks_of(places, np.zeros(count, np.int8), labels).max() + 1 for labels in (by_class, mixed)]
    assert found == [64 if classes == 1 else 256, 64]


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=200), st.integers(1, 4), st.integers(0, 3))
def test_blocks_are_neighbours_in_a_part_and_of_one_split(sizes: list[int], parts: int, seed: int) -> None:
    random, count = np.random.default_rng(seed), len(sizes)
    which = np.sort(random.integers(0, parts, count)).astype(np.int32)
    lengths, splits = np.array(sizes, np.int64), random.integers(0, 3, count).astype(np.int8)
    offsets = np.cumsum(lengths) - lengths
    order = random.permutation(count)  # the manifest's
    files = tuple(map(str, range(parts)))
    places = Places(files, (int(lengths.sum()),) * parts, which[order], offsets[order], lengths[order])
    blocks = blocks_of(places, splits[order], np.zeros(count, np.int32))
    assert sorted(set(blocks.tolist())) == list(range(blocks.max() + 1))
    rank = np.empty(count, np.int64)  # of each image among those of its split in its part, by offset
    for split in range(3):
        for part in range(parts):
            own = np.flatnonzero((splits[order] == split) & (which[order] == part))
            rank[own] = np.argsort(np.argsort(offsets[order][own]))
    target = block_bytes(int(lengths.sum()), mixed=True)
    for block in range(blocks.max() + 1):
        own = np.flatnonzero(blocks == block)
        assert len(set(which[order][own].tolist())) == len(set(splits[order][own].tolist())) == 1
        assert sorted(rank[own].tolist()) == list(range(rank[own].min(), rank[own].max() + 1))
        assert lengths[order][own].sum() <= 1.5 * target + lengths.max()


def test_a_row_group_is_a_block_for_each_split() -> None:
    of = np.repeat(np.arange(5, dtype=np.int32), 4)
    splits = np.array([0] * 8 + [0, 0, 1, 2] + [1] * 4 + [2, 0, 0, 0], np.int8)
    order = np.random.default_rng(0).permutation(20)
    empty = np.zeros(5, np.int64)
    small = empty.astype(np.int32)
    groups = RowGroups("image", (b"",), (1,), small, small, empty, empty, of[order], np.zeros(20, np.int64))
    lengths = np.ones(20, np.int64)
    places = Places(("a",), (20,), np.zeros(20, np.int32), np.arange(20, dtype=np.int64), lengths)
    blocks = blocks_of(places, splits[order], np.zeros(20, np.int32), groups)
    pairs = sorted(set(zip(splits.tolist(), of.tolist(), strict=True)))
    assert [pairs[block] for block in blocks.tolist()] == list(
        zip(splits[order].tolist(), of[order].tolist(), strict=True)
    )
    assert len(pairs) == 8


def test_no_images_have_no_blocks() -> None:
    empty = np.empty(0, np.int64)
    assert (
        len(
            blocks_of(
                Places((), (), empty.astype(np.int32), empty, empty), empty.astype(np.int8), empty.astype(np.int32)
            )
        )
        == 0
    )
