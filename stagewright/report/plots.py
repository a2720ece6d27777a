"""The curves of a run: loss, accuracy, learning rate and momentum, each by step and by training time.

Data are reduced to what a figure can show before they are drawn, so that a run of 100,000 steps takes no longer than one of
1,000. Smoothing never crosses the border between two stages, where mixing and batch size may change the meaning of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from stagewright.report import curve_plots, mistakes, theme
from stagewright.report.drawing import Plots
from stagewright.report.lr_plot import draw_range_test
from stagewright.report.read import RunRecord
from stagewright.report.results import WEIGHT_NAMES, Chosen, chosen
from stagewright.storage.files import make_folder, write_whole

Series = NDArray[np.float64]

_AVERAGES = {"ema": theme.EMA, "swa": theme.SWA}
_RAW_BINS, _SMOOTH_POINTS = 400, 600


@dataclass(frozen=True)
class _Along:
    """The horizontal axis: ``step``, or ``minute`` for training time, whose unit depends on the run's length."""

    name: str
    label: str
    seconds: float = 1.0
    """Number of seconds in one unit of the time axis."""

    def at(self, record: RunRecord, steps: ArrayLike) -> Series:
        """Returns the positions on the axis after ``steps`` finished updates; NaN if the time is unknown."""
        if self.name == "step":
            return np.asarray(steps, dtype=np.float64)
        return record.seconds_at(steps) / self.seconds


def axes_of(record: RunRecord) -> list[_Along]:
    """Returns the horizontal axes for which the run has data."""
    axes = [_Along("step", "step")]
    longest = float(record.clocks["train_seconds"][-1])
    if longest > 0:
        unit, seconds = ("s", 1.0) if longest < 180 else ("min", 60.0) if longest < 36_000 else ("h", 3600.0)
        axes.append(_Along("minute", f"training time ({unit})", seconds))
    return axes


def draw(record: RunRecord) -> Iterator[theme.Drawing]:
    """Draws all figures for which the record has data: ``loss_step``, ``loss_minute``, ``accuracy_*``, ``lr_*``, ``lr-find``,
    ``confusion``, ``classes``, ``roc``, ``precision-recall``."""
    with theme.themed():
        if record.step > 0:
            for along in axes_of(record):
                yield _drawing(record, along, "loss", _loss(record, along))
                yield _drawing(record, along, "accuracy", _accuracy(record, along))
                if len(record.steps["step"]):
                    yield _drawing(record, along, "lr", _lr(record, along))
        if record.range_test is not None:
            yield draw_range_test(*record.range_test)
        yield from mistakes.draw(record)
        yield from curve_plots.draw(record)


def learning_curves(record: RunRecord) -> Plots:
    """Draws ``loss_step`` and ``accuracy_step`` alone, which takes a tenth of a second; nothing before the first step."""
    if record.step == 0:
        return Plots(())
    along = axes_of(record)[0]
    with theme.themed():
        parts = (("loss", _loss(record, along)), ("accuracy", _accuracy(record, along)))
        return Plots(tuple(_drawing(record, along, name, figure) for name, figure in parts))


def write_plots(record: RunRecord, folder: Path) -> list[theme.Drawing]:
    """Draws all figures, writes each to ``folder`` as NAME.png (completely or not at all) and returns them."""
    make_folder(folder)
    drawings = []
    for drawing in draw(record):
        write_whole(folder / f"{drawing.name}.png", drawing.png, durable=False)
        drawings.append(drawing)
    return drawings


_ALT = {
    "loss": "Cross-entropy of training and validation",
    "accuracy": "Top-1 accuracy of training and validation in percent",
    "lr": "Learning rate and momentum",
}


def _drawing(record: RunRecord, along: _Along, name: str, figure: Figure) -> theme.Drawing:
    unit = "step" if along.name == "step" else along.label
    return theme.render(f"{name}_{along.name}", f"{_ALT[name]} of run {record.name} by {unit}", figure)


def running_mean(values: Series, window: int) -> Series:
    """Returns the centred mean over ``window`` entries (fewer at the ends) without NaN; same length as ``values``."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    total = counts[high] - counts[low]
    return np.where(total > 0, (sums[high] - sums[low]) / np.maximum(total, 1), np.nan)


def envelope(x: Series, y: Series, bins: int) -> tuple[Series, Series]:
    """Reduces a line to at most ``2 * bins`` points that look the same: the lowest and highest of each bin, in order of x."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 2 * bins:
        return x, y
    edges = np.linspace(0, len(x), bins + 1).astype(np.int64)[:-1]
    which = np.repeat(np.arange(bins), np.diff(np.append(edges, len(x))))
    order = np.lexsort((y, which))
    ends = np.append(edges[1:], len(x)) - 1
    kept = np.unique(np.concatenate([order[edges], order[ends]]))
    return x[kept], y[kept]


def smoothed(record: RunRecord, column: str) -> tuple[Series, Series]:
    """Returns (steps, running means) of a column of steps.csv, reduced to fewer points; a NaN between stages interrupts the
    line."""
    steps, values = record.steps["step"], record.steps[column]
    window = max(1, min(len(steps) // 50, 500))
    borders = np.flatnonzero(np.diff(record.steps["stage"]) != 0) + 1
    xs: list[Series] = []
    ys: list[Series] = []
    for part in np.split(np.arange(len(steps)), borders):
        share = max(2, round(_SMOOTH_POINTS * len(part) / max(len(steps), 1)))
        kept = part[np.unique(np.linspace(0, len(part) - 1, min(share, len(part))).round().astype(np.int64))]
        xs += [steps[kept], np.array([np.nan])]
        ys += [running_mean(values[part], window)[kept - part[0]], np.array([np.nan])]
    return np.concatenate(xs), np.concatenate(ys)


def evaluated(record: RunRecord, weights: str, key: str) -> tuple[Series, Series]:
    """Returns (steps, values) of the validation result ``key`` of ``raw``, ``ema`` or ``swa`` weights."""
    found = [
        (float(event.step), float(getattr(event.results[weights], key)))
        for event in record.evaluations
        if weights in event.results
    ]
    table = np.array(found, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _loss(record: RunRecord, along: _Along) -> Figure:
    figure, axes = _frame(record, along, "Loss", panels=1)
    shown = _curves(record, along, axes[0], "loss")
    axes[0].set_ylabel("cross-entropy (nats)")
    limit_loss(axes[0], shown, len(record.classes))
    _finish(record, along, figure, axes, best_key="loss")
    return figure


def _accuracy(record: RunRecord, along: _Along) -> Figure:
    figure, axes = _frame(record, along, "Top-1 accuracy", panels=1)
    shown = _curves(record, along, axes[0], "top1")
    axes[0].set_ylabel("correct (%)")
    if len(shown):
        low, high = float(shown.min()), float(shown.max())
        margin = max(1.0, 0.06 * (high - low))
        axes[0].set_ylim(max(0.0, low - margin), min(100.5, high + margin))
    _finish(record, along, figure, axes, best_key="top1")
    return figure


def _curves(record: RunRecord, along: _Along, axes: Axes, key: str) -> Series:
    """Draws training and validation curves; returns the finite values that the axis should show."""
    shown: list[Series] = []
    if len(record.steps["step"]):
        x, y = envelope(along.at(record, record.steps["step"]), record.steps[key], _RAW_BINS)
        axes.plot(x, y, color=theme.TRAIN, alpha=0.2, linewidth=0.6, zorder=2)
        steps, means = smoothed(record, key)
        axes.plot(along.at(record, steps), means, color=theme.TRAIN, linewidth=1.5, zorder=3, label="train")
        shown.append(means)
    for weights, name in WEIGHT_NAMES.items():
        steps, values = evaluated(record, weights, key)
        if len(steps):
            marker = "o" if len(steps) <= 40 else None
            colour = _AVERAGES.get(weights, theme.RAW)
            x = along.at(record, steps)
            axes.plot(x, values, marker=marker, color=colour, ms=3, linewidth=1.5, zorder=4, label=f"val {name}")
            shown.append(values)
    joined = np.concatenate(shown) if shown else np.empty(0)
    return joined[np.isfinite(joined)]


def limit_loss(axes: Axes, shown: Series, num_classes: int) -> None:
    """Sets the loss axis to the range in which the curves ``shown`` are read: up to a little above the loss of a guess among
    ``num_classes``, or twice the median if that is more. What is above, as a first step that explodes, is cut off, and a note
    says how high it goes. Where the loss falls to less than a hundredth of that, the axis is logarithmic."""
    if not len(shown):
        return
    low, high = float(shown.min()), float(shown.max())
    ceiling = max(1.3 * float(np.log(max(num_classes, 2))), 2.0 * float(np.median(shown)))
    if high > ceiling > low:
        axes.text(
            0.99,
            0.97,
            f"up to {high:,.4g}, cut off",
            transform=axes.transAxes,
            ha="right",
            va="top",
            size=7.5,
            bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 1.5},
            zorder=7,
        )
        high = ceiling
    if 0 < low < high / 100:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin if low < margin else max(0.0, low - margin), high + margin)


def _lr(record: RunRecord, along: _Along) -> Figure:
    figure, axes = _frame(record, along, "Learning rate and momentum", panels=2)
    for panel, key, name in ((axes[0], "lr", "LR"), (axes[1], "momentum", "momentum")):
        x = along.at(record, record.steps["step"])
        parts = np.split(np.arange(len(x)), np.flatnonzero(np.diff(record.steps["stage"]) != 0) + 1)
        for part in parts:
            panel.plot(*envelope(x[part], record.steps[key][part], 200), color=theme.TRAIN, linewidth=1.5, zorder=3)
        panel.set_ylabel(name)
        panel.yaxis.set_major_locator(MaxNLocator(4))
    values = record.steps["lr"][np.isfinite(record.steps["lr"])]
    if len(values) and values.max() > 0:
        axes[0].set_ylim(-0.04 * values.max(), 1.08 * values.max())
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:.3g}"))
    beta = record.steps["momentum"][np.isfinite(record.steps["momentum"])]
    if len(beta):
        axes[1].set_ylim(max(-0.02, beta.min() - 0.05), min(1.02, beta.max() + 0.05))
    _finish(record, along, figure, axes, best_key=None)
    return figure


def _frame(record: RunRecord, along: _Along, name: str, *, panels: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with ``panels`` axes, one above the other, in which stages are shaded and named and restarts are
    marked."""
    height = 3.5 if panels == 1 else 3.9
    figure = theme.new_figure(height)
    theme.title(figure, name, "by step" if along.name == "step" else "by training time")
    margins = {"left": 0.62, "right": 0.14}
    top, bottom, gap = 0.78, 0.62 if along.name == "step" else 0.46, 0.14
    each = (height - top - bottom - gap * (panels - 1)) / panels
    axes = []
    for at in range(panels):
        below = bottom + (panels - 1 - at) * (each + gap)
        axes.append(theme.place(figure, top=height - below - each, bottom=below, **margins))
    end = float(along.at(record, _known_end(record, along)))
    for panel in axes:
        panel.set_xlim(0, end or 1.0)
        for at, (first, last, _) in enumerate(_bands(record, along, end)):
            if at % 2:
                panel.axvspan(first, last, color=theme.INK, alpha=0.05, linewidth=0, zorder=0)
            if at:
                panel.axvline(first, color=theme.MUTED, alpha=0.5, linewidth=0.7, zorder=1)
        restarts = along.at(record, [event.step for event in record.resumes])
        for where in np.unique(restarts[np.isfinite(restarts) & (restarts <= end)]):
            panel.axvline(where, color=theme.INK, alpha=0.75, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
    for panel in axes[:-1]:
        panel.tick_params(labelbottom=False)
    return figure, axes


def _known_end(record: RunRecord, along: _Along) -> float:
    return min(float(record.step), float(record.clocks["step"][-1])) if along.name == "minute" else float(record.step)


def _bands(record: RunRecord, along: _Along, end: float) -> list[tuple[float, float, dict[str, Any]]]:
    """Returns (first, last, stage) for each stage that has begun; first and last are positions on the axis."""
    bands = []
    for stage in record.stages:
        first = float(along.at(record, stage["first_step"]))
        last = float(along.at(record, stage["first_step"] + stage["num_steps"]))
        if first < end:
            bands.append((first, min(end, last) if np.isfinite(last) else end, stage))
    return bands


def _finish(record: RunRecord, along: _Along, figure: Figure, axes: list[Axes], best_key: str | None) -> None:
    """Adds tick labels, stage names, the point of the chosen weights, and the legend above the data."""
    best = chosen(record)
    if best is not None and best_key is not None and best.result is not None:
        _mark_chosen(record, along, axes[0], best, float(getattr(best.result, best_key)))
    elif best is not None:
        where = float(along.at(record, best.step))
        for panel in axes:
            panel.axvline(where, color=theme.CHOSEN, linewidth=1.4, zorder=2, label=_chosen_label(record, best))
    if record.resumes:
        axes[0].plot([], [], color=theme.INK, alpha=0.75, linewidth=0.8, linestyle=(0, (4, 3)), label="restart")
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=along.name == "step"))
    if along.name == "step":
        axes[-1].xaxis.set_major_formatter(_step_and_epoch(record))
    axes[-1].set_xlabel("step, and below it the epoch" if along.name == "step" and _has_epochs(record) else along.label)
    _name_stages(record, along, figure, axes[0])
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        figure.legend(
            list(unique.values()),
            list(unique),
            loc="upper left",
            bbox_to_anchor=(0.04 / theme.WIDTH, 1 - 0.24 / figure.get_figheight()),
            ncols=len(unique),
            frameon=False,
            fontsize=8.2,
            handlelength=1.5,
            handletextpad=0.4,
            columnspacing=1.1,
            borderpad=0.2,
        )


def _chosen_label(record: RunRecord, best: Chosen) -> str:
    return "chosen" if record.status == "finished" else "best so far"


def _mark_chosen(record: RunRecord, along: _Along, axes: Axes, best: Chosen, value: float) -> None:
    axes.plot(
        along.at(record, [best.step]),
        [value],
        "*",
        color=theme.CHOSEN,
        markeredgecolor=theme.INK,
        markeredgewidth=0.7,
        ms=11,
        zorder=6,
        clip_on=False,
        linestyle="",
        label=_chosen_label(record, best),
    )


def _has_epochs(record: RunRecord) -> bool:
    return bool(np.isfinite(record.steps["epoch"]).any())


def _step_and_epoch(record: RunRecord) -> FuncFormatter:
    finite = np.isfinite(record.steps["epoch"])
    steps = np.concatenate([[0.0], record.steps["step"][finite]])
    epochs = np.concatenate([[0.0], record.steps["epoch"][finite]])
    digits = 0 if epochs[-1] > 20 else 1 if epochs[-1] > 1 else 2

    def text(step: float, _: object = None) -> str:
        return f"{step:,.0f}\n{np.interp(step, steps, epochs):.{digits}f}" if len(steps) > 1 else f"{step:,.0f}"

    return FuncFormatter(text)


def _name_stages(record: RunRecord, along: _Along, figure: Figure, axes: Axes) -> None:
    """Writes each stage's name and image size above its band; a shorter text or nothing if there is too little space."""
    end = axes.get_xlim()[1]
    per_unit = axes.get_window_extent().width / end
    for first, last, stage in _bands(record, along, end):
        name, number = str(stage.get("name", "")), str(int(stage.get("index", 0)) + 1)
        size = f" · {stage['image_size']} px" if "image_size" in stage else ""
        for words in (name + size, name, number):
            label = axes.text((first + last) / 2, 1.015, words, transform=axes.get_xaxis_transform(), size=8)
            label.set(ha="center", va="bottom", color=theme.MUTED)
            if label.get_window_extent().width < (last - first) * per_unit - 4:
                break
            label.remove()
