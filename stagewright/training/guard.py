"""The divergence guard: notices numbers that are not finite and losses that stay high, and says where to go back to.

Pure, but that it asks a loss of one's own once for its scale: it sees the losses that were fetched anyway, at steps that the
plan fixes (every ``window`` steps, and before every evaluation and save, so that neither is ever of spoilt weights). What it
decides is a function of the plan and of those numbers, and what it remembers is saved with the state: a resumed run decides
alike. The deeds are the session's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from stagewright.engine.guard_state import GuardState, LrReduction
from stagewright.engine.own_loss import blind_loss
from stagewright.plan.plan import Plan
from stagewright.system.named_functions import is_named

_OVERFLOWS = 50
"""fp16 updates left out in a row by the loss scaler are its work; so many are a fault."""
_HIGH_WINDOWS = 2
KEPT_STATES = 4
"""States kept to go back to: a spike is known two windows after it began, and the window before is not trusted either."""

Row = tuple[int, float, float]
"""Finished updates, loss and gradient norm."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble, and where to go back to."""

    update: int
    """The first update that shows it."""
    back_to: int
    """Finished updates of a state from before."""
    kind: str
    """``not finite``, ``spike`` or ``memory``."""
    reason: str
    culprit: int | None = None
    """The update that may have spoilt the weights, which ``update`` shows; None where none is suspected."""


def _blind_loss(loss: str, classes: int) -> float:
    if is_named(loss):
        return blind_loss(loss, classes)
    return max(1.0, math.log(max(classes, 2))) if loss == "cross_entropy" else math.log(2)


class Guard:
    """Decides for one plan when to look, and what was seen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.settings = plan.recipe.guard
        self._looks = frozenset(plan.eval_steps) | frozenset(plan.save_steps)
        # What a network that knows nothing loses, which is the scale of a loss that is too high.
        classes = len(plan.dataset.classes)
        self.blind_loss = _blind_loss(plan.recipe.loss, classes)

    def is_due(self, step: int) -> bool:
        """Whether the losses are looked at after ``step`` finished updates."""
        return step % self.settings.window == 0 or step in self._looks

    def is_snapshot_step(self, step: int) -> bool:
        """Whether the state after ``step`` finished updates is one to go back to."""
        return self.settings.rollbacks > 0 and step % self.settings.window == 0

    def check(self, record: GuardState, step: int, rows: Sequence[Row]) -> Fault | None:
        """Looks at the updates up to ``step`` that it has not seen, and writes what it remembers into ``record``.

        ``rows`` are those of the last window and later, in order; ``record.left_out`` updates among them are passed over.
        """
        rows = [row for row in rows if row[0] - 1 not in record.left_out]
        fault = self._not_finite(record, [row for row in rows if row[0] > record.checked])
        if fault is None and step % self.settings.window == 0:
            fault = self._spike(record, step, rows)
        record.checked = step
        return fault

    def _not_finite(self, record: GuardState, rows: Sequence[Row]) -> Fault | None:
        for done, loss, grad_norm in rows:
            if math.isfinite(loss) and math.isfinite(grad_norm):
                record.overflows = 0
                continue
            if self.plan.precision == "fp16":
                record.overflows += 1
                if record.overflows < _OVERFLOWS:
                    continue
            what = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
            # The update before may have spoilt the weights, which only this one's loss shows: back to before that one too.
            culprit = self._last_change(record, done - 1, max(record.overflows - 1, 0))
            return Fault(done - 1, self._state_before(culprit), "not finite", what, culprit)
        return None

    def spoilt(self, record: GuardState, step: int, what: str) -> Fault:
        """The fault of ``step`` finished updates whose weights give answers that are not finite, ``what``: the last update is
        to blame, though its own loss was finite."""
        culprit = self._last_change(record, step, record.overflows)
        return Fault(culprit, self._state_before(culprit), "not finite", what, culprit)

    def _last_change(self, record: GuardState, update: int, skipped: int) -> int:
        """The last update before ``update`` that changed the weights: it was not left out, and is none of the ``skipped`` ones
        before ``update`` that the loss scaler left out. The first update where there is none."""
        earlier = (one for one in range(update - 1, -1, -1) if one not in record.left_out)
        return next(islice(earlier, skipped, None), 0)

    def _spike(self, record: GuardState, step: int, rows: Sequence[Row]) -> Fault | None:
        window = self.settings.window
        stage = self.plan.stage_before(step)
        if record.stage != stage.index:
            record.stage, record.lowest, record.high_since = stage.index, None, None
        first = max(step - window, stage.first_step)
        losses = [loss for done, loss, _ in rows if done > first and math.isfinite(loss)]
        if len(losses) < window / 2:
            return None
        level = median(losses)
        limit = math.inf if record.lowest is None else record.lowest + self.settings.spike * self.blind_loss
        record.lowest = level if record.lowest is None else min(record.lowest, level)
        if level <= limit:
            record.high_since = None
            return None
        if record.high_since is None:
            record.high_since = first
        if step - record.high_since < _HIGH_WINDOWS * window:
            return None
        began = record.high_since
        what = f"the median loss of {window} steps is {level:.4g}, and was {record.lowest:.4g}"
        return Fault(began, self._state_before(max(began - window, 0)), "spike", what)

    def _state_before(self, update: int) -> int:
        """Finished updates of the newest kept state that update ``update`` has not touched."""
        return update // self.settings.window * self.settings.window

    def reduce_lr(self, first: int) -> LrReduction:
        """The learning rate lowered from update ``first`` on."""
        return LrReduction(
            first, first + self.settings.lr_factor_windows * self.settings.window, self.settings.lr_factor
        )

    def oldest_restorable_step(self, step: int) -> int:
        """The oldest step that a fault found after ``step`` may go back to, as long as few updates are left out in a row."""
        overflows = -(-_OVERFLOWS // self.settings.window) if self.plan.precision == "fp16" else 0
        return max(0, (step // self.settings.window - KEPT_STATES - overflows) * self.settings.window)
