"""Figures of several runs laid over each other: validation results by epoch and by training time, learning rate by epoch.

Lines are told apart by colour and, from the eighth on, by dashes; the page's table of runs is their legend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from stagewright.report import theme
from stagewright.report.plots import envelope, limit_loss, smoothed
from stagewright.report.read import RunRecord
from stagewright.report.results import chosen

Series = NDArray[np.float64]

_COLOURS = (theme.TRAIN, theme.RAW, theme.EMA, theme.SWA, theme.CHOSEN, "#56b4e9", "#8c6d31")
_DASHES = ((), (5.0, 2.0), (1.5, 1.5))
MOST_RUNS = len(_COLOURS) * len(_DASHES)
_HEIGHT = 3.3


@dataclass(frozen=True, slots=True)
class _Look:
    """How the line of one run looks."""

    colour: str
    """As #rrggbb."""
    dashes: tuple[float, ...]
    """Lengths of strokes and gaps in line widths; empty for a solid line."""


def look(at: int) -> _Look:
    """Returns the look of the run at place ``at``, below :data:`MOST_RUNS`."""
    return _Look(_COLOURS[at % len(_COLOURS)], _DASHES[at // len(_COLOURS)])


@dataclass(frozen=True, slots=True)
class _Axis:
    """A horizontal axis: its name, its label, and the position of a run's steps on it; NaN where that is unknown."""

    name: str
    label: str
    at: Callable[[RunRecord, ArrayLike], Series]


def _axes(records: Sequence[RunRecord]) -> list[_Axis]:
    longest = max((float(record.clocks["train_seconds"][-1]) for record in records), default=0.0)
    unit, seconds = ("s", 1.0) if longest < 180 else ("min", 60.0) if longest < 36_000 else ("h", 3600.0)
    axes = [_Axis("epoch", "epoch", _epochs)]
    if longest > 0:
        label = f"training time ({unit})"
        axes.append(_Axis("minute", label, lambda record, steps: record.seconds_at(steps) / seconds))
    return axes


def _epochs(record: RunRecord, steps: ArrayLike) -> Series:
    known = np.isfinite(record.steps["epoch"])
    if not known.any():
        return np.full(np.shape(steps), np.nan)
    updates = np.concatenate([[0.0], record.steps["step"][known]])
    epochs = np.concatenate([[0.0], record.steps["epoch"][known]])
    at = np.asarray(steps, np.float64)
    return np.where(at > updates[-1], np.nan, np.interp(at, updates, epochs))


def draw_overlay(records: Sequence[RunRecord]) -> Iterator[theme.Drawing]:
    """Draws the figures of ``records``, at most :data:`MOST_RUNS`: ``accuracy_epoch``, ``accuracy_minute``, ``loss_epoch``,
    ``loss_minute``, ``lr_epoch``, as far as there is something to show."""
    names = ", ".join(record.name for record in records)
    with theme.themed():
        for key, title, alt in (
            ("top1", "Validation accuracy", "Validation top-1 accuracy in percent"),
            ("loss", "Validation loss", "Validation cross-entropy"),
        ):
            for axis in _axes(records):
                if (figure := _evaluations(records, axis, key, title)) is not None:
                    name = f"{'accuracy' if key == 'top1' else key}_{axis.name}"
                    yield theme.render(name, f"{alt} of the runs {names} by {axis.label}", figure)
        if (figure := _rates(records)) is not None:
            yield theme.render("lr_epoch", f"Learning rate of the runs {names} by epoch", figure)


def _evaluations(records: Sequence[RunRecord], axis: _Axis, key: str, title: str) -> Figure | None:
    """Returns the figure of the validation result ``key`` of each run's chosen weights; for the loss with that of training,
    smoothed, below it."""
    figure, axes = _frame(title, f"by {axis.label.partition(' (')[0]}", axis.label)
    shown: list[Series] = []
    for at, record in enumerate(records):
        own = look(at)
        steps, values = _chosen_curve(record, key)
        x = axis.at(record, steps)
        if np.isfinite(x).any():
            style = {"color": own.colour, "dashes": own.dashes or (None, None)}
            axes.plot(x, values, linewidth=1.6, zorder=4, marker="o" if len(steps) <= 30 else None, ms=2.6, **style)
            shown.append(values)
        if key == "loss" and len(record.steps["step"]):
            train_steps, means = smoothed(record, key)
            axes.plot(axis.at(record, train_steps), means, color=own.colour, alpha=0.35, linewidth=0.8, zorder=2)
        _star(axes, record, axis, key, own)
    if not shown:
        return None
    _end(axes, [axis.at(record, record.step) for record in records])
    found = np.concatenate(shown)
    found = found[np.isfinite(found)]
    if key == "loss":
        limit_loss(axes, found, max(len(record.classes) for record in records))
        axes.set_ylabel("cross-entropy (nats)")
    elif len(found):
        low, high = float(found.min()), float(found.max())
        margin = max(1.0, 0.08 * (high - low))
        axes.set_ylim(max(0.0, low - margin), min(100.5, high + margin))
        axes.set_ylabel("correct (%)")
    return figure


def _chosen_curve(record: RunRecord, key: str) -> tuple[Series, Series]:
    """Returns (steps, values) of the better of each evaluation's weights."""
    found = [
        (float(event.step), float(getattr(event.results[event.chosen], key)))
        for event in record.evaluations
        if event.chosen in event.results
    ]
    table = np.array(found, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _star(axes: Axes, record: RunRecord, axis: _Axis, key: str, own: _Look) -> None:
    best = chosen(record)
    if best is None or best.result is None:
        return
    x = axis.at(record, [best.step])
    value = float(getattr(best.result, key))
    axes.plot(x, [value], "*", color=own.colour, markeredgecolor=theme.INK, markeredgewidth=0.6, ms=9, zorder=6)


def _rates(records: Sequence[RunRecord]) -> Figure | None:
    figure, axes = _frame("Learning rate", "by epoch", "epoch")
    highest = 0.0
    for at, record in enumerate(records):
        own, x = look(at), _epochs(record, record.steps["step"])
        if np.isfinite(x).any():
            values = record.steps["lr"]
            style = {"color": own.colour, "dashes": own.dashes or (None, None)}
            axes.plot(*envelope(x, values, 200), linewidth=1.5, zorder=3, **style)
            highest = max(highest, float(np.nanmax(values)))
    if not highest > 0:
        return None
    _end(axes, [_epochs(record, record.step) for record in records])
    axes.set_ylim(-0.04 * highest, 1.08 * highest)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:.3g}"))
    return figure


def _frame(title: str, note: str, label: str) -> tuple[Figure, Axes]:
    figure = theme.new_figure(_HEIGHT)
    theme.title(figure, title, note)
    axes = theme.place(figure, left=0.62, right=0.14, top=0.42, bottom=0.46)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label)
    return figure, axes


def _end(axes: Axes, ends: Sequence[ArrayLike]) -> None:
    """Lets the horizontal axis begin at 0 and end a little after the last of ``ends`` that is known."""
    known = np.asarray(ends, np.float64)
    known = known[np.isfinite(known)]
    if len(known) and known.max() > 0:
        axes.set_xlim(0, 1.02 * float(known.max()))
