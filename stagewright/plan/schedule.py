"""Schedules: learning rate and momentum as pure functions of the step, so that there is no scheduler state to restore.

Every function gives the *factor of the peak* at step ``i`` of a span of ``n`` steps, ``0 <= i < n``. Outside it raises
ValueError rather than clamp, since a step past the end is a bug in the plan. Values are those of torch's own schedulers
of the same name after ``i`` calls of ``step()``. It knows nothing of peaks, stages or epochs: those are the plan's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Anneal = Literal["cos", "linear"]
Kind = Literal["constant", "linear", "cosine", "one_cycle", "piecewise", "swa"]


def constant(i: int, n: int) -> float:
    """1 at every step of the span."""
    _check(i, n)
    return 1.0


def linear(i: int, n: int, final: float = 0.0) -> float:
    """The straight line from 1 at step 0 towards ``final`` at step ``n``, which the last step stops 1/n short of.

    Equal to ``torch.optim.lr_scheduler.LinearLR(1, final, total_iters=n)``.
    """
    _check(i, n)
    return 1.0 + (final - 1.0) * (i / n)


def cosine(i: int, n: int, final: float = 0.0) -> float:
    """Half-cosine from 1 at step 0 towards ``final`` at step ``n`` (SGDR, arXiv:1608.03983, eq. 5, without restarts).

    Equal to ``torch.optim.lr_scheduler.CosineAnnealingLR(T_max=n, eta_min=final * peak)``.
    """
    _check(i, n)
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * i / n)) / 2.0


def with_warmup(i: int, n: int, warmup_steps: int, start: float, body: Callable[[int, int], float]) -> float:
    """A straight line from ``start`` at step 0 to the body's first value at step ``warmup_steps``, then ``body``.

    ``body(i - warmup_steps, n - warmup_steps)`` is what the span does after the warm-up; a warm-up of all ``n`` steps
    heads for 1. ``warmup_steps`` is in [0, n], else ValueError. Equal to torch's ``SequentialLR`` of
    ``LinearLR(start, 1, total_iters=warmup_steps)`` and the body (the warm-up of arXiv:1706.02677, section 2.2).
    """
    _check(i, n)
    if not 0 <= warmup_steps <= n:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit a span of {n}")
    if i >= warmup_steps:
        return body(i - warmup_steps, n - warmup_steps)
    top = body(0, n - warmup_steps) if warmup_steps < n else 1.0
    return start + (top - start) * (i / warmup_steps)


def one_cycle(
    i: int, n: int, pct_start: float = 0.3, div: float = 25.0, final_div: float = 1e4, anneal: Anneal = "cos"
) -> float:
    """From ``1 / div`` up to 1 at step ``pct_start * n - 1``, then down to ``1 / div / final_div`` at step ``n - 1``.

    The one-cycle policy (arXiv:1708.07120), equal to ``torch.optim.lr_scheduler.OneCycleLR(total_steps=n)``. Where the
    rise is the first step alone (``pct_start * n == 1``) torch divides by zero; here that step has the peak.
    """
    low = 1.0 / div
    return _two_phases(i, n, pct_start, (low, 1.0, low / final_div), anneal)


def one_cycle_momentum(
    i: int, n: int, pct_start: float = 0.3, low: float = 0.85, high: float = 0.95, anneal: Anneal = "cos"
) -> float:
    """Momentum that mirrors :func:`one_cycle`: from ``high`` down to ``low`` at the LR's peak, and up to ``high``."""
    return _two_phases(i, n, pct_start, (high, low, high), anneal)


def piecewise(i: int, milestones: Sequence[tuple[int, float]], interpolate: bool = False) -> float:
    """The factor of the last milestone ``(step, factor)`` that is not after ``i``; 1 before the first.

    With ``interpolate``, straight lines between the milestones, from (0, 1) on, and the last factor after the last one;
    two milestones at one step make a jump. Milestones out of order raise ValueError. Steps as
    ``torch.optim.lr_scheduler.MultiStepLR`` makes them, with any factors.
    """
    if i < 0:
        raise ValueError(f"step {i} is before the span")
    steps = [step for step, _ in milestones]
    if steps != sorted(steps) or (steps and steps[0] < 0):
        raise ValueError(f"milestones must ascend from 0, not {steps}")
    at = bisect_right(steps, i)
    left_step, left = milestones[at - 1] if at else (0, 1.0)
    if not interpolate or at == len(milestones):
        return left
    right_step, right = milestones[at]
    return left + (right - left) * (i - left_step) / (right_step - left_step)


def swa(i: int, anneal_steps: int, start_factor: float = 1.0, anneal: Anneal = "cos") -> float:
    """From ``start_factor`` at step 0 to 1 at step ``anneal_steps``, then 1: the constant LR of weight averaging.

    ``start_factor`` is the LR before the stage over the stage's own, and may exceed 1. Equal to
    ``torch.optim.swa_utils.SWALR`` (arXiv:1803.05407).
    """
    if i < 0 or anneal_steps < 0:
        raise ValueError(f"step {i} of an annealing over {anneal_steps} steps: neither may be negative")
    if i >= anneal_steps:
        return 1.0
    return _between(start_factor, 1.0, i / anneal_steps, anneal)


@dataclass(frozen=True)
class Curve:
    """A schedule with its numbers filled in: what stands in the plan. Plain fields, so that it goes into JSON and back.

    Lengths are in steps, counted from the start of the span. Each ``kind`` reads the fields of its function and ignores
    the rest. ``warmup_steps`` is the warm-up of constant, linear, cosine and piecewise, and the annealing of swa.
    """

    kind: Kind
    num_steps: int
    warmup_steps: int = 0
    warmup_start: float = 0.0
    final: float = 0.0
    div: float = 25.0
    final_div: float = 1e4
    pct_start: float = 0.3
    anneal: Anneal = "cos"
    milestones: tuple[tuple[int, float], ...] = ()
    interpolate: bool = False
    start_factor: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.start_factor):  # the one number that is computed, of learning rates that may be tiny
            raise OverflowError(f"the learning rate before the stage is {self.start_factor:g} times the stage's own")

    def at(self, i: int) -> float:
        """The factor of the peak at step ``i`` of the span, in [0, num_steps); ValueError outside it."""
        _check(i, self.num_steps)
        if self.kind == "one_cycle":
            return one_cycle(i, self.num_steps, self.pct_start, self.div, self.final_div, self.anneal)
        if self.kind == "swa":
            return swa(i, self.warmup_steps, self.start_factor, self.anneal)
        return with_warmup(i, self.num_steps, self.warmup_steps, self.warmup_start, self._after_warmup)

    def momentum(self, i: int, low: float, high: float) -> float:
        """Momentum at step ``i`` of a one-cycle span, between ``low`` and ``high``; other kinds raise ValueError."""
        if self.kind != "one_cycle":
            raise ValueError(f"momentum cycles with one_cycle alone, not with {self.kind}")
        return one_cycle_momentum(i, self.num_steps, self.pct_start, low, high, self.anneal)

    def _after_warmup(self, i: int, n: int) -> float:
        if self.kind == "linear":
            return linear(i, n, self.final)
        if self.kind == "cosine":
            return cosine(i, n, self.final)
        if self.kind == "piecewise":
            # Milestones count from the start of the span, as people write them: "30ep" is the thirtieth of all.
            return piecewise(i + self.warmup_steps, self.milestones, self.interpolate)
        return constant(i, n)


def _check(i: int, n: int) -> None:
    if not 0 <= i < n:
        raise ValueError(f"step {i} is outside a span of {n} steps")


def _two_phases(i: int, n: int, pct_start: float, values: tuple[float, float, float], anneal: Anneal) -> float:
    """From ``values[0]`` over ``values[1]`` at step ``pct_start * n - 1`` to ``values[2]`` at step ``n - 1``.

    The same expressions as in torch's ``OneCycleLR.get_lr``, since the phases end between steps: rounded differently, a
    step would fall into the other phase.
    """
    _check(i, n)
    if not 0.0 <= pct_start <= 1.0:
        raise ValueError(f"pct_start is a share from 0 to 1, not {pct_start}")
    first, middle, last = values
    turn = pct_start * n - 1.0
    if turn == 0.0 == i:
        return middle
    if i <= turn:
        return _between(first, middle, i / turn, anneal)
    return _between(middle, last, (i - turn) / (n - 1 - turn), anneal)


def _between(start: float, end: float, share: float, anneal: Anneal) -> float:
    """``start`` at share 0, ``end`` at share 1, on a half-cosine or a straight line."""
    if anneal == "cos":
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)
    return (end - start) * share + start
