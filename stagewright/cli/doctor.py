"""The command ``doctor``: what this machine offers, what would be slow, and what would fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagewright.cli.options import AsJson

Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        min=2,
        max=64,
        help="Measure the rates between so many processes; default: between all GPUs, if several.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(doctor)


def doctor(as_json: AsJson = False, ranks: Ranks = None) -> None:
    """Show what this machine offers: each check is ok, slow or will fail, with a remedy; exit code 2 if something will fail."""
    from stagewright.cli.machine_view import checks_view
    from stagewright.preflight.doctor import run_checks, to_dicts
    from stagewright.preflight.doctor_machine import machine_checks
    from stagewright.system.terminal import Terminal

    checks = [*run_checks(), *machine_checks(Path("runs"), ranks=ranks)]
    print(json.dumps(to_dicts(checks), indent=1)) if as_json else Terminal().print(checks_view(checks))
    if any(check.fails for check in checks):
        raise typer.Exit(2)
