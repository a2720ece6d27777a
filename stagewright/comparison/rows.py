"""The rows of a comparison: what each entry reached, what it costs, and where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from stagewright.comparison.entries import Entry
from stagewright.report.read import RunRecord
from stagewright.report.results import score, stopped_text, time_split
from stagewright.rundir.costs import CostsFields, read_costs
from stagewright.rundir.directory import RunDir
from stagewright.rundir.initial_weights import weights_sentence
from stagewright.text import counted, number_text, shortened

FACTS = ("px", "crop", "precision", "hardware", "versions", "epochs", "updates")
"""What is shown of each row, and marked where rows differ in it."""
_REASON = 100


@dataclass(frozen=True)
class Scored:
    """Test top-1 in percent, mean over the seeds, with the interval of the comparison's level."""

    percent: float
    low: float
    high: float


@dataclass(frozen=True)
class Against:
    """An entry's test top-1 minus that of the first row, in percentage points."""

    points: float
    low: float
    high: float
    p: float
    """Two-sided, by Holm's method over all pairs."""
    verdict: str
    """``better``, ``worse``, ``equal within 0.5``, ``not told apart``."""
    smallest: float | None = None
    """Of those not told apart: the difference that 80 % of such studies would see; None between single runs."""
    seeds: int | None = None
    """Of those: about how many seeds would see a difference as large as the margin; None where no number would."""


@dataclass(frozen=True)
class Row:
    """An entry of the table. What is not known is None or empty."""

    entry: Entry
    tested: int
    """Number of runs whose test answers are compared."""
    status: str
    scored: Scored | None = None
    spread: float | None = None
    """Standard deviation of the test top-1 between seeds, in percentage points."""
    ranks: tuple[int, int] | None = None
    """Best and worst place that it can have among those that are compared."""
    against: Against | None = None
    top5: float | None = None
    """Test top-5 in percent, where there are more than five classes."""
    val_top1: float | None = None
    """Mean validation top-1 in percent, by which its weights were chosen."""
    parameters: int | None = None
    trained_last: int | None = None
    """Parameters that the last stage trains."""
    costs: CostsFields | None = None
    seconds: float | None = None
    """Mean time of its runs over all their processes."""
    provenance: str = ""
    """Where its initial weights come from and what each stage trained, in words."""
    facts: tuple[str, ...] = ("",) * len(FACTS)
    """As :data:`FACTS`."""
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name


def described(entry: Entry, tested: int) -> Row:
    """Returns the row of an entry without its test results, of which ``tested`` runs have some."""
    records = entry.records
    problems = [f"{one.name}: {one.problem}" for one in entry.runs if one.problem]
    problems += [f"{record.name}: {problem}" for record in records for problem in record.problems]
    costs = None
    for record in records:
        costs = costs or read_costs(RunDir(record.path), problems.append)
    vals = [found.percent for record in records if (found := score(record, "val")) is not None]
    times = [seconds for record in records if (seconds := sum(part for _, part in time_split(record))) > 0]
    first = next((one for one in records if one.weights is not None), records[0] if records else None)
    weights = None if first is None else first.weights
    return Row(
        entry,
        tested,
        _status(entry),
        val_top1=mean(vals) if vals else None,
        parameters=None if first is None else first.summary.get("parameters"),
        trained_last=weights.stages[-1].parameters if weights is not None and weights.stages else None,
        costs=costs,
        seconds=mean(times) if times else None,
        provenance="" if weights is None else weights_sentence(weights),
        facts=tuple(_joined(_facts(record)[at] for record in records) for at in range(len(FACTS))),
        problems=tuple(problems),
    )


def _status(entry: Entry) -> str:
    """Returns how far its runs are: ``finished``, ``2 finished, 1 failed: it diverged``."""
    states = []
    for one in entry.runs:
        stopped = "" if one.record is None else stopped_text(one.record)
        reason = (
            f": {shortened(' '.join(one.problem.split()), _REASON)}" if one.status == "failed" and one.problem else ""
        )
        states.append((stopped or one.status) + reason)
    if len(set(states)) == 1:
        return states[0]
    return ", ".join(f"{count} {state}" for state, count in Counter(states).most_common())


def _joined(values: Any) -> str:
    return " / ".join(dict.fromkeys(value for value in values if value))


def _facts(record: RunRecord) -> tuple[str, ...]:
    recipe, env, stages = record.plan.get("recipe", {}), record.env, record.stages
    ours = recipe.get("eval") or {}
    size = ours.get("image_size") or (stages[-1].get("image_size") if stages else None)
    crop = "" if ours.get("crop") is None else f"{ours.get('fit', 'crop')} {ours['crop']:g}"
    versions = [f"{name} {env[name]}" for name in ("stagewright", "torch", "torchvision", "timm") if env.get(name)]
    steps = record.step if record.status == "finished" else record.total_steps  # it may have been finished early
    epochs = sum(_epochs(stage, steps) for stage in stages)
    return (
        "" if size is None else str(size),
        crop,
        str(record.summary.get("precision") or ""),
        str(record.env.get("device_name") or env.get("cpu") or ""),
        ", ".join(versions),
        number_text(epochs, ".4g") if epochs else "",
        f"{steps:,}" if steps else "",
    )


def _epochs(stage: dict[str, Any], steps: int) -> float:
    """Returns the passes over its pictures that a stage makes in the first ``steps`` updates of its run."""
    images = stage.get("num_images")
    own = min(max(0, steps - stage["first_step"]), stage["num_steps"])
    return own * stage.get("batch_size", 0) / images if images else 0.0


def differing_facts(rows: Sequence[Row]) -> list[str]:
    """Returns those of :data:`FACTS` in which rows that have them differ."""
    found = []
    for at, name in enumerate(FACTS):
        values = {row.facts[at] for row in rows if row.facts[at]}
        if len(values) > 1:
            found.append(name)
    return found


def runs_text(row: Row) -> str:
    """Returns how many of its runs are compared: ``3 seeds``, ``2 of 3 seeds``."""
    whole = len(row.entry.runs)
    return counted(whole, "seed") if row.tested in (0, whole) else f"{row.tested} of {counted(whole, 'seed')}"
