"""Divides images in a few large files, such as a pack's, into blocks: neighbours in one file, which are read together.

Blocks are of one split each, so that what is held out does not make the reading of what is trained on dearer. They are a pure
function of where the records lie, of the splits and of the labels, and are written into the run's manifest. Where images can only
be read together, as a row group of a Parquet file, those of a split in it are a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places
from stagewright.data.images.row_groups import RowGroups

MOST_BLOCK_BYTES = 8 * 10**6
_LEAST_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS, _NUM_MIXED_BLOCKS = 256, 64
"""A small data set has smaller blocks: about so many, as otherwise a window of blocks would be all of it. Where neighbours are of
any class, a window has all classes with a quarter of the blocks, and each request brings four times as much."""
_MIXED = 0.2
"""Share of neighbours of one class, beyond those of a random order, up to which an order is mixed; 1 is an order by class."""


def block_bytes(total_bytes: int, *, mixed: bool) -> int:
    """Returns the size in bytes that the blocks of images with ``total_bytes`` have about. ``mixed``: neighbours are of any
    class."""
    number = _NUM_MIXED_BLOCKS if mixed else _NUM_BLOCKS
    return min(MOST_BLOCK_BYTES, max(_LEAST_BLOCK_BYTES, total_bytes // number))


def blocks_of(
    places: Places, splits: NDArray[np.int8], labels: NDArray[np.int32], row_groups: RowGroups | None = None
) -> NDArray[np.int32]:
    """Returns the block of each of N images, int32 (N,), counted from 0.

    ``places`` says where they lie, and ``row_groups``, which of them can only be read together; ``splits``, int8 (N,), and
    ``labels``, int32 (N,), are those of each. Blocks of a smaller split have smaller numbers.
    """
    if row_groups is not None:
        keys = splits.astype(np.int64) * len(row_groups) + row_groups.of
        return np.unique(keys, return_inverse=True)[1].astype(np.int32)
    which, offsets, lengths = places.which, places.offsets, places.lengths
    blocks = np.empty(len(which), np.int32)
    if not len(which):
        return blocks
    order = np.lexsort((offsets, which, splits))
    target = block_bytes(int(lengths.sum()), mixed=_are_mixed(labels[order]))
    sizes = lengths[order]
    # The images of a split in a part are cut into as many blocks as fit best, of equal size but for a record.
    begins = (np.diff(which[order], prepend=-1) != 0) | (np.diff(splits[order], prepend=-1) != 0)
    sections = np.cumsum(begins, dtype=np.int32) - 1
    totals = np.bincount(sections, weights=sizes).astype(np.int64)
    counts = np.maximum(1, np.round(totals / target).astype(np.int64))
    within = np.cumsum(sizes)
    within -= sizes
    within -= (np.cumsum(totals) - totals)[sections]
    within *= counts[sections]
    within //= totals[sections]
    changes = (np.diff(sections, prepend=-1) != 0) | (np.diff(within, prepend=-1) != 0)
    blocks[order] = np.cumsum(changes, dtype=np.int32) - 1
    return blocks


def _are_mixed(labels: NDArray[np.int32]) -> bool:
    """Returns whether neighbours are about as often of one class as in a random order of the same labels (N,)."""
    same = float((labels[1:] == labels[:-1]).mean()) if len(labels) > 1 else 0.0
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    by_chance = float((shares**2).sum())
    return same - by_chance <= _MIXED * (1 - by_chance)
