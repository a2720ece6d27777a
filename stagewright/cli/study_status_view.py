"""Formats how far a study is for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from stagewright.measures.metrics import TITLES
from stagewright.system.tables import FittingTable
from stagewright.text import count_text, folded, percent_text, seconds_text

if TYPE_CHECKING:  # pydantic and numpy come with it
    from stagewright.study.status import JobStatus, StudyStatus

_BEST = 10
"""Most variants in the ranking."""
_STYLES = {"done": "green", "failed": "red", "paused": "yellow", "running": "bold"}


def status_view(status: StudyStatus) -> RenderableType:
    """Returns a table of the jobs, the ranking so far, and sentences."""
    parts: list[RenderableType] = [_jobs(status)]
    if len(status.ranking) > 1:
        parts.append(_ranking(status))
    return Group(*parts, *map(Text, _sentences(status)))


def _jobs(status: StudyStatus) -> RenderableType:
    table = FittingTable(Text(f"Study {status.study.name}: {status.ledger.root}"))
    confirmed = any(one.test_top1 is not None for one in status.jobs)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(f"val {status.study.metric}", justify="right", no_wrap=True)
    if confirmed:
        table.add_column("test top1", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for one in status.jobs:
        cells = [_score(status, one.score)]
        if confirmed:
            cells.append("" if one.test_top1 is None else percent_text(one.test_top1, 2))
        cells.append(seconds_text(one.seconds) if one.seconds else "")
        table.add_row(one.job.name, Text(_state(one), style=_STYLES.get(one.state, "")), *cells)
    return table


def _state(one: JobStatus) -> str:
    begun = one.state in ("running", "interrupted", "paused") and one.done > 0
    return f"{one.state} {100 * one.done:.0f} %" if begun else one.state


def _score(status: StudyStatus, score: float | None) -> str:
    if score is None:
        return ""
    return percent_text(score, 2) if status.study.metric == "top1" else f"{score:.4f}"


def _ranking(status: StudyStatus) -> RenderableType:
    table = FittingTable(Text(f"Best by {TITLES[status.study.metric]} on validation pictures, mean over seeds"))
    table.add_column("variant", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("runs", justify="right", no_wrap=True)
    for variant, score, count in status.ranking[:_BEST]:
        table.add_row(variant.name, _score(status, score), str(count))
    return table


def _sentences(status: StudyStatus) -> Iterator[str]:
    from stagewright.study.status import STATES

    counts = [f"{status.count(state)} {state}" for state in STATES if status.count(state)]
    yield f"{count_text(status.expected_jobs, 'run')}: {', '.join(counts)}."
    for one in status.jobs:
        if one.reason is not None:
            yield folded(f"{one.job.name} failed: {one.reason}", 100)
    confirmation = status.ledger.confirmation()
    if confirmation is not None:
        yield f"Confirmed with fresh seeds, on test pictures that nothing else opened: {', '.join(confirmation['variants'])}."
    left = status.count("waiting") + status.count("running") + status.count("interrupted")
    if (eta := status.eta_seconds) is not None and (left or status.expected_jobs > len(status.jobs)):
        at_it = count_text(max(1, status.count("running")), "process", "processes")
        yield f"About {seconds_text(eta)} to go with {at_it} at it."
