"""Schedules: learning rate and momentum as pure functions of the step, so that there is no scheduler state to restore.

Every function returns the *factor of the peak* at step ``i`` of a span of ``n`` steps, ``0 <= i < n``. Other steps raise
ValueError, since a step after the end is a bug in the plan. The values equal those of torch's schedulers of the same name
after ``i`` calls of ``step()``. Peaks, stages and epochs are not used here; the plan handles them.
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
    """Returns 1 at every step of the span."""
    _check(i, n)
    return 1.0


def linear(i: int, n: int, final: float = 0.0) -> float:
    """Returns the straight line from 1 at step 0 to ``final`` at step ``n``; the last step ``n - 1`` is 1/n before its end.

    Equal to ``torch.optim.lr_scheduler.LinearLR(1, final, total_iters=n)``.
    """
    _check(i, n)
    return 1.0 + (final - 1.0) * (i / n)


def cosine(i: int, n: int, final: float = 0.0) -> float:
    """Returns the half-cosine from 1 at step 0 to ``final`` at step ``n`` (SGDR, arXiv:1608.03983, eq. 5, without restarts).

    Equal to ``torch.optim.lr_scheduler.CosineAnnealingLR(T_max=n, eta_min=final * peak)``.
    """
    _check(i, n)
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * i / n)) / 2.0


def with_warmup(i: int, n: int, warmup_steps: int, start: float, body: Callable[[int, int], float]) -> float:
    """Returns a straight line from ``start`` at step 0 to the first value of ``body`` at step ``warmup_steps``, then ``body``.

    After the warm-up the value is ``body(i - warmup_steps, n - warmup_steps)``; a warm-up of all ``n`` steps rises towards 1.
    ValueError unless ``warmup_steps`` is in [0, n]. Equal to torch's ``SequentialLR`` of
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
    """Rises from ``1 / div`` to 1 at step ``pct_start * n - 1``, then falls to ``1 / div / final_div`` at step ``n - 1``.

    This is the one-cycle policy (arXiv:1708.07120), equal to ``torch.optim.lr_scheduler.OneCycleLR(total_steps=n)``. If the
    rise consists of the first step only (``pct_start * n == 1``), torch divides by zero; here that step has the peak.
    """
    low = 1.0 / div
    return _two_phases(i, n, pct_start, (low, 1.0, low / final_div), anneal)


def one_cycle_momentum(
    i: int, n: int, pct_start: float = 0.3, low: float = 0.85, high: float = 0.95, anneal: Anneal = "cos"
) -> float:
    """Returns the momentum for :func:`one_cycle`: it falls from ``high`` to ``low`` at the LR's peak and rises to ``high``."""
    return _two_phases(i, n, pct_start, (high, low, high), anneal)


def piecewise(i: int, milestones: Sequence[tuple[int, float]], interpolate: bool = False) -> float:
    """Returns the factor of the last milestone ``(step, factor)`` that is not after ``i``; 1 before the first one.

    With ``interpolate`` the milestones are joined by straight lines that begin at (0, 1); after the last one its factor stays;
    two milestones at the same step give a jump. ValueError if milestones are not in ascending order. Without it, equal to
    ``torch.optim.lr_scheduler.MultiStepLR``, but with any factors.
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
    """Changes from ``start_factor`` at step 0 to 1 at step ``anneal_steps``, then stays at 1, the constant LR of weight
    averaging.

    ``start_factor`` is the LR before the stage divided by the LR of the stage; it may exceed 1. Equal to
    ``torch.optim.swa_utils.SWALR`` (arXiv:1803.05407).
    """
    if i < 0 or anneal_steps < 0:
        raise ValueError(f"step {i} of an annealing over {anneal_steps} steps: neither may be negative")
    if i >= anneal_steps:
        return 1.0
    return _between(start_factor, 1.0, i / anneal_steps, anneal)


@dataclass(frozen=True)
class Curve:
    """A schedule with all its numbers, as stored in the plan. It has only plain fields, which JSON can represent.

    Lengths are in steps, counted from the start of the span. Each ``kind`` uses the fields of its function and ignores the
    others. ``warmup_steps`` is the warm-up of constant, linear, cosine and piecewise, and the annealing of swa.
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
        if not math.isfinite(self.start_factor):  # a quotient of learning rates, the only number here that may overflow
            raise OverflowError(f"the learning rate before the stage is {self.start_factor:g} times the stage's own")

    def at(self, i: int) -> float:
        """Returns the factor of the peak at step ``i`` of the span; ValueError outside [0, num_steps)."""
        _check(i, self.num_steps)
        if self.kind == "one_cycle":
            return one_cycle(i, self.num_steps, self.pct_start, self.div, self.final_div, self.anneal)
        if self.kind == "swa":
            return swa(i, self.warmup_steps, self.start_factor, self.anneal)
        return with_warmup(i, self.num_steps, self.warmup_steps, self.warmup_start, self._after_warmup)

    def momentum(self, i: int, low: float, high: float) -> float:
        """Returns the momentum at step ``i`` of a one-cycle span, between ``low`` and ``high``; other kinds raise ValueError."""
        if self.kind != "one_cycle":
            raise ValueError(f"momentum changes only with one_cycle, not with {self.kind}")
        return one_cycle_momentum(i, self.num_steps, self.pct_start, low, high, self.anneal)

    def _after_warmup(self, i: int, n: int) -> float:
        if self.kind == "linear":
            return linear(i, n, self.final)
        if self.kind == "cosine":
            return cosine(i, n, self.final)
        if self.kind == "piecewise":
            # Milestones count from the start of the span, including the warm-up: "30ep" is the end of its 30th epoch.
            return piecewise(i + self.warmup_steps, self.milestones, self.interpolate)
        return constant(i, n)


def _check(i: int, n: int) -> None:
    if not 0 <= i < n:
        raise ValueError(f"step {i} is outside a span of {n} steps")


def _two_phases(i: int, n: int, pct_start: float, values: tuple[float, float, float], anneal: Anneal) -> float:
    """Goes from ``values[0]`` to ``values[1]`` at step ``pct_start * n - 1``, then to ``values[2]`` at step ``n - 1``.

    It uses the same expressions as torch's ``OneCycleLR.get_lr``: with another rounding, a step near the end of the first phase
    could fall into the second.
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
    """Returns the value at ``share`` between ``start`` (share 0) and ``end`` (share 1), on a half-cosine or a straight line."""
    if anneal == "cos":
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)
    return (end - start) * share + start
