"""The length of a run that ends within a budget, from what this machine is measured to take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagewright.data.dataset import Dataset
from stagewright.plan.budget import Budget, apply, fit
from stagewright.plan.cost import noise_warning
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.preflight.cost_probe import probe
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import recorded_choice
from stagewright.text import span_text


def within_budget(
    plan: Plan,
    dataset: Dataset,
    execution: Execution,
    budget: Budget,
    out: Path | None,
    say: Callable[[str], None],
) -> tuple[Plan, dict[str, Any]]:
    """Returns ``plan`` scaled to the length that ends within ``budget``, and the data about it for ``env.json``.

    If ``out`` contains a run that was begun with this budget, its length is used again, since a resumed run must not change.
    Otherwise this machine is measured. RecipeError if the budget is too small.
    """
    if out is not None and (choice := recorded_choice(RunDir(out), budget)) is not None:
        return apply(plan, choice), RunDir(out).read_env()["budget"]
    seconds = budget.probe_seconds(execution.probe_seconds)
    say(f"Measuring this machine for about {span_text(seconds)}.")
    folder, startup = out or Path("runs"), budget.spent_seconds
    costs = probe(plan, dataset, execution, folder, seconds=seconds, startup_seconds=startup)
    fitted = fit(plan, costs, budget, save_minutes=execution.save_minutes)
    if costs.is_noisy:
        say(noise_warning(costs))
    say(fitted.sentence()[:1].upper() + fitted.sentence()[1:])
    return fitted.plan, fitted.to_dict()
