"""How large a cache of blocks is, and how large it must be."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from stagewright.data.remote.block_files import BlockFiles, caches_beside, give_up
from stagewright.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from stagewright.data.remote.needs import Needs

_SHARE = 4


def make_room(blocks: BlockFiles, capacity: int) -> None:
    """Removes caches beside ``blocks`` that no process uses, the one that was used longest ago first, so that all of them have
    ``capacity`` bytes together when this one is as full as it gets."""
    others = caches_beside(blocks.folder)
    left = min(capacity, int(blocks.sizes.sum())) + sum(one.bytes for one in others)
    for one in others:
        if left > capacity and give_up(one):
            left -= one.bytes


def _room(blocks: BlockFiles) -> int:
    """Returns the bytes that are free on the disk, with those of all caches."""
    others = sum(one.bytes for one in caches_beside(blocks.folder))
    return shutil.disk_usage(blocks.folder).free + blocks.used_bytes() + others


def capacity_of(cache_gb: float | None, blocks: BlockFiles) -> int:
    """Returns the capacity in bytes that ``--cache-gb`` asks for, or a quarter of the free disk, counting what caches have
    already. StorageError if the disk has less room."""
    if cache_gb is None:
        return _room(blocks) // _SHARE
    room = _room(blocks)
    if (asked := int(cache_gb * 1e9)) > room:
        raise StorageError(
            f"--cache-gb {cache_gb:g}, but {room / 1e9:.3g} GB are free in {blocks.folder}",
            "what is free on the disk, or less",
            "free disk space, set STAGEWRIGHT_CACHE to a folder of another disk, or give a smaller --cache-gb",
        )
    return asked


def check_capacity(capacity: int, needs: Needs, *, blocked: bool) -> None:
    """RecipeError if a cache of ``capacity`` bytes is too small for a run: with ``order: blocked`` for two windows, one in use
    and one on the way; with ``order: full`` for all images that a stage trains on."""
    least = min(int(needs.table.sizes.sum()), needs.window_bytes * (2 if blocked else 1))
    if capacity >= least:
        return
    what = (
        "two windows of blocks"
        if blocked
        else "all pictures that a stage trains on, since order: full reads them at random"
    )
    remedy = f"give --cache-gb {least / 1e9 * 1.005:.3g}, or set STAGEWRIGHT_CACHE to a folder of a larger disk"
    raise RecipeError(
        f"a cache of {capacity / 1e9:.3g} GB for blocks of {needs.manifest.source}",
        f"{least / 1e9:.3g} GB or more: {what}",
        remedy if blocked else f"{remedy}, or --set order=blocked",
    )
