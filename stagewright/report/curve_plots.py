"""Figures of the ROC and precision-recall curves, each class against the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stagewright.measures.answers import Answers
from stagewright.measures.curves import Curve, class_curve
from stagewright.measures.intervals import Estimate
from stagewright.report import theme
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES, shown_split
from stagewright.text import printable, shortened

NAMED = 6
"""Most classes with a colour and a name: those with the smallest areas. The others are thin grey lines."""
DRAWN = 100
"""Most curves in a figure, for the same classes first."""
_POINTS = 200
_COLOURS = (theme.RAW, theme.TRAIN, theme.EMA, theme.SWA, theme.CHOSEN, theme.INK)

_Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw(record: RunRecord) -> Iterator[theme.Drawing]:
    """Draws ``roc`` and ``precision-recall`` if the predictions have the probabilities of all classes. Call it inside
    :func:`stagewright.report.theme.themed`."""
    predictions = shown_split(record)
    measures = None if predictions is None else record.measures.get(predictions.split)
    if predictions is None or measures is None:
        return
    answers = predictions.answers(len(record.classes))
    if answers is None or answers.probabilities is None:
        return
    split = SPLIT_NAMES[predictions.split]
    names = [printable(name) for name in record.classes]
    parts = (
        ("roc", "ROC curves", "auc", "macro_auc", roc_points, ("false-positive rate", "true-positive rate")),
        (
            *("precision-recall", "Precision and recall", "average_precision", "macro_average_precision"),
            *(precision_points, ("recall", "precision")),
        ),
    )
    for name, title, key, mean, points, labels in parts:
        areas = measures.classes[key]
        if measures.means[mean].value is not None:
            note = f"{split} pictures, mean area {measures.means[mean].value:.3f}"
            figure = _figure(answers, names, areas, points, labels, (title, note))
            yield theme.render(name, f"{title} of each class against the rest on the {split} pictures", figure)


def roc_points(curve: Curve) -> _Points:
    """Returns false-positive and true-positive rates from (0, 0) to (1, 1), each (K,)."""
    return np.concatenate([[0.0], curve.fall_out]), np.concatenate([[0.0], curve.recall])


def precision_points(curve: Curve) -> _Points:
    """Returns recall and precision, each (K,), from the highest threshold on."""
    return np.concatenate([[0.0], curve.recall]), np.concatenate([curve.precision[:1], curve.precision])


def thinned(x: NDArray[np.float64], y: NDArray[np.float64], most: int = _POINTS) -> _Points:
    """Returns at most ``most`` of the points (x, y), evenly spread over the length of the line, with both ends."""
    if len(x) <= most:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], most - 1)))
    kept = np.unique(np.append(kept, len(x) - 1))
    return x[kept], y[kept]


def _figure(
    answers: Answers,
    names: list[str],
    areas: list[Estimate],
    points: Callable[[Curve], _Points],
    labels: tuple[str, str],
    head: tuple[str, str],
) -> Figure:
    defined = [(one.value, at) for at, one in enumerate(areas) if one.value is not None]
    order = [at for _, at in sorted(defined)][:DRAWN]
    named = order if len(order) <= NAMED else order[: NAMED - 1]
    figure = theme.new_figure(4.6)
    theme.title(figure, *head)
    axes = theme.place(figure, left=0.6, right=0.2, top=0.4, bottom=0.5)
    for at in reversed(order):
        line = thinned(*points(class_curve(answers, at)))
        if at in named:
            colour = _COLOURS[named.index(at)]
            label = f"{shortened(names[at], 24)} {areas[at].value:.3f}"
            axes.plot(*line, color=colour, linewidth=1.5, zorder=4, label=label, clip_on=False)
        else:
            axes.plot(*line, color=theme.MUTED, linewidth=0.7, alpha=0.45, zorder=3)
    rest = len(defined) - len(named)
    if rest:
        shown = "" if len(defined) <= DRAWN else f" ({DRAWN - len(named)} drawn)"
        axes.plot(
            [], [], color=theme.MUTED, linewidth=0.7, alpha=0.7, label=f"{rest:,} classes with larger areas{shown}"
        )
    handles, texts = axes.get_legend_handles_labels()
    order_of = sorted(range(len(texts)), key=lambda at: (at == len(texts) - 1 and bool(rest), -at))
    place = "lower right" if points is roc_points else "lower left"
    legend = axes.legend([handles[at] for at in order_of], [texts[at] for at in order_of], loc=place, fontsize=8.2)
    legend.get_frame().set(facecolor=theme.PAPER, edgecolor="none", alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=labels[0], ylabel=labels[1])
    return figure
