"""Tells the cache of images in an object store what a run reads next."""

from __future__ import annotations

from collections.abc import Iterator

from stagewright.data.batches.batch import BatchSpec
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.remote.cache import BlockCache, cache_of
from stagewright.data.remote.capacity import check_capacity
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.distributed.world import World
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan


def host_ranks(world: World) -> HostRanks:
    """Returns which processes of ``world`` are on this host and share its cache."""
    return HostRanks(world.rank, world.rank - world.local_rank, world.local_size, world.size)


def prepare_cache(
    images: Images, plan: Plan, manifest: Manifest, execution: Execution, ranks: HostRanks, *, check: bool = True
) -> BlockCache | None:
    """Gives the cache of ``images`` its size, and returns it; None if they are not in an object store.

    RecipeError if it is too small for ``plan`` (with ``check``), StorageError if the disk is.
    """
    cache = cache_of(images)
    if cache is not None:
        cache.cache_gb = execution.cache_gb
        if check:
            needs = Needs(plan, manifest, cache.table, ranks)
            check_capacity(cache.capacity, needs, blocked=plan.recipe.order == "blocked")
    return cache


def told_ahead(cache: BlockCache, needs: Needs, specs: Iterator[BatchSpec], prefetch: int) -> Iterator[BatchSpec]:
    """Yields ``specs``, of updates, and tells ``cache`` each time which update is read. Whoever takes them reads at most
    ``prefetch`` at a time."""
    begun = False
    for spec in specs:
        if begun:
            cache.at(spec.step)
        else:
            cache.follow(needs, spec.step, prefetch)
            begun = True
        yield spec
