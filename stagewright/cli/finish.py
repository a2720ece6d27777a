"""The command ``finish``."""

from __future__ import annotations

from typing import Annotated

import typer

from stagewright.cli.folds import finish_folds, is_folds
from stagewright.cli.options import (
    ComputeThreads,
    Device,
    NoPages,
    Quiet,
    RunPath,
    Workers,
    refuse_alone,
    speaker,
)


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(finish)


def finish(
    run: RunPath,
    data: Annotated[
        str | None, typer.Option(help="New location of the run's pictures, if they moved; their hashes are compared.")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    threads: ComputeThreads = None,
    quiet: Quiet = False,
    no_pages: NoPages = False,
) -> None:
    """Finish a stopped run now, with its checkpoint; resume can go on. Of folds: train one model on all of their pictures."""
    from stagewright.api.finish import finish as finish_run
    from stagewright.cli.outcome import close
    from stagewright.plan.execution import Execution

    execution = Execution(device=device, workers=workers, threads=threads, pages=not no_pages, quiet=quiet)
    if is_folds(run):
        refuse_alone("--data", data is not None, "the directory of a single run")
        finish_folds(run, execution, quiet)
        return
    close(finish_run(run, execution=execution, data=data, say=speaker(quiet)), quiet, "finish")
