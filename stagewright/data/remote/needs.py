"""When a run needs each block: the order of images is a function, so this is known in advance."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stagewright.data.batches.blocked_order import lanes_of_pass, pass_order, window_blocks
from stagewright.data.batches.order import pass_places
from stagewright.data.batches.specs import stage_blocks, stage_rows, updates_of
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.remote.eviction import NEVER
from stagewright.data.remote.table import BlockTable
from stagewright.distributed.tree import share
from stagewright.plan.plan import Plan, StagePlan

_VAL = SPLITS.index("val")


@dataclass(frozen=True, slots=True)
class HostRanks:
    """Which processes read through the same cache: ``first`` to ``first + count - 1`` of ``size``; this one is ``own``."""

    own: int = 0
    first: int = 0
    count: int = 1
    size: int = 1


@dataclass(frozen=True, eq=False)
class _Section:
    """The updates of one pass of a stage, and when they use each of K blocks."""

    first_step: int
    end_step: int
    """One after the last update that uses an image of the pass."""
    firsts: NDArray[np.float64]
    """float64 (K,): the first update that needs the block; :data:`NEVER`: none does."""
    lasts: NDArray[np.float64]
    """float64 (K,): the last one; -1 if none does."""
    own: NDArray[np.int64]
    """The blocks that this process needs, in the order of need."""


class Needs:
    """When the blocks of ``table`` are needed by the processes of one host, which carry out ``plan`` with others.

    Stages whose index is in ``unread`` read no images. Not thread-safe.
    """

    def __init__(
        self, plan: Plan, manifest: Manifest, table: BlockTable, ranks: HostRanks, unread: frozenset[int] = frozenset()
    ) -> None:
        self.plan, self.manifest, self.table, self.ranks = plan, manifest, table, ranks
        stages = [stage for stage in plan.stages if stage.index not in unread]
        self._passes = [(stage, number) for stage in stages for number in range(self._num_passes(stage))]
        self._starts = [stage.first_step + self._first(stage, number) for stage, number in self._passes]
        self._sections: dict[int, _Section] = {}

    def next_use(self, step: int) -> NDArray[np.float64]:
        """Returns the update that needs each block next, from ``step`` on, float64 (K,), or :data:`NEVER`.

        A block whose images are used now and later in the same pass is needed now. Validation images are needed at the next
        evaluation, test images at the end. What is needed after the next pass counts as never.
        """
        found = np.full(len(self.table), NEVER)
        evaluated = bisect_left(self.plan.eval_steps, step)
        if evaluated < len(self.plan.eval_steps):
            found[self.table.split_of == _VAL] = self.plan.eval_steps[evaluated]
        found[self.table.split_of > _VAL] = self.plan.total_steps
        for section in reversed(list(self._near(step))):
            used = section.lasts >= step
            found[used] = np.maximum(section.firsts, step)[used]
        return found

    def wanted(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the blocks that this process needs from ``step`` on, in this pass and the next one, in the order of need, and
        the update that needs each, both (M,)."""
        blocks, firsts = [np.empty(0, np.int64)], [np.empty(0)]
        for section in self._near(step):
            own = section.own[section.lasts[section.own] >= step]
            blocks.append(own)
            firsts.append(np.maximum(section.firsts[own], step))
        found = np.concatenate(firsts)
        order = np.argsort(
            found, kind="stable"
        )  # an update may use the end of a pass and the beginning of the next one
        return np.concatenate(blocks)[order], found[order]

    @property
    def num_passes(self) -> int:
        """Number of passes that read images, over all stages."""
        return len(self._passes)

    def blocks_of_pass(self, at: int) -> NDArray[np.int64]:
        """Returns the blocks that the processes of the host use in the pass ``at``, from 0, in the order of need."""
        section = self._section(at)
        used = np.flatnonzero(section.lasts >= 0)
        return used[np.argsort(section.firsts[used], kind="stable")]

    @cached_property
    def window_bytes(self) -> int:
        """The most bytes that the lanes of the host use at the same time: a window of each with ``order: blocked``, all
        images of a stage with ``order: full``."""
        most = 0
        for stage in {stage.index: stage for stage, _ in self._passes}.values():
            blocks = np.unique(self.table.block_of[stage_rows(self.plan, self.manifest, stage)])
            sizes = np.sort(self.table.sizes[blocks])
            if self.plan.recipe.order == "blocked" and stage.fit == "updates":
                count = len(self._lanes(stage, host=True)) * (window_blocks(len(blocks), stage.lanes) + 1)
                sizes = sizes[-count:]
            most = max(most, int(sizes.sum()))
        return most

    def _near(self, step: int) -> Iterator[_Section]:
        """Yields the passes that use images at ``step``, and the one after them."""
        at = max(bisect_left(self._starts, step) - 1, 0)
        while at < len(self._passes):
            section = self._section(at)
            if section.end_step > step:
                yield section
            at += 1
            if section.first_step > step:
                break

    def _section(self, at: int) -> _Section:
        if at not in self._sections:
            for old in [one for one in self._sections if not at - 2 <= one <= at + 2]:
                del self._sections[old]
            self._sections[at] = self._made(*self._passes[at])
        return self._sections[at]

    def _made(self, stage: StagePlan, number: int) -> _Section:
        rows = stage_rows(self.plan, self.manifest, stage)
        count, size, end = stage.num_images, stage.batch_size, stage.end_step
        begin = number * count
        if stage.fit == "optimum":
            used = np.unique(self.table.block_of[rows]).astype(np.int64)
            firsts, lasts = np.full(len(self.table), NEVER), np.full(len(self.table), -1.0)
            firsts[used] = lasts[used] = stage.first_step
            return _Section(stage.first_step, end, firsts, lasts, used)
        taken = min(count, stage.num_steps * size - begin)
        places = self._places(stage, number)[:taken]
        blocks = self.table.block_of[rows[places % len(rows)]]
        steps = (stage.first_step + (begin + np.arange(taken)) // size).astype(np.float64)
        lanes = lanes_of_pass(count, updates_of(stage), number)[:taken]
        firsts, lasts = self._uses(blocks, steps, _within(lanes, self._lanes(stage, host=True)))
        own_firsts, own_lasts = self._uses(blocks, steps, _within(lanes, self._lanes(stage, host=False)))
        own = np.flatnonzero(own_lasts >= 0)
        own = own[np.argsort(own_firsts[own], kind="stable")]
        return _Section(int(steps[0]), int(steps[-1]) + 1, firsts, lasts, own)

    def _uses(
        self, blocks: NDArray[np.int32], steps: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the first and the last of the ascending ``steps`` (n,) of each block, at the ``chosen`` positions."""
        firsts, lasts = np.full(len(self.table), NEVER), np.full(len(self.table), -1.0)
        blocks, steps = blocks[chosen], steps[chosen]
        firsts[blocks[::-1]] = steps[::-1]
        lasts[blocks] = steps
        return firsts, lasts

    def _places(self, stage: StagePlan, number: int) -> NDArray[np.int64]:
        """Returns the places of a pass in their order; those that sampling by class takes several times or not at all are taken
        to be used once."""
        seed, blocks = self.plan.recipe.seed, stage_blocks(self.plan, self.manifest, stage)
        if blocks is None:
            return pass_places(seed, stage.num_images, stage.first_pass + number)
        return pass_order(seed, blocks, updates_of(stage), stage.first_pass, stage.first_pass + number).places

    def _lanes(self, stage: StagePlan, *, host: bool) -> range:
        """Returns the lanes of this process, or those of all that use the cache."""
        ranks, lanes = self.ranks, stage.lanes
        if ranks.size > lanes:  # the stage finds an optimum
            return range(lanes)
        first, last = (ranks.first, ranks.first + ranks.count - 1) if host else (ranks.own, ranks.own)
        return range(share(lanes, first, ranks.size).start, share(lanes, last, ranks.size).stop)

    def _num_passes(self, stage: StagePlan) -> int:
        return 1 if stage.fit == "optimum" else stage.num_passes

    def _first(self, stage: StagePlan, number: int) -> int:
        return number * stage.num_images // stage.batch_size


def _within(lanes: NDArray[np.uint16], own: range) -> NDArray[np.bool_]:
    return (lanes >= own.start) & (lanes < own.stop)
