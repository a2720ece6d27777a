"""``Stored``: the positions of many images in memory buffers, as input of a decoder that crops all of them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.limits import MOST_PIXELS
from stagewright.storage import files

MOST_BYTES = 1 << 30
"""Bytes. Larger files are refused, because an image file of this size is a mistake or an attack."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """N images in memory. Image i has the bytes ``buffers[which[i]][offsets[i] : offsets[i] + lengths[i]]``."""

    kind: Literal["encoded", "raw"]
    """``encoded``: the bytes of a file in any image format. ``raw``: upright pixels, uint8 (height, width, 3)."""
    buffers: Sequence[Any]
    """Objects that support the buffer protocol: contiguous, with items of one byte."""
    which: NDArray[np.int32]
    """int32 (N,): index of each image's buffer in ``buffers``."""
    offsets: NDArray[np.int64]
    """int64 (N,): position of the first byte in the buffer."""
    lengths: NDArray[np.int64]
    """int64 (N,): number of bytes; 0 if the image could not be read."""
    sizes: NDArray[np.int32] | None = None
    """For raw images: int32 (N, 2), width and height; 0 if the image could not be read. None for encoded images."""
    failures: dict[int, Exception] = field(default_factory=dict)
    """The error of each image that could not be read, by its index i."""
    max_pixels: int = MOST_PIXELS
    """Encoded images with more pixels cannot be read."""

    def __len__(self) -> int:
        return len(self.which)

    @classmethod
    def of_array(cls, picture: NDArray[np.uint8]) -> Stored:
        """Returns a ``Stored`` with one raw image, uint8 (height, width, 3)."""
        flat = np.ascontiguousarray(picture).reshape(-1)
        height, width = picture.shape[:2]
        sizes, lengths = np.array([[width, height]], np.int32), np.array([flat.size], np.int64)
        return cls("raw", [flat], np.zeros(1, np.int32), np.zeros(1, np.int64), lengths, sizes)

    def data(self, at: int) -> bytes | memoryview:
        """Returns the bytes of image ``at`` without a copy."""
        buffer, start = self.buffers[self.which[at]], int(self.offsets[at])
        if isinstance(buffer, bytes) and len(buffer) == self.lengths[at]:
            return buffer  # io.BytesIO uses bytes without a copy, but would copy a memoryview
        return memoryview(buffer).cast("B")[start : start + int(self.lengths[at])]


def read_stored(paths: Sequence[str], max_pixels: int = MOST_PIXELS) -> Stored:
    """Reads the files ``paths``. A file that cannot be read gets no bytes, and its error is in ``failures``."""
    failures: dict[int, Exception] = {}
    buffers: list[bytes] = []
    for at, path in enumerate(paths):
        try:
            buffers.append(read_file(path))
        except OSError as error:
            failures[at] = error
            buffers.append(b"")
    count = len(paths)
    lengths = np.fromiter(map(len, buffers), np.int64, count)
    return Stored(
        *("encoded", buffers, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), lengths),
        failures=failures,
        max_pixels=max_pixels,
    )


def read_file(path: str) -> bytes:
    """Returns the bytes of an image file; a failed read is repeated (:func:`stagewright.storage.files.retry_io`).

    Raises OSError with the name of the file. After :data:`_MOST_FAILED` failed files in a row, each further file is tried
    only once: with repeated attempts, the remaining files of a lost disk would take days.
    """
    only_once = _failed[0] >= _MOST_FAILED
    try:
        data = files.read_file(path, final=files.ALL_ERRNOS if only_once else frozenset(), most=MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError:
        _failed[0] += 1
        raise
    _failed[0] = 0
    return data


_MOST_FAILED = 8
_failed = [0]
"""Number of files in a row that could not be read. Approximate, since several threads count without a lock."""
