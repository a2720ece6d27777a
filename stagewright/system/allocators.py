"""The memory that allocators keep."""

from __future__ import annotations

import contextlib
import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Returns memory that the allocators of C and of Arrow keep for later use to the system, as far as that is possible.

    After a large table was read, it is a third of the process' memory.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
