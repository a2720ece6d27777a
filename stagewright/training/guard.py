"""The divergence guard: detects numbers that are not finite and losses that stay high, and decides how far to roll back.

It checks losses that are fetched anyway, at steps fixed by the plan: every ``window`` steps, and before every evaluation and
save, so that these never use weights that are not finite. Its decisions are a pure function of the plan, these losses and its
state, which is saved in checkpoints, so a resumed run makes the same decisions. It calls a user's own loss once, for its scale.
:mod:`stagewright.training.rollback` carries the decisions out.
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
"""Number of fp16 overflows in a row that counts as a fault; fewer are normal work of the loss scaler."""
_HIGH_WINDOWS = 2
KEPT_STATES = 4
"""Number of snapshots kept: a spike is detected two windows after it began, and the window before it is not trusted either."""

Row = tuple[int, float, float]
"""(number of finished updates, loss, gradient norm)"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A detected fault, and the step to go back to."""

    update: int
    """Index (from 0) of the first update that shows the fault."""
    back_to: int
    """The step to go back to: the number of finished updates of an earlier state."""
    kind: str
    """``not finite``, ``spike`` or ``memory``."""
    reason: str
    culprit: int | None = None
    """The earlier update that may have corrupted the weights, so that ``update`` fails; None if none is suspected."""


def _blind_loss(loss: str, classes: int) -> float:
    if is_named(loss):
        return blind_loss(loss, classes)
    return max(1.0, math.log(max(classes, 2))) if loss == "cross_entropy" else math.log(2)


class Guard:
    """Decides for one plan when to check the losses, and what they mean."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.settings = plan.recipe.guard
        self._looks = frozenset(plan.eval_steps) | frozenset(plan.save_steps)
        # The loss of uniform predictions, used as the unit of ``guard.spike``.
        classes = len(plan.dataset.classes)
        self.blind_loss = _blind_loss(plan.recipe.loss, classes)

    def is_due(self, step: int) -> bool:
        """Returns whether the losses are checked after ``step`` finished updates."""
        return step % self.settings.window == 0 or step in self._looks

    def is_snapshot_step(self, step: int) -> bool:
        """Returns whether the state after ``step`` finished updates is a target for rollbacks."""
        return self.settings.rollbacks > 0 and step % self.settings.window == 0

    def check(self, record: GuardState, step: int, rows: Sequence[Row]) -> Fault | None:
        """Checks the updates up to ``step`` that were not checked yet, updates ``record``, and returns a fault or None.

        ``rows`` are those of the last window and later, in order; updates in ``record.left_out`` are ignored.
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
            # The update before may have corrupted the weights, and its own loss cannot show it: go back to before that one.
            culprit = self._last_change(record, done - 1, max(record.overflows - 1, 0))
            return Fault(done - 1, self._state_before(culprit), "not finite", what, culprit)
        return None

    def fault_at_evaluation(self, record: GuardState, step: int, what: str) -> Fault:
        """Returns the fault of an evaluation after ``step`` updates that gave numbers that are not finite.

        The last update has caused it, although its own loss was finite. ``what`` is the reason in words.
        """
        culprit = self._last_change(record, step, record.overflows)
        return Fault(culprit, self._state_before(culprit), "not finite", what, culprit)

    def _last_change(self, record: GuardState, update: int, skipped: int) -> int:
        """Returns the last update before ``update`` that changed the weights, or 0 if there is none.

        Updates in ``record.left_out`` did not change them, nor did the ``skipped`` last ones, which the loss scaler left out.
        """
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
        """Returns the step of the newest snapshot taken before ``update`` was carried out."""
        return update // self.settings.window * self.settings.window

    def reduce_lr(self, first: int) -> LrReduction:
        """Returns the recipe's reduction of the learning rate, from update ``first`` on."""
        return LrReduction(
            first, first + self.settings.lr_factor_windows * self.settings.window, self.settings.lr_factor
        )

    def oldest_restorable_step(self, step: int) -> int:
        """Returns the oldest step that a fault detected after ``step`` can go back to, if few updates in a row are left out."""
        overflows = -(-_OVERFLOWS // self.settings.window) if self.plan.precision == "fp16" else 0
        return max(0, (step // self.settings.window - KEPT_STATES - overflows) * self.settings.window)
