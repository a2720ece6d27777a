"""What a clock, a signal or a fault decides in one process, all processes do at the same step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stagewright.distributed.world import World


class Agreement:
    """Agrees on a small word of whole numbers: the largest number of all ranks at each place.

    In a step, a rank posts its word and gets the word that was agreed on in the step before, which has arrived meanwhile, so
    that nobody waits. All ranks call the methods in the same order with words of one length. In a world of one, a word is
    agreed on at once.
    """

    def __init__(self, world: World) -> None:
        """``world`` has a control group, or is a world of one."""
        self._world = world
        self._posted: tuple[Tensor, dist.Work] | None = None

    def exchange(self, word: Sequence[int]) -> tuple[int, ...] | None:
        """Posts this step's word; returns the agreed word of the step before, or None if there was none. In a world of one,
        returns ``word``."""
        if self._world.size == 1:
            return tuple(word)
        agreed = self.drain()
        self._post(word)
        return agreed

    def settle(self, word: Sequence[int]) -> tuple[int, ...]:
        """Returns the agreed word of now, where all ranks meet anyway; it includes the word posted in the step before, which
        nobody has acted on."""
        if self._world.size == 1:
            return tuple(word)
        before = self.drain() or tuple(word)
        self._post([max(pair) for pair in zip(before, word, strict=True)])
        agreed = self.drain()
        assert agreed is not None
        return agreed

    def drain(self) -> tuple[int, ...] | None:
        """Waits for the word that is under way and returns it; None if there is none."""
        if self._posted is None:
            return None
        (word, work), self._posted = self._posted, None
        with self._world.waits:
            work.wait()
        return tuple(word.tolist())

    def _post(self, word: Sequence[int]) -> None:
        values = torch.tensor(list(word), dtype=torch.int64)
        work = dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        assert work is not None
        self._posted = (values, work)
