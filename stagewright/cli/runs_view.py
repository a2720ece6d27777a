"""Terminal output of ``stagewright runs`` and ``stagewright why``."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stagewright.recipe.differences import value_text
from stagewright.report.results import SPLIT_NAMES, Score
from stagewright.report.runs import RunRow, Runs
from stagewright.system.tables import FittingTable
from stagewright.text import ABSENT, compact, count_text, printable

if TYPE_CHECKING:
    from stagewright.api.diff import Difference, Different, ResultPair, SameBits


def runs_view(listed: Runs, every: int, folder: Path) -> RenderableType:
    """Returns a table of ``listed``, of ``every`` runs in ``folder``. What is the same in all rows is said once, above."""
    below: list[str] = []
    if every > len(listed):
        below.append(f"{len(listed):,} of {count_text(every, 'run')}")
    if listed.skipped:
        below.append(f"{count_text(listed.skipped, 'folder')} without a run left out")
    if not len(listed):
        what = "no run is like this" if every else f"no runs in {folder}"
        return Text("; ".join([what, *below]))
    columns: dict[str, list[str]] = {
        "data": [_short_data(row.data) for row in listed],
        "model": [printable(row.model) for row in listed],
        "px": [str(row.image_size or ABSENT) for row in listed],
        "on": [row.split or ABSENT for row in listed],
    }
    common = {name: cells[0] for name, cells in columns.items() if len(listed) > 1 and len(set(cells)) == 1}
    table = FittingTable()
    table.add_column("name", overflow="fold")
    table.add_column("status", no_wrap=True)
    shown = [name for name in columns if name not in common]
    for name in shown:
        table.add_column(name, overflow="fold", justify="right" if name == "px" else "left")
    for name in ("top-1 %", "95 %", "time", "when"):
        table.add_column(name, justify="right", no_wrap=True)
    for at, row in enumerate(listed):
        cells = [printable(row.name), _status(row), *(columns[name][at] for name in shown)]
        table.add_row(*(Text(cell) for cell in (*cells, *_score(row.score), _time(row.seconds), _when(row.created))))
    said = [f"all: {', '.join(f'{name} {value}' for name, value in common.items())}"] if common else []
    problems = [f"· {row.name}: {row.problem}" for row in listed if row.problem]
    return Group(*map(Text, said), table, *(Text(printable(line), style="dim") for line in (*problems, *below)))


def _status(row: RunRow) -> str:
    partly = row.status != "damaged" and row.done is not None and (row.done < 1 or row.status != "finished")
    return f"{row.status} {100 * (row.done or 0):.0f} %" if partly else row.status


def _short_data(data: str) -> str:
    return printable(data.rstrip("/").rpartition("/")[2] or data) if data else ABSENT


def _score(score: Score | None) -> tuple[str, str]:
    if score is None:
        return ABSENT, ""
    low, high = score.interval
    return f"{score.percent:.1f}", f"{low:.0f}-{high:.0f}"


def _time(seconds: float | None) -> str:
    return ABSENT if seconds is None else compact(round(seconds) if seconds < 3600 else 60 * round(seconds / 60))


def _when(created: str) -> str:
    """Returns the day of a moment in ISO 8601 in local time; of today the time, of other years the year too."""
    try:
        moment = datetime.datetime.fromisoformat(created).astimezone()
    except (ValueError, OverflowError):
        return ABSENT
    now = datetime.datetime.now().astimezone()
    if moment.date() == now.date():
        return moment.strftime("%H:%M")
    return moment.strftime("%d %b" if moment.year == now.year else "%Y-%m-%d")


def difference_view(found: Difference) -> RenderableType:
    """Returns the answer in a sentence, tables of what differs, and the results with their difference."""
    parts: list[RenderableType] = [Text(f"A  {printable(found.one)}\nB  {printable(found.other)}")]
    verdict = printable(found.verdict)
    parts.append(Text(f"{verdict[0].upper()}{verdict[1:]}.", style="bold"))
    for title, rows in (
        ("recipe", found.recipe),
        ("initial weights", found.weights),
        ("computing", found.computing),
        ("hardware", found.hardware),
        ("versions", found.versions),
    ):
        parts += [_different(title, rows)] if rows else []
    parts += [Text(f"the same: {', '.join(found.same)}")] if found.areas and found.same else []
    idle = (f"{row.name} {value_text(row.one)} and {value_text(row.other)}" for row in found.without_effect)
    parts += [Text(f"without effect on the result: {printable('; '.join(idle))}")] if found.without_effect else []
    if len(found.data) > 1:
        parts += [Text("data:"), *(_indented(printable(line)) for line in found.data)]
    else:
        parts += [Text(f"data: {printable(line)}") for line in found.data]
    parts += [_result(pair) for pair in found.results] or [Text("results: none yet")]
    parts += [] if found.bits is None else [Text(_bits_text(found.bits))]
    parts += [Text(f"· {printable(line)}", style="dim") for line in found.notes]
    return Group(*parts)


def _bits_text(bits: SameBits) -> str:
    models = {True: "equal to the bit", False: "not equal to the bit", None: "not compared: a file is missing"}[
        bits.models
    ]
    answers = [f"{SPLIT_NAMES[split]} {'equal' if same else 'not equal'}" for split, same in bits.answers.items()]
    return f"models: {models}" + (f"; answers to the bit: {', '.join(answers)}" if answers else "")


def _different(title: str, rows: Sequence[Different]) -> Table:
    table = FittingTable()
    for name in (title, "A", "B"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in (row.name, value_text(row.one), value_text(row.other))))
    return table


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def _result(pair: ResultPair) -> RenderableType:
    def one(score: Score | None) -> str:
        return ABSENT if score is None else "{:.2f} % ({:.1f} to {:.1f})".format(score.percent, *score.interval)

    line = f"{SPLIT_NAMES[pair.split]}: A {one(pair.one)}, B {one(pair.other)}"
    if (paired := pair.paired) is None:
        return Text(f"{line}; no answers to the same pictures")
    return Group(
        Text(line),
        _indented(
            f"B - A on the same {count_text(paired.images, 'picture')}: {paired.points:+.2f} points "
            f"({paired.low:+.2f} to {paired.high:+.2f}); {paired.gained:,} right in B alone, {paired.lost:,} in A alone"
        ),
    )
