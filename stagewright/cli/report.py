"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagewright.cli.completion import run_directories
from stagewright.cli.options import refuse_alone
from stagewright.storage.files import user_path


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(report)


def report(
    runs: Annotated[
        list[Path], typer.Argument(parser=user_path, autocompletion=run_directories, help="Run directories.")
    ],
    each: Annotated[
        bool, typer.Option("--each", help="Of several runs: write the page of each, as of a single one.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FILE",
            help="Page that compares several runs; default: comparison.html beside them.",
        ),
    ] = None,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="Also show, of the most confident errors, where the network looked.")
    ] = False,
    image_mb: Annotated[float, typer.Option("--image-mb", min=0, help="Most megabytes of pictures in the page.")] = 2.0,
) -> None:
    """Write a run's plots and report.html again, with its pictures; of several runs, one page with their curves laid over each
    other."""
    refuse_alone("--out", out is not None and (each or len(runs) < 2), "several runs, and without --each,")
    if len(runs) > 1 and not each:
        refuse_alone("--saliency", saliency, "a single run, or with --each,")
        from stagewright.api.comparison_page import write_comparison

        print(write_comparison(runs, out))
        return
    from stagewright.api.report import write_report

    for run in runs:
        print(write_report(run, saliency_maps=saliency, picture_bytes=1e6 * image_mb))
