"""The public functions ``inspect`` and ``split``: problems of a data set, and a split that is written as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stagewright.data.inspect.inspect import Inspection
from stagewright.data.inspect.inspect import inspect as inspect_files
from stagewright.data.sources.folders import name_of
from stagewright.data.splits.links import Mode
from stagewright.data.splits.summary import SplitSummary
from stagewright.data.splits.write import split as write_split
from stagewright.observers.progress_line import ProgressLine
from stagewright.recipe.recipes import data_settings
from stagewright.system.machine import cores


def inspect(
    data: str | Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> Inspection:
    """Reads every image of ``data`` once and returns what is wrong with them: damage, duplicates, leaks, conflicting labels.

    ``data`` is any form of DATA on the command line, ``overrides`` say how it is read (``data.label=species``), ``seed`` is that
    of the split if DATA has none, and ``workers`` the number of threads, by default one for each core. Nothing is written. Raises
    StagewrightError for errors that the caller can fix.
    """
    settings = data_settings([*([] if seed is None else [f"data.split_seed={seed}"]), *overrides])
    with ProgressLine("reading the pictures", "comparing them", quiet=quiet) as progress:
        return inspect_files(str(data), settings, workers=workers or cores(), progress=progress)


def split(  # the function behind `stagewright data split`: the keywords are its options
    data: str | Path,
    *,
    val: float | None = None,
    test: float | None = None,
    group_by: str | None = None,
    near: str | None = None,
    folds: int | None = None,
    out: str | Path | None = None,
    links: str | Path | None = None,
    mode: Mode = "symlink",
    anew: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> SplitSummary:
    """Writes a stratified, grouped split of ``data``, or ``folds`` of it, as a table that :func:`stagewright.api.train.train` can
    read, and returns a summary, whose ``tables`` are its files.

    ``val`` and ``test`` are shares in [0, 1), ``group_by`` is the column whose groups stay together, ``near`` is ``together``
    or ``ignore``; None: as without a split table. ``out`` is the table (.csv or .parquet; default: ``NAME-split.csv``). The
    others are those of :func:`stagewright.data.splits.write.split`, with its errors.
    """
    shares = {"data.val": val, "data.test": test, "data.group": group_by, "data.near": near, "data.split_seed": seed}
    given = [f"{name}={json.dumps(value)}" for name, value in shares.items() if value is not None]
    settings = data_settings([*given, *overrides])
    with ProgressLine("looking at the pictures", "writing the links", quiet=quiet) as progress:
        return write_split(
            str(data),
            settings,
            out=Path(f"{name_of(str(data))}-split.csv" if out is None else out),
            links=None if links is None else Path(links),
            mode=mode,
            folds=folds,
            anew=anew,
            overwrite=overwrite,
            workers=workers or cores(),
            progress=progress,
        )
