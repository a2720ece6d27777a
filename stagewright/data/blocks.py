"""Divides images in a few large files, such as a pack's, into blocks: neighbours in one file, which are read together.

Blocks are of one split each, so that what is held out does not make the reading of what is trained on dearer. They are a pure
function of where the records lie and of the splits, and are written into the run's manifest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places

MOST_BLOCK_BYTES = 8 * 10**6
_LEAST_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS = 256
"""A small data set has smaller blocks: about so many, as otherwise a window of blocks would be all of it."""


def block_bytes(total_bytes: int) -> int:
    """Returns the size in bytes that the blocks of images with ``total_bytes`` have about."""
    return min(MOST_BLOCK_BYTES, max(_LEAST_BLOCK_BYTES, total_bytes // _NUM_BLOCKS))


def blocks_of(places: Places, splits: NDArray[np.int8]) -> NDArray[np.int32]:
    """Returns the block of each of N images, int32 (N,), counted from 0.

    ``places`` says where they lie; ``splits``, int8 (N,), is the split of each. Blocks of a smaller split have smaller numbers.
    """
    which, offsets, lengths = places.which, places.offsets, places.lengths
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
