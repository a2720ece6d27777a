"""Divides the images of a pack into blocks: neighbours in one part file, which are read together.

Blocks are of one split each, so that what is held out does not make the reading of what is trained on dearer. They are a pure
function of where the records lie and of the splits, and are written into the run's manifest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_BLOCK_BYTES = 8 * 10**6
_LEAST_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS = 256
"""A small data set has smaller blocks: about so many, as otherwise a window of blocks would be all of it."""


def block_bytes(total_bytes: int) -> int:
    """Returns the size in bytes that the blocks of images with ``total_bytes`` have about."""
    return min(MOST_BLOCK_BYTES, max(_LEAST_BLOCK_BYTES, total_bytes // _NUM_BLOCKS))


def blocks_of(
    which: NDArray[np.int32], offsets: NDArray[np.int64], lengths: NDArray[np.int64], splits: NDArray[np.int8]
) -> NDArray[np.int32]:
    """Returns the block of each of N images, int32 (N,), counted from 0.

    Args:
        which: int32 (N,), the part file of each image.
        offsets: int64 (N,), where its record begins in the part.
        lengths: int64 (N,), the size of the record in bytes.
        splits: int8 (N,), the split of each image. Blocks of a smaller split have smaller numbers.
    """
    blocks = np.empty(len(which), np.int32)
    if not len(which):
        return blocks
    target = block_bytes(int(lengths.sum()))
    order = np.lexsort((offsets, which, splits))
    sizes = lengths[order]
    # The images of a split in a part are cut into as many blocks as fit best, of equal size but for a record.
    sections = np.cumsum((np.diff(which[order], prepend=-1) != 0) | (np.diff(splits[order], prepend=-1) != 0)) - 1
    totals = np.bincount(sections, weights=sizes).astype(np.int64)
    counts = np.maximum(1, np.round(totals / target).astype(np.int64))
    before = np.cumsum(sizes) - sizes
    before -= (np.cumsum(totals) - totals)[sections]
    within = before * counts[sections] // totals[sections]
    keys = np.stack([sections, within])
    changes = np.r_[True, (np.diff(keys, axis=1) != 0).any(axis=0)]
    blocks[order] = (np.cumsum(changes) - 1).astype(np.int32)
    return blocks
