"""Pauses of a run: the evaluation at which ``--until`` ends this process, with the state saved."""

from __future__ import annotations

import math
import re

from stagewright.errors import RecipeError
from stagewright.plan.plan import Plan
from stagewright.recipe.duration import Duration
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluated
from stagewright.training.session import Decide

_PERCENT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*%\s*")
_FORMS = "40% (of the run's steps), 12ep (epochs) or 5000st (steps)"


def pausing(until: str | None, decide: Decide | None, plan: Plan, step: int = 0) -> Decide | None:
    """Returns what is asked after each evaluation of a run at ``step``: ``decide``, with False at the pause of ``until``.

    ``until`` is a part of the run such as ``40%``, ``12ep`` or ``5000st``. RecipeError if it is none, if it is over already, and
    if no evaluation is planned between it and the end of the run.
    """
    if until is None or step >= plan.total_steps:
        return decide
    pause = _pause_step(until, plan, step)

    def both(event: Evaluated) -> bool:
        wanted = True if decide is None else decide(event)
        return wanted is not False and not pause <= event.step < plan.total_steps

    return both


def saved_step(run: RunDir) -> int:
    """Returns the step of the newest checkpoint of ``run``, 0 if there is none."""
    return max(checkpoint.steps(run.checkpoints), default=0)


def check_until(text: str) -> None:
    """RecipeError if ``text`` is not a part of a run; whether the run has such a part is known only with its plan."""
    _length(text)


def _length(text: str) -> Duration:
    try:
        percent = _PERCENT.fullmatch(text)
        if percent is None:
            found = Duration.parse(text)
            if found.unit not in ("epochs", "steps"):
                raise ValueError(text)
        else:
            found = Duration(float(percent[1]) / 100, "run")
        if found.value <= 0 or (found.unit == "run" and found.value >= 1):
            raise ValueError(text)
    except ValueError:
        raise RecipeError(
            f"--until {text}", f"a part of the run: {_FORMS}", "leave it out to train to the end"
        ) from None
    return found


def _pause_step(text: str, plan: Plan, step: int) -> int:
    """Returns the step of the first planned evaluation at ``text`` of the run or later."""
    length, total = _length(text), plan.total_steps
    places: dict[str, float] = {"run": length.value * total, "steps": length.value}
    if length.unit in places:
        first = math.ceil(places[length.unit] - 1e-9)
    else:
        first = next((one for one in plan.eval_steps if _epoch(plan, one) >= length.value - 1e-9), total)
    pause = next((one for one in plan.eval_steps if first <= one < total), None)
    if pause is not None and step < pause:
        return pause
    allowed = f"a part of this run, which has {total:,} steps ({_epoch(plan, total):g} epochs)"
    if pause is not None:
        raise RecipeError(
            f"--until {text}: the run is at step {step:,} already", f"{allowed}, behind that step", "name a later one"
        )
    before = [one for one in plan.eval_steps if one < total]
    last = f", as step {before[-1]:,}" if before else "; this run has none"
    raise RecipeError(
        f"--until {text}: no evaluation is planned between it and the end of the run",
        f"{allowed}, with an evaluation at it or behind it{last}",
        "name an earlier one, evaluate more often (--set eval.every=1ep), or leave it out",
    )


def _epoch(plan: Plan, step: int) -> float:
    return plan.stage_before(step).epoch_at(step)
