"""Folds on the command line: ``train --folds``, and ``resume`` and ``finish`` of a folder of folds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagewright.cli.options import speaker
from stagewright.system.signals import EXIT_STOPPED

if TYPE_CHECKING:  # torch comes with them
    from rich.console import RenderableType

    from stagewright.plan.execution import Execution
    from stagewright.rundir.events import Observer
    from stagewright.study.folds import Folds

FoldCount = Annotated[
    str | None,
    typer.Option(
        "--folds",
        metavar="K|given",
        help="Cross-validation: train K times, each time tested on another fold; given: the folds in the column 'fold' of DATA. "
        "The same command goes on after a stop.",
    ),
]


def is_folds(place: Path) -> bool:
    """Returns whether ``place`` is a folder of folds."""
    return (place / "folds.json").is_file() and not (place / "plan.json").is_file()


def train_folds(data: str, count: str, request: Any, common: Mapping[str, Any], quiet: bool) -> None:
    """Carries out ``train --folds COUNT``; ``common`` are keywords of :func:`stagewright.study.folds.folds`."""
    from stagewright.study.folds import folds

    _close(folds(data, _number(count), request, **common), quiet)


def resume_folds(place: Path, execution: Execution, observers: Sequence[Observer], quiet: bool) -> None:
    """Carries out ``resume`` of a folder of folds, and goes on with its model on all images if that was begun."""
    from stagewright.cli.outcome import close
    from stagewright.study import folds as study
    from stagewright.study.jobs import Manner

    manner = Manner(execution, observers, say=speaker(quiet))
    found = study.resume_folds(place, manner)
    if found.finished and found.final is not None and not found.final.finished:
        found = study.finish_folds(place, manner)
        assert found.final is not None
        close(found.final, quiet)
        return
    _close(found, quiet)


def finish_folds(place: Path, execution: Execution, quiet: bool) -> None:
    """Carries out ``finish`` of a folder of folds."""
    from stagewright.cli.outcome import close
    from stagewright.study.folds import finish_folds as finish
    from stagewright.study.jobs import Manner

    found = finish(place, Manner(execution, say=speaker(quiet)))
    assert found.final is not None
    close(found.final, quiet)


def _number(count: str) -> Any:
    try:
        return int(count)
    except ValueError:
        return count


def _close(found: Folds, quiet: bool) -> None:
    """Prints the result and the next commands; exits with code 75 if a fold was stopped."""
    if not found.finished:
        done = sum(run.finished for run in found.runs)
        print(
            f"Stopped and saved, {done} of {found.num_folds} folds done. Continue with:  stagewright resume {found.path}",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_STOPPED)
    if quiet:
        return
    from stagewright.system.terminal import Terminal

    Terminal(highlight=False).print(folds_view(found))
    print(f"Report   {found.path / 'report.html'}")
    print(f"Answers  {found.path / 'out-of-fold.csv'}")
    if found.final is None:
        print(f"A model  stagewright finish {found.path}   trains one on all of these pictures")
    else:
        print(f"Predict  stagewright predict {found.final.path} IMAGES...")


def folds_view(found: Folds) -> RenderableType:
    """Returns a table of the folds, and below it their accuracy."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from stagewright.text import number_text, percent_text, seconds_text

    accuracy, pooled = found.accuracy, found.pooled
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("fold", no_wrap=True)
    for name in ("pictures", "top-1", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for at, value in enumerate(accuracy.by_fold):
        seconds = seconds_text(pooled.seconds[at])
        table.add_row(f"{at + 1} of {found.num_folds}", f"{pooled.counts[at]:,}", percent_text(100 * value, 2), seconds)
    low, high = found.interval
    lines = [
        f"Top-1    {percent_text(100 * (accuracy.pooled.value or 0), 2)} of {sum(pooled.counts):,} out-of-fold pictures, 95 % "
        f"interval {low:.1f} to {high:.1f}",
        f"Folds    mean {percent_text(100 * accuracy.mean, 2)}, standard deviation {number_text(100 * accuracy.sd, '.2f')}",
    ]
    if pooled.unreadable:
        lines.append(f"         {pooled.unreadable:,} pictures could not be read")
    return Group(table, *map(Text, lines))
