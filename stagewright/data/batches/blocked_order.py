"""Selects the images of each step's batch where the order is ``blocked``, with pure functions of (seed, pass, position).

As in :mod:`stagewright.data.batches.order`, the data of a stage is an endless stream of positions, every pass has each place
once, and step s uses the positions ``[s * B, (s + 1) * B)``. Only the permutation of a pass differs:

- Blocks are permuted by key and dealt to the lanes of an update: a lane gets a run of them, with as many images as it has
  positions in the pass. Where a run ends within a block, the next lane has the rest of it: at most lanes - 1 blocks of a pass
  belong to two lanes.
- A lane's run is divided into windows of at most :data:`WINDOW_BLOCKS` blocks, as equal as possible, and the images of a window
  are permuted by key.

So whoever has the lanes k to m reads only their blocks, a window at a time. As lanes are part of the plan and devices are not,
the order does not depend on the number of devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagewright import rng
from stagewright.data.batches.order import Places, stream_batch
from stagewright.plan.lanes import lane_sizes

WINDOW_BLOCKS = 64
"""Number of blocks of a lane whose images are shuffled together."""
_WINDOWS = 16
"""A window of all lanes together has at most one in so many of the blocks, so that two fit into a cache of an eighth."""


@dataclass(frozen=True, eq=False)
class PlacesByBlock:
    """The places of a stage, sorted by block. Omits blocks without images."""

    by_block: Places
    """int64 (n,): the places of the first block, ascending, then those of the second block, and so on."""
    sizes: NDArray[np.int64]
    """int64 (K,): number of places of each block."""
    numbers: NDArray[np.int64]
    """int64 (K,): number of each block, as the caller counts them."""

    def __len__(self) -> int:
        return len(self.by_block)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 (K,): where the places of each block begin in ``by_block``."""
        return np.cumsum(self.sizes) - self.sizes


@dataclass(frozen=True, slots=True)
class Updates:
    """How a stage divides its stream of positions: the number of images of an update, and of its lanes."""

    batch_size: int
    lanes: int


@dataclass(frozen=True, eq=False)
class _PassOrder:
    """The order of a pass of n places in K blocks."""

    places: Places
    """int64 (n,): a permutation of ``range(n)``."""
    lanes: NDArray[np.uint16]
    """uint16 (n,): the lane of each position."""


def places_by_block(blocks: ArrayLike) -> PlacesByBlock:
    """Sorts places with the integer ``blocks`` (n,) by block."""
    given = np.asarray(blocks)
    numbers, sizes = np.unique(given, return_counts=True)
    order = np.argsort(given, kind="stable").astype(np.int64, copy=False)
    return PlacesByBlock(order, sizes.astype(np.int64), numbers.astype(np.int64))


def window_blocks(num_blocks: int, lanes: int) -> int:
    """Returns the largest number of blocks of a window of one lane, at least 1: fewer than :data:`WINDOW_BLOCKS` if there are few
    blocks."""
    return max(1, min(WINDOW_BLOCKS, num_blocks // (_WINDOWS * lanes)))


def blocked_places(
    seed: int, blocks: PlacesByBlock, updates: Updates, first_pass: int, step_in_stage: int
) -> tuple[Places, NDArray[np.int64]]:
    """Returns ``(places, passes)`` of a step's batch, both int64 (batch_size,), for a stage with the places ``blocks``.

    The images of lane k lie at ``[lane_starts[k], lane_starts[k + 1])`` (:func:`stagewright.plan.lanes.lane_starts`).
    ``first_pass`` is the number of the stage's first pass within the run. Raises ValueError as
    :func:`stagewright.data.batches.order.batch_places`.
    """
    (places,), passes = stream_batch(
        lambda index: (pass_order(seed, blocks, updates, first_pass, index).places,),
        len(blocks),
        first_pass,
        updates.batch_size,
        step_in_stage,
    )
    return places, passes


# A batch at the boundary of two passes needs both, and the training and a second reader may be at different places.
@lru_cache(maxsize=4)
def pass_order(seed: int, blocks: PlacesByBlock, updates: Updates, first_pass: int, pass_index: int) -> _PassOrder:
    """Returns the order of the pass ``pass_index`` of the run, in a stage that begins with the pass ``first_pass``."""
    num_places = len(blocks)
    lanes = lanes_of_pass(num_places, updates, pass_index - first_pass)
    ordered = _shuffled(seed, blocks, np.bincount(lanes, minlength=updates.lanes), pass_index)
    if updates.lanes == 1:
        return _PassOrder(ordered, lanes)
    places = np.empty(num_places, np.int64)
    places[np.argsort(lanes, kind="stable")] = ordered
    return _PassOrder(places, lanes)


def lanes_of_pass(num_places: int, updates: Updates, number: int) -> NDArray[np.uint16]:
    """Returns the lane of each position of a pass, uint16 (n,), before which the stage has ``number`` passes. It depends on where
    the pass begins within a batch."""
    own = np.repeat(np.arange(updates.lanes, dtype=np.uint16), lane_sizes(updates.batch_size, updates.lanes))
    return np.resize(np.roll(own, -(number * num_places % updates.batch_size)), num_places)


def _shuffled(seed: int, blocks: PlacesByBlock, counts: NDArray[np.int64], pass_index: int) -> Places:
    """Returns the places of lane 0 in their order, then those of lane 1, and so on; lane k has ``counts[k]``."""
    order_key = rng.key(seed, rng.Stream.BLOCKS, pass_index)
    order = rng.permutation(rng.key(order_key, 0), len(blocks.sizes))
    sizes = blocks.sizes[order]
    ends = np.cumsum(sizes)
    limit = window_blocks(len(sizes), len(counts))
    window_ends = [np.empty(0, np.int64)]
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        # The blocks of the lane: from the one with its first place to the one with its last.
        first = int(np.searchsorted(ends, end - count, "right"))
        last = int(np.searchsorted(ends, end - 1, "right")) if count else first - 1
        num_windows = -(-(last + 1 - first) // limit)
        cuts = first + (last + 1 - first) * np.arange(1, num_windows) // max(num_windows, 1)
        window_ends += [ends[cuts - 1], np.array([end] if count else [], np.int64)]
    listed = np.repeat(blocks.starts[order] - (ends - sizes), sizes) + np.arange(ends[-1], dtype=np.int64)
    hashes = rng.keys(rng.key(order_key, 1), np.arange(ends[-1], dtype=np.int64))
    begin = 0
    for end in np.concatenate(window_ends).tolist():
        listed[begin:end] = listed[begin:end][_sorted_places(hashes[begin:end])]
        begin = end
    return blocks.by_block[listed]


def _sorted_places(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the positions (m,) of the ``hashes`` (m,) in ascending order of these; changes ``hashes``.

    The lowest bits of each hash are replaced by its position, so no two are equal and the order does not depend on the algorithm
    of the sort.
    """
    places = np.uint64((1 << len(hashes).bit_length()) - 1)
    hashes &= ~places
    hashes |= np.arange(len(hashes), dtype=np.uint64)
    hashes.sort()
    hashes &= places
    return hashes.astype(np.int64)
