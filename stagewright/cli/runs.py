"""The commands ``runs`` and ``why``, which is also called ``diff``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagewright.cli.completion import run_directories
from stagewright.cli.options import AsJson, RunPath
from stagewright.storage.files import user_path


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    app.command()(runs)
    app.command()(why)
    app.command("diff", hidden=True)(why)


def runs(
    folder: Annotated[
        Path, typer.Argument(parser=user_path, metavar="DIR", help="A folder of runs, also in subfolders.")
    ] = Path("runs"),
    sort: Annotated[
        str,
        typer.Option(help="name, status, data, recipe, model, size, seed, score, time or when; best and latest first."),
    ] = "when",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="TEXT|FIELD=PATTERN|FIELD>NUMBER",
            help="Only such runs: 'model=resnet*', 'score>60', or a part of a name; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: status, data, model, score, time."""
    from stagewright.report import runs as listing
    from stagewright.report.run_choice import filtered_runs, sorted_runs

    every = listing.runs(folder)
    chosen = sorted_runs(filtered_runs(every, conditions or ()), sort, reverse=reverse)
    if as_json:
        print(json.dumps({"runs": chosen.to_dicts(), "skipped": chosen.skipped}, indent=1))
        return
    from stagewright.cli.runs_view import runs_view
    from stagewright.system.terminal import Terminal

    Terminal(highlight=False).print(runs_view(chosen, len(every), folder))


def why(
    one: RunPath,
    other: Annotated[
        Path, typer.Argument(parser=user_path, autocompletion=run_directories, help="The run that is compared with it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show in what two runs differ: recipe, data, initial weights, threads, hardware, versions, and results on the same pictures.
    Exit code 0: equal in all that decides the result; 1: different, or not known; names, paths and times do not count."""
    from stagewright.api.diff import diff

    found = diff(one, other)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, default=str))
    else:
        from stagewright.cli.runs_view import difference_view
        from stagewright.system.terminal import Terminal

        Terminal(highlight=False).print(difference_view(found))
    if not found.equal:
        raise typer.Exit(1)
