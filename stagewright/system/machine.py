"""The machine that this process runs on: cores and memory."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def process_began() -> float:
    """When this process began, by ``time.monotonic``; now, where the system does not say."""
    now = time.monotonic()
    try:
        # proc(5): the 22nd field, counted from behind the name, which may hold anything; in ticks since the machine started.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        running = float(Path("/proc/uptime").read_text().split()[0])
        return now - max(0.0, running - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return now


def disable_malloc_trim() -> bool:
    """Makes the process keep memory that it frees, to use it again; False where the C library is not glibc.

    glibc asks the system anew for every block above 32 MB, and the system zeroes it page by page: training MobileNetV2 with
    64 pictures of 160 px on a CPU spent half of its time on that (43 images/s, 83 with this).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # malloc.h: M_MMAP_MAX, the number of blocks that are asked for one by one; M_TRIM_THRESHOLD, the bytes that are free at
    # the end before some are given back.
    return bool(mallopt(-4, 0)) and bool(mallopt(-1, 2**31 - 1))


class OtherProcessLoad:
    """What other processes use of this machine's processors from now on: a measurement beside them is worth less."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    @property
    def cores(self) -> float | None:
        """Processor cores, on average; None where the system does not say, or counts cores that are not ours."""
        busy, spent = _busy_seconds(), time.monotonic() - self._began
        if busy is None or self._busy is None or cores() != os.cpu_count() or spent <= 0:
            return None
        return max(0.0, busy - self._busy - (_own_seconds() - self._own)) / spent


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started (proc(5): user to system, and interrupts)."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
