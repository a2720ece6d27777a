"""Which blocks a cache gives up, and which it fetches now, if it knows when each block is needed next. Pure functions.

The optimum is known: Belady's rule gives up what is needed last ("A study of replacement algorithms for a virtual-storage
computer", IBM Systems Journal 5, 1966). A cache that fetches ahead keeps to it as far as it can: it fetches in the order of
need, gives up what is needed last, and never gives up what is needed before that which is fetched (Cao, Felten, Karlin, Li: "A
study of integrated prefetching and caching strategies", SIGMETRICS 1995). It fetches no earlier than it must, since it gives up
something for that.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEVER = float("inf")
"""When a block is needed that no update needs."""
_MARGIN = 1.5
"""A fetch is begun when this multiple of its expected time is left."""
_LATENCIES = 2.0
"""Latencies that are left in addition."""


def victims(
    present: NDArray[np.int64], next_use: NDArray[np.float64], sizes: NDArray[np.int64], needed: int, after: float
) -> list[int] | None:
    """Returns the blocks to give up so that ``needed`` bytes become free, or None if that is not worthwhile.

    Args:
        present: int64 (P,), the blocks in the cache.
        next_use: float64 (K,), when each block is needed next; infinity: never.
        sizes: int64 (K,), bytes of each block.
        needed: bytes; at most 0 gives no victims.
        after: only blocks that are needed later than this are given up.

    Those that are needed last come first; of equal ones, those with the highest number.
    """
    found, freed = list[int](), 0
    if needed <= 0:
        return found
    candidates = present[next_use[present] > after]
    for block in candidates[np.lexsort((-candidates, -next_use[candidates]))].tolist():
        found.append(block)
        freed += int(sizes[block])
        if freed >= needed:
            return found
    return None


def num_due(seconds: NDArray[np.float64], sizes: NDArray[np.int64], rate: float, latency: float) -> int:
    """Returns how many of the blocks to fetch, in the order of need, must be begun now, so that none comes too late.

    Args:
        seconds: float64 (M,), in how many seconds each block is needed, ascending.
        sizes: int64 (M,), bytes of each block.
        rate: bytes per second that come, over all requests.
        latency: seconds from a request to its first byte.
    """
    lead = _MARGIN * np.cumsum(sizes) / max(rate, 1.0) + _LATENCIES * latency
    late = np.flatnonzero(seconds <= lead)
    return int(late[-1]) + 1 if len(late) else 0


def fewest_fetches(trace: Sequence[int], sizes: NDArray[np.int64], capacity: int) -> list[int]:
    """Returns the blocks that Belady's rule fetches for the uses ``trace``, in order, with a cache of ``capacity`` bytes.

    If all blocks have the same size, no cache fetches fewer. A block that is larger than the cache raises ValueError.
    """
    uses: dict[int, list[int]] = {}
    for at in range(len(trace) - 1, -1, -1):
        uses.setdefault(trace[at], []).append(at)
    present, fetched, free = set[int](), list[int](), capacity
    last: list[tuple[float, int]] = []  # (minus the next use, minus the block), of which some are out of date
    for block in trace:
        uses[block].pop()
        if block not in present:
            fetched.append(block)
            free -= int(sizes[block])
            while free < 0:
                if not last:
                    raise ValueError(f"a block of {sizes[block]:,} bytes in a cache of {capacity:,}")
                when, number = heapq.heappop(last)
                out = -number
                if out in present and -when == (uses[out][-1] if uses[out] else np.inf):
                    present.discard(out)
                    free += int(sizes[out])
            present.add(block)
        heapq.heappush(last, (-(uses[block][-1] if uses[block] else np.inf), -block))
    return fetched
