"""Pace: how long a step takes while the loop runs, seen from between the loop and the session's updates.

Whole steps are timed, from the end of one update to the end of the next, so that waiting for pictures, keeping the books
and looking after the guard are in it. Machines are noisy: steps are timed in blocks, and the median block counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from stagewright.data.batches.batch import Batch
from stagewright.plan.plan import StagePlan
from stagewright.system.signals import StopSignal

_WARM_STEPS = 6
_BLOCKS = 9
FEW = 3
"""Blocks that are measured even where the time is up."""


class StepTimer:
    """Is called after each update (:data:`stagewright.training.loop.AfterUpdate`), times them, and asks for a stop once it has
    seen enough."""

    def __init__(
        self,
        stop: StopSignal,
        limit: float,
        settle: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``limit``: seconds that it should take, warming up aside; ``settle`` waits for the device."""
        self.stop, self.limit, self.settle, self.now = stop, limit, settle, now
        self.blocks: list[float] = []
        """Seconds of a step, as the mean of each block of steps."""
        self.batch: Batch | None = None
        """The newest."""
        self._steps = self._warm_steps = self._block_steps = 0
        self._began = self._even_from = self._mark = now()

    @property
    def step_seconds(self) -> float:
        """The median block's seconds for a step."""
        return statistics.median(self.blocks)

    @property
    def lead_seconds(self) -> float:
        """What the beginning took beyond its steps: compiling, filling caches, first batches."""
        return max(0.0, self._even_from - self._began - self._warm_steps * self.step_seconds)

    def after_update(self, stage: StagePlan, batch: Batch) -> None:
        """Reads the clock; ``batch`` is the one that the update was made with."""
        self.batch = batch
        self._steps += 1
        if not self._block_steps:
            self._warm_up()
        elif (self._steps - self._warm_steps) % self._block_steps == 0:
            self._end_block()

    def _warm_up(self) -> None:
        self.settle()
        now = self.now()
        last, self._mark = now - self._mark, now
        if self._steps >= _WARM_STEPS or (self._steps >= 2 and now - self._began > self.limit / 2):
            self._block_steps = max(1, round(self.limit / _BLOCKS / max(last, 1e-9)))
            self._warm_steps, self._even_from = self._steps, now

    def _end_block(self) -> None:
        self.settle()
        now = self.now()
        self.blocks.append((now - self._mark) / self._block_steps)
        self._mark = now
        spent = now - self._even_from
        seen = len(self.blocks) >= FEW and spent > (1 - 1 / _BLOCKS) * self.limit
        if seen or spent > 2 * self.limit:
            self.stop.requested = True
