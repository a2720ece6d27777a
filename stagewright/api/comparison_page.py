"""Writes one page that compares several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from stagewright.api.diff import Difference, difference
from stagewright.errors import RecipeError
from stagewright.report.comparison import Against, page
from stagewright.report.overlay import MOST_RUNS, draw_overlay
from stagewright.report.read import read_run
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path, write_whole


def write_comparison(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes a page on ``runs``, compared with the first of them, and returns its path.

    It is ``out``, or comparison.html in the innermost folder that holds them all. RecipeError for fewer than two runs, the same
    run twice, or more than there are kinds of lines; CheckpointError for a folder that is no run.
    """
    places = [user_path(run) for run in runs]
    real = [place.resolve() for place in places]
    twice = next((str(place) for at, place in enumerate(places) if real[at] in real[:at]), None)
    if twice is not None or not 2 <= len(places) <= MOST_RUNS:
        raise RecipeError(
            f"{twice} is given twice" if twice is not None else f"{len(places)} runs to compare",
            f"2 to {MOST_RUNS} different runs",
            "name each run once" if twice is not None else "stagewright runs lists any number of them",
        )
    records = [read_run(place) for place in places]
    target = (
        Path(os.path.commonpath([place.parent for place in real]), "comparison.html") if out is None else user_path(out)
    )
    differences = [difference(records[0], other) for other in records[1:]]
    html = page(
        records,
        list(draw_overlay(records)),
        [None, *map(_against, differences)],
        _data(differences),
        [_link(place, target) for place in places],
    )
    write_whole(target, html)
    return target


def _against(found: Difference) -> Against | None:
    """Returns how the second run compares with the first, on test images if both evaluated some of the same."""
    for pair in found.results:
        if pair.paired is not None:
            own = pair.paired
            return Against(pair.split, own.points, own.low, own.high, own.images)
    return None


def _data(differences: Sequence[Difference]) -> list[str]:
    """Returns sentences on how the data of the runs differ from those of the first; runs of which the same is said share them."""
    by_text: dict[tuple[str, ...], list[str]] = {}
    for found in differences:
        by_text.setdefault(found.data, []).append(found.other)
    return [f"{', '.join(names)}: {'; '.join(lines)}" for lines, names in by_text.items() if lines]


def _link(place: Path, target: Path) -> str | None:
    """Returns the address of a run's own page, relative to ``target``; None if it has none."""
    report = RunDir(place).report
    return quote(os.path.relpath(report, target.resolve().parent)) if report.is_file() else None
