"""The command ``doctor``: what this machine offers, what would be slow, and what would fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagewright.cli.mirror import AllowHttp
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


StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="URL",
        help="Try the rights and conditional writes of an object store, e.g. s3://bucket/prefix, and compare the clocks.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(doctor)


def doctor(
    as_json: AsJson = False, ranks: Ranks = None, mirror: StoreUrl = None, allow_http: AllowHttp = False
) -> None:
    """Show what this machine offers: each check is ok, slow or will fail, with a remedy; exit code 2 if something will fail."""
    from stagewright.cli.machine_view import checks_view
    from stagewright.preflight.doctor import run_checks, to_dicts
    from stagewright.preflight.doctor_machine import clock_check, machine_checks, store_check
    from stagewright.system.terminal import Terminal

    checks = [*run_checks(), *machine_checks(Path("runs"), ranks=ranks)]
    if mirror is not None:
        checks.append(store_check(mirror, lambda: _trial(mirror, allow_http)))
        if not checks[-1].fails:
            checks.append(clock_check(mirror, *_clock_ahead(mirror, allow_http)))
    print(json.dumps(to_dicts(checks), indent=1)) if as_json else Terminal().print(checks_view(checks))
    if any(check.fails for check in checks):
        raise typer.Exit(2)


def _trial(url: str, allow_http: bool) -> bool:
    """Tries the store at ``url``; returns whether conditional writes work, and raises StorageError for what is missing."""
    from stagewright.storage.objects import open_store

    store = open_store(url, allow_http=allow_http)
    from stagewright.mirror.trial import try_rights  # obstore is there

    return try_rights(store, url, unfenced=True)


def _clock_ahead(url: str, allow_http: bool) -> tuple[float, float]:
    """Returns by how many seconds this clock is ahead of the store's, and by how many that may be wrong."""
    from stagewright.mirror.trial import clock_ahead
    from stagewright.storage.objects import open_store

    return clock_ahead(open_store(url, allow_http=allow_http), url)
