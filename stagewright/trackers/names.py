"""The trackers by name, and what each needs; imports no tracker's library."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.rundir.tracking import send


@dataclass(frozen=True)
class Needs:
    """What a tracker is made with."""

    module: str
    """Module of its library."""
    extra: str
    """The extra of stagewright that installs it."""


TRACKERS = {
    "tensorboard": Needs("tensorboard", "tensorboard"),
    "wandb": Needs("wandb", "wandb"),
    "mlflow": Needs("mlflow", "mlflow"),
}


def tracker_names(text: str) -> tuple[str, ...]:
    """Returns the names in a text such as ``tensorboard,wandb``, each once; RecipeError as for :func:`check_trackers`."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    check_trackers(names)
    return names


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for a tracker that is unknown, whose library is not installed, or whose address is wrong."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(
                f"the tracker {name!r}" if name else "a tracker without a name",
                ", ".join(TRACKERS),
                "write for example --track tensorboard,wandb",
            )
        needs = TRACKERS[name]
        _check_library(name, needs.module, needs.extra)
        if name == "mlflow" and mlflow_uri().startswith("sqlite:"):
            for module in ("sqlalchemy", "alembic"):  # which MLflow alone does not bring
                _check_library(name, module, needs.extra)
        if name == "wandb":
            is_wandb_offline()


def _check_library(tracker: str, module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise RecipeError(
            f"the tracker {tracker} needs the library {module}, which is not installed",
            f"the extra {extra!r}",
            f"pip install 'stagewright[{extra}]'",
        )


def usable(execution: Execution) -> Execution:
    """Returns ``execution``; RecipeError as for :func:`check_trackers` if it names a tracker that cannot be used."""
    check_trackers(execution.track)
    return execution


def mlflow_uri() -> str:
    """Returns MLFLOW_TRACKING_URI; RecipeError if it is not set, or neither a server nor a SQLite file in a folder that
    exists."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https") and rest.strip("/"):
        return uri
    if scheme == "sqlite" and rest.startswith("/") and rest[1:]:
        if (folder := Path(rest[1:]).parent).is_dir():
            return uri
        raise RecipeError(
            f"MLFLOW_TRACKING_URI is {uri!r}, and there is no folder {folder}",
            "a folder that exists",
            f"mkdir -p {shlex.quote(str(folder))}",
        )
    raise RecipeError(
        f"MLFLOW_TRACKING_URI is {without_secrets(uri)!r}" if uri else "MLFLOW_TRACKING_URI is not set",
        "the address of a server, such as http://127.0.0.1:5000, or a file, such as sqlite:///mlflow.db",
        "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
    )


def is_wandb_offline() -> bool:
    """Returns whether WANDB_MODE says that a finished run is written as a folder, to be uploaded later; RecipeError if that
    variable or WANDB_BASE_URL is wrong."""
    mode, address = os.environ.get("WANDB_MODE") or "online", os.environ.get("WANDB_BASE_URL", "")
    if mode not in ("online", "offline", "dryrun"):
        raise RecipeError(
            f"WANDB_MODE is {mode!r}", "online or offline", "unset WANDB_MODE, or leave wandb out of --track"
        )
    scheme, _, rest = address.partition("://")
    if address and not (scheme in ("http", "https") and rest.strip("/")):
        raise RecipeError(
            f"WANDB_BASE_URL is {without_secrets(address)!r}",
            "the address of a W&B server, such as https://api.wandb.ai",
            "unset WANDB_BASE_URL, or export WANDB_BASE_URL=https://HOST",
        )
    return mode != "online"


def without_secrets(uri: str) -> str:
    """Returns ``uri`` without the user and password that may stand before its host."""
    scheme, found, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{found}{host.rpartition('@')[2]}{slash}{path}"


def resend(run: Path, tracker: str) -> str:
    """Returns the command that sends all of ``run`` anew."""
    return f"{send(run, tracker)} --rebuild"
