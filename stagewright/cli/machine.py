"""Commands about what is installed: ``models``, ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagewright.storage.files import user_path


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    for command in (models, demo):
        app.command()(command)


def models(pattern: Annotated[str, typer.Argument(help="Part of a name.")] = "") -> None:
    """List the available models; exit code 2 if none has such a name."""
    from stagewright.model.zoo import list_models

    for name, library in list_models(pattern):
        print(f"{name:<48} {library}")


def demo(
    data: Annotated[str, typer.Argument(help="Pictures as for train; digits is built in.")] = "digits",
    out: Annotated[
        Path | None, typer.Option(parser=user_path, metavar="PATH", help="Run directory; default: runs/demo-N.")
    ] = None,
) -> None:
    """Train a small network in a minute, evaluate it, and predict a few pictures."""
    from stagewright.cli.demo import run_demo

    run_demo(data, out)
