"""Stored: where the bytes of pictures lie, in a form that many of them can be cropped from in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stagewright.storage import files

MOST_BYTES = 1 << 30
"""Larger files are refused: what claims to be such a picture is a mistake or an attack."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """N pictures as they lie in memory: ``buffers[which[i]][offsets[i] : offsets[i] + lengths[i]]``."""

    kind: Literal["encoded", "raw"]
    """The bytes of a file of any format; or uint8 (height, width, 3), upright."""
    buffers: Sequence[Any]
    """Objects with the buffer protocol, contiguous and of single bytes."""
    which: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Bytes; 0 where a picture could not be read."""
    sizes: NDArray[np.int32] | None = None
    """Raw: (N, 2), width and height; 0 where a picture could not be read."""
    failures: dict[int, Exception] = field(default_factory=dict)
    """Why a picture could not be read, by its place here."""

    def __len__(self) -> int:
        return len(self.which)

    @classmethod
    def of_array(cls, picture: NDArray[np.uint8]) -> Stored:
        """One raw picture, uint8 (height, width, 3)."""
        flat = np.ascontiguousarray(picture).reshape(-1)
        height, width = picture.shape[:2]
        sizes, lengths = np.array([[width, height]], np.int32), np.array([flat.size], np.int64)
        return cls("raw", [flat], np.zeros(1, np.int32), np.zeros(1, np.int64), lengths, sizes)

    def data(self, at: int) -> bytes | memoryview:
        """The bytes of the picture at place ``at``; not copied."""
        buffer, start = self.buffers[self.which[at]], int(self.offsets[at])
        if isinstance(buffer, bytes) and len(buffer) == self.lengths[at]:
            return buffer  # which io.BytesIO shares, and copies of a memoryview
        return memoryview(buffer).cast("B")[start : start + int(self.lengths[at])]


def read_stored(paths: Sequence[str]) -> Stored:
    """The bytes of the files ``paths``; what fails is in ``failures``."""
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
        "encoded", buffers, np.arange(count, dtype=np.int32), np.zeros(count, np.int64), lengths, failures=failures
    )


def read_file(path: str) -> bytes:
    """The bytes of a picture's file, read with patience (:func:`stagewright.storage.files.retry_io`); OSError with the name of
    the file. Where some files in a row failed in the end, the next are tried once: with patience, what is left of a disk that
    is gone would take days."""
    impatient = _failed[0] >= _MOST_FAILED
    try:
        data = files.read_file(path, final=files.ALL_ERRNOS if impatient else frozenset(), most=MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError:
        _failed[0] += 1
        raise
    _failed[0] = 0
    return data


_MOST_FAILED = 8
_failed = [0]
"""Files in a row that could not be read; roughly, as threads count at once."""
