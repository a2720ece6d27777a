"""The evaluations of a run as a table for the terminal that grows by one line at a time, with a head that names its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.cells import cell_len

from stagewright.measures.metrics import TITLES
from stagewright.rundir.event_kinds import Evaluated
from stagewright.text import ABSENT, number_text, percent_text, seconds_text, shortened

_GAP = "  "
_REPEAT_AFTER = 30
"""Lines below a head after which it is written again: about a screen."""


@dataclass(frozen=True)
class Column:
    """One column: ``group`` and ``name`` stand above each other in the head."""

    group: str
    name: str
    cell: str
    width: int
    """Characters that it has room for; wider cells push the rest of their line to the right."""
    priority: int
    """Where a line is too narrow for all columns, those with the largest numbers are left out first; 0: never."""
    left: bool = False


class EpochTable:
    """Makes the lines of the table for a terminal of a given width; a file gets all columns."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._below = 0

    def lines(self, event: Evaluated, width: int | None) -> list[str]:
        """Returns the line of an evaluation for ``width`` characters (None: as long as it is), below the two lines of the head
        if these are due: at first, after about a screen, and where the columns have changed."""
        shown = fitting(columns(event), width)
        head, row = head_lines(shown), row_line(shown)
        due = head != self._head or self._below >= _REPEAT_AFTER
        self._head, self._below = head, 1 if due else self._below + 1
        return [*head, row] if due else [row]


def columns(event: Evaluated) -> list[Column]:
    """Returns all columns of an evaluation, with their cells."""
    own = event.metric if event.metric not in (None, "log_loss") else None  # the loss stands there already
    found = [
        Column("", "epoch", f"{event.epoch:.2f}", 6, 0),
        Column("", "stage", shortened(event.stage_name, 8), 8, 7, left=True),
        Column("train", "loss", loss_text(event.train_loss), 6, 0),
        Column("train", "top-1", percent_text(event.train_top1), 7, 3),
    ]
    for kind, result in event.results.items():
        name, averaged = ("val" if kind == "raw" else kind), kind != "raw"
        found += [
            Column(name, "loss", loss_text(result.loss), 6, 5 if averaged else 0),
            Column(name, "top-1", percent_text(result.top1, 1 if result.top1 > 99.994 else 2), 7, 0),
        ]
        if own is not None:
            title = TITLES.get(own, own)
            found.append(Column(name, title, number_text(result.metric, ".4f"), max(6, len(title)), 2))
    return [
        *found,
        Column("", "", "best" if event.best else "", 4, 4, left=True),
        Column("", "time", seconds_text(event.epoch_seconds), 6, 6),
        Column("", "img/s", _rate_text(event.images_per_second), 6, 1),
        Column("", "ETA", seconds_text(event.eta_seconds) if event.eta_seconds else "", 10, 0, left=True),
    ]


def fitting(found: list[Column], width: int | None) -> list[Column]:
    """Returns the columns that fit into ``width`` characters side by side; those without a priority in any case."""
    shown = list(found)
    while width is not None and _total(shown) > width and any(one.priority for one in shown):
        shown.remove(max(shown, key=lambda one: one.priority))
    return shown


def head_lines(shown: list[Column]) -> list[str]:
    """Returns the two lines of the head: the groups, each above its first column, and the names."""
    groups = [one.group if at == 0 or shown[at - 1].group != one.group else "" for at, one in enumerate(shown)]
    return [_line(shown, groups), _line(shown, [one.name for one in shown])]


def row_line(shown: list[Column]) -> str:
    """Returns the line of the cells."""
    return _line(shown, [one.cell for one in shown])


def loss_text(loss: float | None) -> str:
    """Returns a loss in at most seven characters: ``1.235``, ``36.870``, ``933.1``, ``12,345``, ``1.2e+07``."""
    if loss is None or not math.isfinite(loss):
        return ABSENT if loss is None or math.isnan(loss) else "inf"
    for limit, form in ((99.9995, ".3f"), (9999.95, ".1f"), (99999.5, ",.0f")):
        if abs(loss) < limit:
            return format(loss, form)
    return format(loss, ".1e")


def _rate_text(rate: float | None) -> str:
    return f"{rate / 1000:,.0f} k" if rate is not None and rate >= 99_999.5 else number_text(rate)


def _total(shown: list[Column]) -> int:
    return sum(one.width for one in shown) + len(_GAP) * (len(shown) - 1)


def _line(shown: list[Column], cells: list[str]) -> str:
    parts = []
    for one, cell in zip(shown, cells, strict=True):
        blank = " " * max(0, one.width - cell_len(cell))
        parts.append(cell + blank if one.left else blank + cell)
    return _GAP.join(parts).rstrip()
