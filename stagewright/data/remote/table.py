"""The blocks of images in files of an object store: which images a block has, which bytes of a file, and where each lies in it.

A block is stored without what lies between its images in the file, so its size is the sum of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.places import Places, Span
from stagewright.data.images.row_groups import RowGroups

_GAP_BYTES = 1 << 16
"""Bytes between two images that are read and dropped: another request would take longer."""


@dataclass(frozen=True, eq=False)
class BlockTable:
    """N images in K blocks, each of which lies in one file."""

    places: Places
    block_of: NDArray[np.int32]
    """int32 (N,): the block of each image, from 0 to K - 1."""
    splits: NDArray[np.int8]
    """int8 (N,): the split of each image; all images of a block have the same."""
    row_groups: RowGroups | None = None
    """For images in Parquet files: their row groups, of which a block needs whole ones."""

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64 (K,): the number of bytes of each block."""
        sizes = np.bincount(self.block_of, weights=self.places.lengths)
        return sizes.astype(np.int64)

    @cached_property
    def split_of(self) -> NDArray[np.int8]:
        """int8 (K,): the split of each block."""
        found = np.zeros(len(self), np.int8)
        found[self.block_of] = self.splits
        return found

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The images by block, within it by offset."""
        return np.lexsort((self.places.offsets, self.block_of)).astype(np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        counts = np.bincount(self.block_of, minlength=len(self))
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def inner(self) -> NDArray[np.int64]:
        """int64 (N,): where each image begins within its stored block."""
        lengths = self.places.lengths[self._order]
        ends = np.cumsum(lengths)
        begins = np.concatenate([[0], ends])[self._starts[:-1]]
        found = np.empty(len(self.places), np.int64)
        found[self._order] = ends - lengths - np.repeat(begins, np.diff(self._starts))
        return found

    def rows(self, block: int) -> NDArray[np.int64]:
        """Returns the images of a block, in the order of the file."""
        return self._order[self._starts[block] : self._starts[block + 1]]

    def spans(self, block: int) -> list[tuple[Span, list[tuple[int, int]]]]:
        """Returns the ranges of the file that a block is made of, in the order of the file, and of each the ranges of its bytes
        that belong to the block, (begin, end)."""
        rows = self.rows(block)
        begins, lengths = self.places.offsets[rows].tolist(), self.places.lengths[rows].tolist()
        file, found = int(self.places.which[rows[0]]), list[tuple[Span, list[tuple[int, int]]]]()
        first = end = begins[0]
        pieces = list[tuple[int, int]]()
        for begin, length in zip(begins, lengths, strict=True):
            if begin - end > _GAP_BYTES:
                found.append((Span(file, first, end - first), pieces))
                first, pieces = begin, []
            if pieces and begin == end:
                pieces[-1] = pieces[-1][0], begin + length - first
            else:
                pieces.append((begin - first, begin + length - first))
            end = begin + length
        return [*found, (Span(file, first, end - first), pieces)]

    @cached_property
    def num_requests(self) -> NDArray[np.int64]:
        """int64 (K,): the number of requests that read each block."""
        if self.row_groups is not None:
            return self._of_groups(self.row_groups, self.row_groups.num_requests)
        return 1 + self._per_block(self._gaps > _GAP_BYTES)

    @cached_property
    def request_bytes(self) -> NDArray[np.int64]:
        """int64 (K,): the number of bytes that are read for each block, with those that are dropped."""
        if self.row_groups is not None:
            return self._of_groups(self.row_groups, self.row_groups.lengths)
        return self.sizes + self._per_block(np.where(self._gaps > _GAP_BYTES, 0, self._gaps))

    def _of_groups(self, groups: RowGroups, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the sum over the row groups that each block needs of ``values`` (G,)."""
        needed = np.unique(self.block_of.astype(np.int64) * len(groups) + groups.of)
        of_each = values[needed % len(groups)]
        return np.bincount(needed // len(groups), weights=of_each, minlength=len(self)).astype(np.int64)

    @cached_property
    def _gaps(self) -> NDArray[np.int64]:
        """int64 (N,): the bytes between each image of ``_order`` and the one before it in its block; 0 for the first one."""
        order, places = self._order, self.places
        begins = places.offsets[order]
        gaps = begins - np.concatenate([begins[:1], (begins + places.lengths[order])[:-1]])
        gaps[self._starts[:-1]] = 0
        return gaps

    def _per_block(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        return np.bincount(self.block_of[self._order], weights=values, minlength=len(self)).astype(np.int64)
