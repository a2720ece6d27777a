"""Environments of their own for heavy libraries that judge job files, kept in the user's cache between test runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_PLACE = Path(os.environ.get("STAGEWRIGHT_TEST_ENVIRONMENTS") or Path.home() / ".cache" / "stagewright-tests")


def python_with(name: str, packages: Sequence[str]) -> str:
    """The Python of the environment ``name`` with ``packages`` (``name==version``); skips the test where it cannot be made."""
    folder = _PLACE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin" / "python", folder / "done"
    if done.is_file() and done.read_text().split() == list(packages):
        return str(python)
    for words in (
        ["venv", "--clear", str(folder), "--python", sys.executable],
        ["pip", "install", "--python", str(python), *packages],
    ):
        made = subprocess.run(
            [sys.executable, "-m", "uv", *words], capture_output=True, text=True, check=False, timeout=540
        )
        if made.returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed: {made.stderr.strip()[-300:]}")
    done.write_text("\n".join(packages))
    return str(python)


def run_with(python: str, code: str, *arguments: str | Path, cwd: Path) -> str:
    """What ``code`` prints, run by ``python``; it must end well."""
    environment = {**os.environ, "HOME": str(cwd), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    environment.pop("PYTHONPATH", None)
    words = [python, "-c", code, *map(str, arguments)]
    ended = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
