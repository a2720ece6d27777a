"""Measures the time of a training step while the training loop runs.

A step is timed from the end of one update to the end of the next, so that waiting for images, logging and the guard are
included. Since machines are noisy, steps are timed in blocks, and the median of the blocks is used.
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
MIN_BLOCKS = 3
"""Number of blocks that are measured even if the time limit is exceeded."""


class StepTimer:
    """Times updates: the loop calls it after each one (:data:`stagewright.training.loop.AfterUpdate`), and it requests a stop
    when it has enough measurements."""

    def __init__(
        self,
        stop: StopSignal,
        limit: float,
        synchronize: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``limit``: seconds to measure after the warm-up; ``synchronize`` waits for the device; ``now`` is the clock."""
        self.stop, self.limit, self.synchronize, self.now = stop, limit, synchronize, now
        self.blocks: list[float] = []
        """The mean seconds of a step in each block of steps."""
        self.batch: Batch | None = None
        """The batch of the last update."""
        self._steps = self._warm_steps = self._block_steps = 0
        self._began = self._even_from = self._mark = now()

    @property
    def step_seconds(self) -> float:
        """The median over all blocks of the seconds of a step."""
        return statistics.median(self.blocks)

    @property
    def lead_seconds(self) -> float:
        """The additional seconds of the first steps: compiling, filling caches, loading the first batches."""
        return max(0.0, self._even_from - self._began - self._warm_steps * self.step_seconds)

    def after_update(self, stage: StagePlan, batch: Batch) -> None:
        """Records that an update with ``batch`` has ended."""
        self.batch = batch
        self._steps += 1
        if not self._block_steps:
            self._warm_up()
        elif (self._steps - self._warm_steps) % self._block_steps == 0:
            self._end_block()

    def _warm_up(self) -> None:
        self.synchronize()
        now = self.now()
        last, self._mark = now - self._mark, now
        if self._steps >= _WARM_STEPS or (self._steps >= 2 and now - self._began > self.limit / 2):
            self._block_steps = max(1, round(self.limit / _BLOCKS / max(last, 1e-9)))
            self._warm_steps, self._even_from = self._steps, now

    def _end_block(self) -> None:
        self.synchronize()
        now = self.now()
        self.blocks.append((now - self._mark) / self._block_steps)
        self._mark = now
        spent = now - self._even_from
        seen = len(self.blocks) >= MIN_BLOCKS and spent > (1 - 1 / _BLOCKS) * self.limit
        if seen or spent > 2 * self.limit:
            self.stop.requested = True
