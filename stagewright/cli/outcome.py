"""The last lines of the commands that carry out a run: what to do next."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from stagewright.system.signals import EXIT_STOPPED
from stagewright.text import done_text

if TYPE_CHECKING:  # torch comes with it
    from stagewright.api.run import Run


def close(run: Run, quiet: bool, command: str = "resume") -> None:
    """Prints the next commands of a run, whose result its console has told; exits with code 75 if it was stopped, which
    ``command`` continues. A run that was paused as asked has done what the command was to do."""
    summary = run.summary
    if summary.get("status") == "paused":
        if not quiet:
            print(f"Paused at {done_text(summary['step'], summary['total_steps'])}.")
            print(f"Go on    stagewright resume {run.path}")
            print(f"A model  stagewright finish {run.path}")
        return
    if not run.finished:
        print(f"Stopped and saved. Continue with:  stagewright {command} {run.path}", file=sys.stderr)
        if command == "resume":
            print(f"A model of what is saved:          stagewright finish {run.path}", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED)
    if quiet:
        return
    from stagewright.rundir.directory import RunDir
    from stagewright.rundir.held_test import hold_of, is_closed

    own = RunDir(run.path)
    if summary.get("test") and is_closed(own):
        holder = hold_of(own)
        how = holder if isinstance(holder, str) else f"stagewright evaluate {run.path} --split test --record opens it"
        print(f"Test     part not opened: {how}")
    if expected := own.read_env().get("expected"):
        print(f"Expected {expected}")
    report = run.path / "report.html"
    print(f"Report   {report}" if report.is_file() else f"Report   none yet: stagewright report {run.path}")
    print(f"Predict  stagewright predict {run.path} IMAGES...")
    if summary.get("stopped_at") is not None:
        print(f"Go on    stagewright resume {run.path}")
        print(f"Stopped at {done_text(summary['step'], summary['total_steps'])}.")
