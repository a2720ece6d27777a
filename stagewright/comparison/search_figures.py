"""Figures of a search: its history, what its fields matter, and what fewer trials would have found. By validation scores, which
chose; Optuna draws importance and parallel coordinates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stagewright.report import theme
from stagewright.report.drawing import Drawing
from stagewright.study.definition import Study
from stagewright.study.ledger import Ledger
from stagewright.study.scores import direction, score_of

_FEWEST = 3


def trial_scores(folder: Path) -> list[tuple[str, dict[str, str], float]]:
    """Returns (job, its labels, validation score) of the finished runs by which a study has chosen, by name."""
    ledger = Ledger(folder)
    study = ledger.study()
    found = []
    for job in ledger.jobs():
        if job.phase == "study" and ledger.state(job.name) == "done":
            score = score_of(study, ledger.summary(job.name))
            if score is not None and math.isfinite(score):
                found.append((job.name, dict(job.variant.labels), float(score)))
    return found


def best_of_each(scores: Sequence[float], *, highest: bool = True) -> np.ndarray:
    """Returns (T,) the expected best of n of the T ``scores``, drawn without replacement, for n = 1 to T.

    Unbiased, unlike the mean over draws with replacement: R. Tang, J. Lee, J. Xin, X. Liu, Y. Yu and J. Lin, "Showing your work
    doesn't always work", ACL 2020, arXiv:2004.13705.
    """
    ordered = np.sort(np.asarray(scores, np.float64)) if highest else -np.sort(-np.asarray(scores, np.float64))
    total = len(ordered)
    found = np.empty(total)
    for count in range(1, total + 1):
        weights = np.array([math.comb(at, count - 1) / math.comb(total, count) for at in range(total)])
        found[count - 1] = float(weights @ ordered)
    return found


def draw_search(study: Study, folder: Path) -> Iterator[Drawing]:
    """Draws ``best_of`` of the runs of a study, and of a search ``history``, ``importance`` and ``parallel``, of which the last
    two need Optuna (ModuleNotFoundError without it); nothing for fewer than three runs."""
    scores = trial_scores(folder)
    if len(scores) < _FEWEST:
        return
    highest = direction(study) == "maximize"
    name = "validation top-1 (%)" if study.metric == "top1" else f"validation {study.metric}"
    values = np.array([score for _, _, score in scores])
    with theme.themed():
        if study.search is not None:
            yield theme.render("history", f"{name} of each run, and the best so far", _history(values, name, highest))
        alt = f"Expected best {name} of n runs"
        yield theme.render("best_of", alt, _best_of(values, name, highest))
        if study.search is not None:
            yield from _by_optuna(study, scores)


def _frame(title: str, note: str) -> tuple[Figure, Axes]:
    figure = theme.new_figure(3.0)
    theme.title(figure, title, note)
    return figure, theme.place(figure, left=0.6, right=0.2, top=0.42, bottom=0.45)


def _history(values: np.ndarray, name: str, highest: bool) -> Figure:
    figure, axes = _frame("Search", "each run, and the best so far")
    best = (np.maximum if highest else np.minimum).accumulate(values)
    numbers = np.arange(1, len(values) + 1)
    axes.plot(numbers, values, "o", color=theme.TRAIN, ms=3.5, mfc=theme.PAPER)
    axes.step(numbers, best, where="post", color=theme.CHOSEN, linewidth=1.4)
    axes.set_xlabel("run")
    axes.set_ylabel(name)
    return figure


def _best_of(values: np.ndarray, name: str, highest: bool) -> Figure:
    figure, axes = _frame("What fewer runs would have found", "expected best of n")
    axes.plot(
        np.arange(1, len(values) + 1), best_of_each(values.tolist(), highest=highest), color=theme.TRAIN, linewidth=1.6
    )
    axes.set_xlabel("runs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"best {name}")
    return figure


def _by_optuna(study: Study, scores: Sequence[tuple[str, dict[str, str], float]]) -> Iterator[Drawing]:
    """Draws importance and parallel coordinates of a search from its runs, in a study in memory."""
    import optuna
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as drawn

    from stagewright.study.queue import distributions  # needs Optuna too

    kinds = distributions(study)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    memory = optuna.create_study(direction=direction(study))
    for _, labels, score in scores:
        params = {name: _value(labels[name], kind) for name, kind in kinds.items()}
        memory.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=score))
    for name, title, alt, draw in (
        ("importance", "What matters", "How much each field of the search matters", drawn.plot_param_importances),
        ("parallel", "All runs", "Parallel coordinates of the search", drawn.plot_parallel_coordinate),
    ):
        pyplot.close("all")
        # Math in texts for the ticks of powers of ten; warnings that a function is experimental, or all scores are alike.
        with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": True}):
            warnings.simplefilter("ignore")
            axes = draw(memory)
            figure = axes.figure if isinstance(axes, Axes) else axes.ravel()[0].figure
            assert isinstance(figure, Figure)
            _fit(figure, title)
            drawing = theme.render(name, alt, figure)
        yield drawing
        pyplot.close("all")


def _fit(figure: Figure, title: str) -> None:
    """Gives a figure of Optuna's the size, the title and the margins of ours."""
    figure.set_size_inches(1.25 * theme.WIDTH, 3.6)
    figure.set_facecolor(theme.PAPER)
    for axes in figure.axes:
        axes.set_title("", loc="left")
        axes.set_title("")
        axes.set_facecolor("none")
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 0.9))
    theme.title(figure, title, "by Optuna")


def _value(label: str, kind: Any) -> str | int | float:
    """Returns the value of a parameter from its label, which is the number's text except for choices."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(kind, CategoricalDistribution):
        return label
    return int(label) if isinstance(kind, IntDistribution) else float(label)
