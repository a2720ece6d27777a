"""The options of a run's mirror in an object store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Mirror = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Copy the run's directory to an object store while it trains, e.g. s3://bucket/prefix; resume URL goes on from "
        "there on any machine. none: end an earlier mirror.",
    ),
]
Unfenced = Annotated[
    bool,
    typer.Option(
        "--mirror-unfenced", help="Allow a store without conditional writes; start only one process at a time on it."
    ),
]
Wait = Annotated[
    str, typer.Option("--mirror-wait", metavar="TIME", help="How long the end of the run waits for the mirror.")
]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Allow an endpoint of a store without encryption.")]
WAIT = "10m"


def mirror_settings(mirror: str | None, unfenced: bool, wait: str, allow_http: bool) -> dict[str, Any]:
    """Returns the settings of :class:`stagewright.plan.execution.Execution` that the options make; RecipeError for a time that
    is none."""
    from stagewright.errors import RecipeError
    from stagewright.plan.budget import time_seconds

    seconds = time_seconds(wait.strip().lower())
    if seconds is None:
        raise RecipeError(f"--mirror-wait {wait}", "a time such as 30s, 10m or 1h30m", "write for example 10m")
    return {"mirror": mirror, "mirror_unfenced": unfenced, "mirror_wait": seconds, "allow_http": allow_http}
