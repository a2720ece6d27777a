"""``Places``: where the bytes of many images lie in a few large files, on a disk or in an object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.storage.files import retry_io

_CHECKED = 1 << 16


class Span(NamedTuple):
    """A range of bytes of a file, which one request reads."""

    file: int
    """Index of the file."""
    offset: int
    length: int


@dataclass(frozen=True, eq=False)
class Places:
    """N images in P files. Image i has the bytes ``offsets[i]`` to ``offsets[i] + lengths[i]`` of ``files[which[i]]``."""

    files: tuple[str, ...]
    """Names of the files, relative to the folder or prefix that holds them."""
    sizes: tuple[int, ...]
    """Size of each file in bytes."""
    which: NDArray[np.int32]
    """int32 (N,): index of each image's file in ``files``."""
    offsets: NDArray[np.int64]
    """int64 (N,): position of the first byte in the file."""
    lengths: NDArray[np.int64]
    """int64 (N,): number of bytes."""
    crcs: NDArray[np.uint32] | None = None
    """uint32 (N,): crc32 of the bytes; None if it is not known."""

    def __post_init__(self) -> None:
        if len(self.files) != len(self.sizes) or len({len(self.which), len(self.offsets), len(self.lengths)}) != 1:
            raise ValueError("the columns of places differ in length")
        sizes = np.array([*self.sizes, 0], np.int64)
        for at in range(0, len(self), _CHECKED):  # in pieces, since there may be many millions
            part = slice(at, at + _CHECKED)
            which, offsets, lengths = self.which[part], self.offsets[part], self.lengths[part]
            if (
                not 0 <= which.min() <= which.max() < len(self.files)
                or min(offsets.min(), lengths.min()) < 0
                or (offsets > sizes[which] - lengths).any()
            ):
                raise ValueError("an image lies outside of its file")

    def __len__(self) -> int:
        return len(self.which)

    def taken(self, rows: NDArray[np.int64]) -> Places:
        """Returns the places of ``rows`` (n,) alone, in their order, in the same files."""
        crcs = None if self.crcs is None else self.crcs[rows]
        return Places(self.files, self.sizes, self.which[rows], self.offsets[rows], self.lengths[rows], crcs)


def map_file(path: str | Path) -> pa.Buffer:
    """Maps a file into memory, read-only; no file stays open. OSError if it cannot be opened, after several attempts."""
    return retry_io(path, _mapped)


def _mapped(path: str) -> pa.Buffer:
    with pa.memory_map(path) as file:
        return file.read_buffer()
