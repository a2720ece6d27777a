"""Figures of the finished model's mistakes: the confusion matrix, or the most confused pairs, and accuracy by class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stagewright.report import theme
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES, ClassRow, Score, class_rows, confused_pairs, confusion, shown_split
from stagewright.report.tables import Predictions
from stagewright.text import printable, shortened

MATRIX_CLASSES = 40
"""Largest number of classes for which the matrix is readable; with more, the most confused pairs are shown instead."""
COUNT_CLASSES = 12
ALL_CLASSES = 36
WORST, BEST, PAIRS = 20, 10, 20
_CHAR = 0.068
"""Average width in inches of a character of 8.5 pt text."""


def draw(record: RunRecord) -> Iterator[theme.Drawing]:
    """Draws the figures ``confusion`` and ``classes`` if there are predictions. Call it inside
    :func:`stagewright.report.theme.themed`."""
    predictions = shown_split(record)
    if predictions is None or not len(predictions) or not record.classes:
        return
    split = SPLIT_NAMES[predictions.split]
    names = [printable(name) for name in record.classes]
    if len(names) <= MATRIX_CLASSES:
        matrix = confusion(predictions, len(names))
        yield theme.render("confusion", f"Confusion matrix of the {split} pictures", _matrix(matrix, names, split))
    elif pairs := confused_pairs(predictions, PAIRS):
        labels = [(f"{shortened(names[p.true], 22)} → {shortened(names[p.predicted], 22)}") for p in pairs]
        links = [_link(pair.true, pair.predicted) for pair in pairs]
        figure = _pairs(labels, [p.count for p in pairs], [p.percent for p in pairs], links, split)
        yield theme.render("confusion", f"The pairs of classes most often confused on the {split} pictures", figure)
    alt = f"Accuracy by class on the {split} pictures with 95 % intervals"
    yield theme.render("classes", alt, _classes(class_rows(record, predictions), predictions))


def _matrix(matrix: NDArray[np.int64], names: list[str], split: str) -> Figure:
    count = len(names)
    labels = [shortened(name, 20 if count <= COUNT_CLASSES else 16) for name in names]
    margin = 0.42 + _CHAR * max(map(len, labels))
    cell = min(0.44, max(0.13, (theme.WIDTH - margin - 0.15) / count))
    width = max(theme.WIDTH, margin + cell * count + 0.15)
    height = 0.62 + cell * count + margin
    figure = theme.new_figure(height, width)
    theme.title(figure, "Confusion", f"{split} pictures, shaded by share of the row")
    right = width - margin - cell * count
    axes = theme.place(figure, left=margin, right=right, top=0.62, bottom=margin)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    true, predicted = np.nonzero(matrix)
    corners = np.array([[0.03, 0.03], [0.97, 0.03], [0.97, 0.97], [0.03, 0.97]])
    cells = np.stack([predicted, true], axis=1)[:, None, :] + corners
    colours = [theme.RIGHT if t == p else theme.WRONG for t, p in zip(true, predicted, strict=True)]
    alphas = 0.06 + 0.94 * shares[true, predicted]
    drawn = PolyCollection(list(cells), facecolors=list(zip(colours, alphas, strict=True)), linewidths=0)
    drawn.set_urls([None if t == p else _link(t, p) for t, p in zip(true, predicted, strict=True)])
    axes.add_collection(drawn)
    axes.set(xlim=(0, count), ylim=(count, 0))
    axes.grid(False)
    axes.tick_params(length=0)
    size = 8.5 if cell > 0.2 else 6.0
    axes.set_xticks(np.arange(count) + 0.5, labels, rotation=90, size=size, color=theme.INK)
    axes.set_yticks(np.arange(count) + 0.5, labels, size=size, color=theme.INK)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= COUNT_CLASSES:
        for t, p in zip(true, predicted, strict=True):
            colour = theme.ON_COLOUR if shares[t, p] > 0.55 else theme.INK
            size = 8.5 if matrix[t, p] < 1000 else 6.5
            number = axes.text(p + 0.5, t + 0.5, f"{matrix[t, p]}", ha="center", va="center", size=size, color=colour)
            number.set_url(None if t == p else _link(t, p))
    return figure


def _link(true: int | np.integer, predicted: int | np.integer) -> str:
    """Returns the link to the errors of a pair, in the page (:func:`stagewright.report.gallery.pair_id`)."""
    return f"#{true}-{predicted}"


def _rows_figure(labels: list[str], *, right: float, gaps: int = 0) -> tuple[Figure, float]:
    """Returns a figure with a height for the rows ``labels``, and its left margin in inches."""
    left = 0.2 + _CHAR * max(map(len, labels), default=0)
    return theme.new_figure(0.62 + 0.5 + 0.19 * (len(labels) + gaps), max(theme.WIDTH, left + 2.2 + right)), left


def _pairs(labels: list[str], counts: list[int], percents: list[float], links: list[str], split: str) -> Figure:
    figure, left = _rows_figure(labels, right=1.0)
    theme.title(figure, "Most confused pairs", f"{split} pictures, true class → predicted class")
    axes = theme.place(figure, left=left, right=1.0, top=0.4, bottom=0.46)
    at = np.arange(len(labels))
    for bar, link in zip(axes.barh(at, counts, color=theme.WRONG, height=0.62, zorder=3), links, strict=True):
        bar.set_url(link)
    for y, (count, percent) in enumerate(zip(counts, percents, strict=True)):
        axes.text(count, y, f"  {count:,} ({percent:.0f} % of class)", va="center", size=8, clip_on=False)
    axes.set_yticks(at, labels, color=theme.INK)
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel="pictures")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


def _classes(rows: list[ClassRow], predictions: Predictions) -> Figure:
    counted = sorted((row for row in rows if row.score.total), key=lambda row: (row.score.percent, row.name))
    cut = len(counted) > ALL_CLASSES
    shown = counted[:WORST] + counted[-BEST:] if cut else counted
    at = [y + (1.2 if cut and y >= WORST else 0) for y in range(len(shown))]
    labels = [shortened(printable(row.name), 24) for row in shown]
    figure, left = _rows_figure(labels, right=0.62, gaps=2 if cut else 0)
    split = SPLIT_NAMES[predictions.split]
    which = f"{WORST} worst and {BEST} best of {len(counted):,}, " if cut else ""
    theme.title(figure, "Accuracy by class", f"{which}{split} pictures, 95 % intervals")
    axes = theme.place(figure, left=left, right=0.62, top=0.4, bottom=0.46)
    overall = Score(predictions.correct, len(predictions)).percent
    axes.axvline(overall, color=theme.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    axes.text(
        overall, 1.0, f"all {overall:.1f} %", transform=axes.get_xaxis_transform(), size=7.5, ha="center", va="bottom"
    )
    for y, row in zip(at, shown, strict=True):
        low, high = row.score.interval
        axes.plot([low, high], [y, y], color=theme.TRAIN, alpha=0.35, linewidth=4, solid_capstyle="butt", zorder=3)
        axes.plot([row.score.percent], [y], "o", color=theme.TRAIN, ms=4.5, zorder=4, clip_on=False)
        axes.text(
            1.02,
            y,
            f"n {row.score.total:,}",
            transform=axes.get_yaxis_transform(),
            size=8,
            va="center",
            color=theme.MUTED,
        )
    if cut:
        middle = f"{len(counted) - len(shown):,} more"
        axes.text(
            0.5,
            WORST + 0.1,
            middle,
            transform=axes.get_yaxis_transform(),
            size=8,
            ha="center",
            va="center",
            color=theme.MUTED,
        )
    axes.set_yticks(at, labels, color=theme.INK)
    lowest = min((row.score.interval[0] for row in shown), default=0.0)
    left_end = max(0.0, 10 * np.floor(lowest / 10 - 0.2)) - 1.5  # so that a dot does not cover the end of a label
    axes.set(ylim=(at[-1] + 0.7, -0.7), xlim=(left_end, 101), xlabel="correct (%)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure
