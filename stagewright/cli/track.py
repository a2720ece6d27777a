"""The command ``track``, and the option ``--track``: a run in TensorBoard, W&B or MLflow."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from stagewright.cli.arguments import StrictTyper
from stagewright.cli.options import RunPath

Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="NAMES",
        help="Send each run to tensorboard, wandb, mlflow (several: with commas), by a process beside it.",
    ),
]


def register(app: StrictTyper) -> None:
    """Adds the command to ``app``."""
    app.command()(track)


def chosen_trackers(text: str | None) -> tuple[str, ...]:
    """Returns the names of ``--track``; RecipeError if one cannot be used here."""
    if text is None:
        return ()
    from stagewright.trackers.names import tracker_names

    return tracker_names(text)


def track(
    run: RunPath,
    to: Annotated[str, typer.Option("--to", metavar="NAMES", help="tensorboard, wandb, mlflow; several with commas.")],
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Send all of the run anew, under an id of its own.")
    ] = False,
    with_files: Annotated[
        bool, typer.Option("--with-files", help="Send summary.json and the model too (wandb, mlflow).")
    ] = False,
) -> None:
    """Send a run to a tracker: what is missing there; of a run that goes on, until it ends."""
    from stagewright.rundir.directory import RunDir

    names = chosen_trackers(to)
    root = RunDir.existing(run).root
    flags = [flag for flag, given in (("--rebuild", rebuild), ("--with-files", with_files)) if given]
    codes = [_send(str(root), name, flags) for name in names]
    if any(codes):
        raise typer.Exit(2 if 2 in codes else 1)


def _send(run: str, name: str, flags: list[str]) -> int:
    """Runs the process that sends, and prints what it says; returns its exit code."""
    from stagewright.system.children import module_command

    command = module_command("stagewright.trackers", [run, name, "--by-hand", *flags])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdin is not None
            refused = False
            for line in process.stdout:
                refused |= line.startswith("error: ")  # with the lines after it, which are the last
                print(line, end="", flush=True, file=sys.stderr if refused else sys.stdout)
            process.stdin.close()
            return process.wait()
        except BaseException:
            process.terminate()
            raise
