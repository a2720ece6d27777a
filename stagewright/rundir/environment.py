"""Describes the environment of a run: versions, machine, command, commit."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from stagewright.data.images import native
from stagewright.system.machine import cores, memory_bytes

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
