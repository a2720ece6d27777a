"""The machine that this process runs on: cores, memory, start time, load by other processes."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Returns the physical memory in bytes, or None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def process_start_time() -> float:
    """Returns the time at which this process began, on the clock of ``time.monotonic``; the current time if the system does
    not report it."""
    now = time.monotonic()
    try:
        # proc(5): the 22nd field, in clock ticks since the machine started. Split after the last ")", since the process name
        # in parentheses may contain spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        running = float(Path("/proc/uptime").read_text().split()[0])
        return now - max(0.0, running - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return now


def fast_bfloat16(processor: str | None = None) -> bool:
    """Returns whether this machine's processor computes networks faster in bfloat16 than in float32.

    These are processors with AMX, and AMD's with AVX-512 BF16 (measured: 2.9 to 5.3 times). Intel's AVX-512 BF16 alone is not
    faster (0.65 to 1.9 times). ``processor`` is the text of /proc/cpuinfo, by default this machine's; without it: False.
    """
    if processor is None:
        try:
            processor = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
    words = processor.split()
    return "amx_bf16" in words or ("AuthenticAMD" in words and "avx512_bf16" in words)


def disable_malloc_trim() -> bool:
    """Makes the process keep freed memory and reuse it. Returns False if the C library is not glibc.

    By default glibc requests every block above 32 MB from the system, which zeroes it page by page. Training MobileNetV2 with
    64 images of 160 px on a CPU spent half of its time on that (43 images/s without this function, 83 with it).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # malloc.h: -4 is M_MMAP_MAX, the number of blocks that are requested from the system one by one; -1 is M_TRIM_THRESHOLD,
    # the number of free bytes at the end of the heap above which memory is returned to the system.
    return bool(mallopt(-4, 0)) and bool(mallopt(-1, 2**31 - 1))


class OtherProcessLoad:
    """Measures how much of this machine's processors other processes use from now on. Times that were measured during such
    load are less reliable."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    @property
    def cores(self) -> float | None:
        """The average number of cores that other processes have used since this object was created, or None if the system
        does not report it or counts cores that this process may not use."""
        busy, spent = _busy_seconds(), time.monotonic() - self._began
        if busy is None or self._busy is None or cores() != os.cpu_count() or spent <= 0:
            return None
        return max(0.0, busy - self._busy - (_own_seconds() - self._own)) / spent


def _busy_seconds() -> float | None:
    """Returns the seconds that all cores together have been busy since the machine started, or None if unknown (proc(5):
    the fields user to system, and those of interrupts)."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    """Returns the processor seconds of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
