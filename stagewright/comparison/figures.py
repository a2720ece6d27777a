"""Figures of a comparison: accuracies with their intervals, alone, and against what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stagewright.comparison.compared import Compared
from stagewright.comparison.rows import Row
from stagewright.report import theme
from stagewright.report.drawing import Drawing
from stagewright.text import shortened, size_text

_LONGEST = 34
_MOST_BARS = 40
_ROW_INCHES = 0.24


@dataclass(frozen=True)
class _Cost:
    """What an accuracy is drawn against."""

    name: str
    title: str
    label: str
    field: str
    """Of :class:`stagewright.rundir.costs.CostsFields`."""


_COSTS = (
    _Cost("macs", "Accuracy against work", "multiply-adds for a picture", "macs"),
    _Cost("epoch_seconds", "Accuracy against training time", "seconds an epoch", "epoch_seconds"),
)


def draw(found: Compared) -> Iterator[Drawing]:
    """Draws what there is: ``intervals``, ``macs``, ``epoch_seconds``."""
    rows = [row for row in found.rows if row.scored is not None]
    if not rows:
        return
    level = f"{found.level:g} %"
    with theme.themed():
        figure = _intervals(rows[:_MOST_BARS], level)
        names = ", ".join(row.name for row in rows[:_MOST_BARS])
        yield theme.render("intervals", f"Test top-1 with {level} intervals of {names}", figure)
        for cost in _COSTS:
            known = [row for row in rows if _value(row, cost) is not None]
            if len({_value(row, cost) for row in known}) > 1:
                alt = f"Test top-1 with {level} intervals by {cost.label}"
                yield theme.render(cost.name, alt, _against(known, cost, level))


def _value(row: Row, cost: _Cost) -> float | None:
    value = None if row.costs is None else getattr(row.costs, cost.field)
    return float(value) if value else None


def _intervals(rows: Sequence[Row], level: str) -> Figure:
    """Returns each row's accuracy and interval, one below the other."""
    figure = theme.new_figure(0.9 + _ROW_INCHES * len(rows))
    longest = max(len(shortened(row.name, _LONGEST)) for row in rows)
    axes = theme.place(figure, left=0.25 + 0.068 * longest, right=0.15, top=0.42, bottom=0.42)
    theme.title(figure, "Test accuracy", f"{level} intervals")
    for at, row in enumerate(rows):
        assert row.scored is not None
        axes.plot([row.scored.low, row.scored.high], [at, at], color=theme.TRAIN, linewidth=1.6, solid_capstyle="butt")
        axes.plot([row.scored.percent], [at], "o", color=theme.TRAIN, ms=4.5)
    axes.set_yticks(range(len(rows)), [shortened(row.name, _LONGEST) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("correct (%)")
    return figure


def _against(rows: Sequence[Row], cost: _Cost, level: str) -> Figure:
    """Returns the accuracies by a cost; those that no cheaper row surpasses are filled and joined."""
    figure = theme.new_figure(3.3)
    axes = theme.place(figure, left=0.55, right=0.2, top=0.42, bottom=0.45)
    theme.title(figure, cost.title, f"{level} intervals; yellow: best for its cost")
    x = np.array([_value(row, cost) for row in rows], np.float64)
    y = np.array([row.scored.percent for row in rows if row.scored is not None])
    best = pareto(x, y)
    for at, row in enumerate(rows):
        assert row.scored is not None
        colour = theme.CHOSEN if best[at] else theme.TRAIN
        axes.plot([x[at]] * 2, [row.scored.low, row.scored.high], color=colour, linewidth=1.1, zorder=3)
        axes.plot([x[at]], [y[at]], "o", color=colour, ms=5, mfc=colour if best[at] else theme.PAPER, zorder=4)
    front = np.flatnonzero(best)[np.argsort(x[best])]
    axes.plot(x[front], y[front], color=theme.CHOSEN, linewidth=1.0, alpha=0.7, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value) if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = float(x.min()), float(x.max())
    axes.set_xlim(low / (high / low) ** 0.12 / 1.15, high * (high / low) ** 0.35 * 1.15)
    axes.set_xlabel(cost.label)
    axes.set_ylabel("correct (%)")
    _names(axes, rows, x, y)
    return figure


def _names(axes: Axes, rows: Sequence[Row], x: np.ndarray, y: np.ndarray) -> None:
    """Writes the names beside the points, from the highest down, where no earlier name stands."""
    figure = axes.figure
    taken: list[tuple[float, float]] = []
    for at in np.argsort(-y):
        place = axes.transData.transform((x[at], y[at]))
        below = next(
            (other for other in taken if abs(other[0] - place[0]) < 90 and abs(other[1] - place[1]) < 11), None
        )
        shift = 0.0 if below is None else min(0.0, below[1] - 11 - place[1])
        taken.append((place[0], place[1] + shift))
        axes.annotate(
            shortened(rows[at].name, 26),
            (x[at], y[at]),
            xytext=(6, shift * 72 / figure.dpi - 3),
            textcoords="offset points",
            size=7.5,
            color=theme.MUTED,
        )


def pareto(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns (N,) whether no other has at least the score for at most the cost, with one of both better."""
    kept = np.ones(len(costs), np.bool_)
    for at in range(len(costs)):
        as_good = (costs <= costs[at]) & (scores >= scores[at])
        kept[at] = not (as_good & ((costs < costs[at]) | (scores > scores[at]))).any()
    return kept
