"""The plot of a learning-rate range test: raw and smoothed loss against the learning rate, with the suggestions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from stagewright.plan.lr_curve import MEANING, NAME, Method, RangeTest, Suggestions, lr_text
from stagewright.report import theme

_HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 3.5, 0.84, 0.46, 0.62, 0.14
_ROW = 0.15
"""Distance in inches between the labels of two suggestions; each is on its own line, so that they never overlap."""


def draw_range_test(test: RangeTest, found: Suggestions | None, note: str = "") -> theme.Drawing:
    """Draws the figure ``lr-find``. Without ``found`` it shows only the curve; ``note`` is printed next to the title."""
    with theme.themed():
        figure = theme.new_figure(_HEIGHT)
        theme.title(figure, "Learning-rate range test", note)
        axes = theme.place(figure, left=_LEFT, right=_RIGHT, top=_TOP if found else 0.36, bottom=_BOTTOM)
        axes.set_xscale("log")
        axes.set_xlim(test.lrs[0], test.lrs[-1])
        axes.plot(test.lrs, test.losses, color=theme.TRAIN, alpha=0.3, linewidth=0.8, zorder=2, label="each batch")
        axes.plot(test.lrs, test.smoothed, color=theme.TRAIN, linewidth=1.7, zorder=3, label="smoothed")
        until = test.lrs[min(test.first, len(test.lrs) - 1)]
        axes.axvspan(test.lrs[0], until, color=theme.INK, alpha=0.06, linewidth=0, label="ignored")
        _limit(axes, test)
        if found is not None:
            _mark(axes, test, found)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss before the update")
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower left", frameon=False, fontsize=8.2, handlelength=1.5, handletextpad=0.5, borderpad=0.3)
        alt = "Loss of a training whose learning rate rises with every update"
        if found is not None:
            alt += "; " + ", ".join(f"{name} suggests {lr_text(lr)}" for name, lr in found.lrs.items())
            alt += f"; {found.chosen} is chosen"
        return theme.render(NAME, alt, figure)


def _limit(axes: Axes, test: RangeTest) -> None:
    """Sets the loss axis so that it shows the whole fall and the beginning of the rise, but not the divergence after it."""
    losses, smoothed = (values[np.isfinite(values)] for values in (test.losses, test.smoothed))
    if not len(losses):
        return
    head = max(3, len(losses) // 2)
    middle = float(np.median(losses[:head]))
    high = max(
        min(float(losses[:head].max()), 1.5 * middle), middle
    )  # a first step that explodes must not set the scale
    low = min(float(losses.min()), float(smoothed.min()))
    margin = 0.08 * (high - low) or 0.1
    # Show the beginning of the rise, up to a quarter of the fall.
    top = high + max(margin, min(0.25 * (high - low), float(smoothed.max()) - high + margin))
    axes.set_ylim(low - margin, top)


def _mark(axes: Axes, test: RangeTest, found: Suggestions) -> None:
    """Draws a line for each suggestion, from the curve up to its label; the chosen one is emphasised."""
    known = np.isfinite(test.smoothed)
    low, high = axes.get_ylim()
    for name, y in _label(axes, found):
        lr, chosen = found.lrs[name], name == found.chosen
        value = float(np.interp(np.log(lr), np.log(test.lrs[known]), test.smoothed[known]))
        axes.plot(
            [lr, lr],
            [0.0 if chosen else min(max((value - low) / (high - low), 0.0), 1.0), y],
            transform=axes.get_xaxis_transform(),
            color=theme.CHOSEN if chosen else theme.MUTED,
            linewidth=1.6 if chosen else 0.8,
            linestyle="-" if chosen else (0, (4, 3)),
            zorder=1 if chosen else 1.5,
            clip_on=False,
        )
        axes.plot(
            [lr],
            [value],
            "*" if chosen else "o",
            color=theme.CHOSEN if chosen else theme.MUTED,
            markeredgecolor=theme.INK if chosen else theme.PAPER,
            markeredgewidth=0.7,
            ms=11 if chosen else 5,
            zorder=6 if chosen else 5,
        )


def _label(axes: Axes, found: Suggestions) -> list[tuple[Method, float]]:
    """Writes the labels, each in its own row above the axes; returns (method, height of its row as a share of the axes).

    It uses the side of the lines, left or right, and the long or short text with which all labels fit.
    """
    height = axes.get_position().height * _HEIGHT
    order: list[Method] = sorted(found.lrs, key=lambda name: found.lrs[name])
    texts: list[Text] = []
    for long, left in ((True, True), (True, False), (False, True), (False, False)):
        for text in texts:
            text.remove()
        texts, rows = [], []
        for at, name in enumerate(order):
            # The rows are ordered so that no line crosses another label.
            y = 1 + (0.06 + _ROW * (at if left else len(order) - 1 - at)) / height
            texts.append(_words(axes, found, name, y, long=long, left=left))
            rows.append((name, y + 0.6 * _ROW / height))
        if all(_fits(axes, text) for text in texts):
            break
    return rows


def _words(axes: Axes, found: Suggestions, name: Method, y: float, *, long: bool, left: bool) -> Text:
    chosen = name == found.chosen
    meaning = f": {MEANING[name]}" if long else ""
    return axes.annotate(
        f"{name} {lr_text(found.lrs[name])}{meaning}" + (" (chosen)" if chosen else ""),
        (found.lrs[name], y),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",
        size=8.2,
        weight="bold" if chosen else "normal",
        color=theme.INK if chosen else theme.MUTED,
        annotation_clip=False,
    )


def _fits(axes: Axes, text: Text) -> bool:
    box = text.get_window_extent()
    margin = (
        0.04 * box.width
    )  # at the resolution of the picture, letters are a little wider than at that of the measurement
    return box.x0 >= margin and box.x1 <= axes.figure.bbox.width - margin


def _plain(value: float, _: object = None) -> str:
    """Formats a power of ten: 1e-5, 0.001, 1, 10."""
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
