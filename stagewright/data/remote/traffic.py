"""How much a run will read from an object store: requests and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.data.manifest import SPLITS
from stagewright.data.remote.eviction import fewest_fetches
from stagewright.data.remote.needs import Needs

_MOST_PASSES = 3
"""Passes that are gone through; all later ones are taken to be like the last of them."""


@dataclass(frozen=True, slots=True)
class _Traffic:
    """What a run reads from an object store."""

    blocks: int
    """Blocks that its images lie in."""
    requests: int
    bytes: int
    fits: bool
    """Whether all of them find room in the cache, so that each is read once."""


def expected_traffic(needs: Needs, capacity: int) -> _Traffic:
    """Returns what the processes of a host read with a cache of ``capacity`` bytes that is empty at the start.

    If not all fits, the validation images are counted at each evaluation, which is the most.
    """
    plan, table = needs.plan, needs.table
    passes = [needs.blocks_of_pass(at) for at in range(min(needs.num_passes, _MOST_PASSES))]
    held_out = {name: np.flatnonzero(table.split_of == number) for number, name in enumerate(SPLITS) if number}
    used = np.unique(np.concatenate([*passes, *held_out.values()]))
    fits = int(table.sizes[used].sum()) <= capacity
    if fits:
        return _Traffic(len(used), int(table.num_requests[used].sum()), int(table.request_bytes[used].sum()), fits)
    fetched = _fetched(passes, table.sizes, capacity)
    later = needs.num_passes - len(passes)
    blocks = np.concatenate([*fetched, *[fetched[-1]] * later] if fetched else [used[:0]])
    blocks = np.concatenate([blocks, np.tile(held_out["val"], len(plan.eval_steps)), held_out["test"]])
    return _Traffic(len(used), int(table.num_requests[blocks].sum()), int(table.request_bytes[blocks].sum()), fits)


def _fetched(passes: list[NDArray[np.int64]], sizes: NDArray[np.int64], capacity: int) -> list[NDArray[np.int64]]:
    """Returns the blocks that each of ``passes`` fetches, which use blocks one after the other."""
    found = list[NDArray[np.int64]]()
    before = 0
    for count in range(1, len(passes) + 1):
        every = fewest_fetches(np.concatenate(passes[:count]).tolist(), sizes, max(capacity, int(sizes.max())))
        found.append(np.array(every[before:], np.int64))
        before = len(every)
    return found
