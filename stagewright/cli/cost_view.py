"""Formats the costs of a plan on a machine for the terminal: a table of stages and a few sentences."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.plan.cost import Costs, Forecast, Pace, StageCost, forecast, noise_warning, pace, pace_sentence
from stagewright.plan.plan import Plan, StagePlan
from stagewright.system.tables import FittingTable
from stagewright.text import ABSENT, count_text, number_text, percent_text, span_text


def cost_view(plan: Plan, costs: Costs, price: float | None = None) -> RenderableType:
    """Returns a rich table with one row per stage, and sentences below it."""
    expected = forecast(plan, costs)
    table = FittingTable(Text(f"On this machine: {span_text(expected.total_seconds)}"))
    table.add_column("stage", no_wrap=True)
    for name in ("time", "step", "compute", "load", "img/s", "GB", "GB eval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("pace", no_wrap=True)
    for stage, whole, ahead in zip(plan.stages, costs.stages, expected.stages, strict=True):
        cost = whole.of(stage)
        table.add_row(
            stage.name,
            span_text(ahead.total_seconds),
            *(short_time(seconds) for seconds in (cost.step_seconds, cost.compute_seconds, cost.load_seconds)),
            number_text(stage.batch_size / max(cost.step_seconds, 1e-9)),
            f"{cost.train_gb:.2f}",
            f"{cost.eval_gb:.2f}",
            pace(cost),
        )
    return Group(table, *map(Text, sentences(plan, costs, expected, price)))


def sentences(plan: Plan, costs: Costs, expected: Forecast, price: float | None) -> list[str]:
    """Returns sentences on time by activity, cost (with ``price`` per hour), the bottleneck, memory and disk space."""
    total = expected.total_seconds
    parts = (
        ("training", expected.train_seconds),
        ("evaluation", expected.eval_seconds),
        ("checkpoints", expected.checkpoint_seconds),
        ("start and set-up", expected.startup_seconds + expected.setup_seconds),
        ("the finish", expected.finish_seconds),
    )
    split = ", ".join(f"{name} {span_text(part)} ({percent_text(100 * part / total, 0)})" for name, part in parts)
    lines = [f"On {costs.device} this takes {span_text(total)}: {split}."]
    if price is not None:
        lines.append(f"At ${price:g} an hour that is {money_text(total / 3600 * price)}.")
    kept = plan.recipe.checkpoints.keep + 2  # in addition, the best one and the new one while it is verified
    lines += _paces(plan, costs)
    lines.append(_memory(costs))
    lines.append(
        f"{count_text(expected.num_saves, 'save')} of {bytes_text(costs.checkpoint_bytes)} each take up to "
        f"{bytes_text(kept * costs.checkpoint_bytes)} on the disk."
    )
    if costs.is_noisy:
        lines.append(noise_warning(costs))
    return lines


def in_json(plan: Plan, costs: Costs, price: float | None) -> dict[str, Any]:
    """Returns ``{"costs", "forecast", "money", "pace"}`` for ``plan --json``."""
    expected = forecast(plan, costs)
    money = None if price is None else expected.total_seconds / 3600 * price
    return {
        "costs": costs.to_dict(),
        "forecast": expected.to_dict(),
        "money": money,
        "pace": _paces(plan, costs),
    }


def _paces(plan: Plan, costs: Costs) -> list[str]:
    """Returns a sentence for each group of stages with the same bottleneck, with the numbers of its longest stage."""
    groups: dict[Pace, list[tuple[StagePlan, StageCost]]] = {}
    for stage, whole in zip(plan.stages, costs.stages, strict=True):
        groups.setdefault(pace(whole.of(stage)), []).append((stage, whole.of(stage)))
    lines: list[str] = []
    for members in groups.values():
        stage, cost = max(members, key=lambda one: one[0].num_steps * one[1].step_seconds)
        names = "Everywhere" if len(groups) == 1 and len(members) > 1 else ", ".join(one.name for one, _ in members)
        lines.append(pace_sentence(names, cost, stage.batch_size))
    return lines


def _memory(costs: Costs) -> str:
    train, evaluated = (max(getattr(cost, name) for cost in costs.stages) for name in ("train_gb", "eval_gb"))
    where = "of this process, with its libraries" if costs.on_cpu else "of the device"
    return (
        f"Memory {where}: up to {train:.2f} GB in training, {evaluated:.2f} GB in evaluation. "
        f"Measured in {span_text(costs.probe_seconds)}."
    )


def money_text(amount: float) -> str:
    """``$0.02``, ``$12.50``, ``less than $0.01``."""
    return "less than $0.01" if amount < 0.01 else f"${amount:,.2f}"


def short_time(seconds: float | None) -> str:
    """``3.21 ms``, ``1.5 s``; a dash for None."""
    if seconds is None:
        return ABSENT
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def bytes_text(count: float) -> str:
    """``812 kB``, ``43 MB``, ``1.2 GB``, in powers of 1000 as on disk labels."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
