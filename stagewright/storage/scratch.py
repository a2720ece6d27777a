"""Arrays in files without a name, for what does not fit into memory and is not kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


def scratch_array(folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """Returns an array of ``shape`` that is mapped to a file in ``folder``; its content is zeros.

    The file has no name, so that the system removes it with the process, however that ends. OSError if the disk has no room for
    it: all of it is reserved at once, because writing to a mapped file on a full disk would kill the process.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", shape=shape)
