"""Describes the environment of a run: versions, machine, command, commit."""

from __future__ import annotations

import datetime
import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from stagewright.data.images import native
from stagewright.recipe.recipe import Recipe
from stagewright.storage.files import read_own
from stagewright.system.machine import cores, memory_bytes
from stagewright.system.named_functions import file_of

_LIBRARIES = ("stagewright", "torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "pyarrow")


def environment(data: str, command: Sequence[str], device: str, device_name: str) -> dict[str, Any]:
    """Returns versions, machine, commit and the exact command, for ``env.json``."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "decoder": native.describe(),
        "ram_gb": round(memory / 2**30, 1) if (memory := memory_bytes()) else None,
        **{library: _version(library) for library in _LIBRARIES},
        "git_commit": _git_commit(),
        "device": device,
        "device_name": device_name,
        "command": shlex.join(command),
        "cwd": str(Path.cwd()),
        "data": data,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def code_digests(recipe: Recipe) -> dict[str, str | None]:
    """SHA-256 of the file that each function named by ``recipe`` comes from, by name; None where there is no file to read.

    Modules that such a file imports itself are not looked at.
    """
    found: dict[str, str | None] = {}
    for name in recipe.functions().values():
        file = file_of(name)
        found[name] = hashlib.sha256(read_own(file)).hexdigest() if file is not None and file.is_file() else None
    return found


def changed_code(recipe: Recipe, env: Mapping[str, Any]) -> list[str]:
    """A sentence for each function named by ``recipe`` whose file is another than ``env``, of ``env.json``, has recorded."""
    then, now = env.get("functions", {}), code_digests(recipe)
    return [
        f"{name}: {file_of(name)} has changed since this run began: what comes out is neither the old code's nor the new one's"
        for name in now
        if then.get(name) is not None and now[name] is not None and then[name] != now[name]
    ]


def own_command() -> list[str]:
    """Returns the command line of this process as a user would type it."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git_commit() -> str | None:
    """Returns the git commit that stagewright runs from, with ``+`` if there are uncommitted changes; None outside of git."""
    here = Path(__file__).parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return None if commit is None else commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
