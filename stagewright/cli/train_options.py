"""What the options of ``train`` and ``resume`` mean, for the commands that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagewright.cli.options import PROBE_SECONDS, budget_limit, refuse_alone
from stagewright.errors import RecipeError


def asked_budget(budget: str | None, price: float | None, probe_seconds: float, epochs: str | None) -> Any:
    """Returns the budget of a training, or None; RecipeError for options that need one."""
    refuse_alone("--price", price is not None and budget is None, "--budget")
    refuse_alone("--probe-seconds", probe_seconds != PROBE_SECONDS and budget is None, "--budget")
    return budget_limit(budget, price, epochs)


def check_resume(resume: str, out: Path | None) -> None:
    """RecipeError for a ``--resume`` that is none, or that does not know of which run."""
    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume {resume}", "auto or never", "stagewright resume RUN continues a given run")
    if resume == "auto" and out is None:
        raise RecipeError("--resume auto without --out", "--out DIR, the run to continue", "name the directory")


def metric_observers(enabled: bool) -> Any:
    """Returns the observers for ``--metric-lines``."""
    from stagewright.observers.metric_lines import MetricLines

    return [MetricLines()] if enabled else []
