"""The same of other servers: ministack as another S3, and azurite for Azure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_servers
from ranks import free_port
from second_servers import SEEN, Missing, azurite, ministack_check


def environment() -> dict[str, str]:
    root = Path(__file__).parent.parent.parent
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}


@pytest.mark.long
def test_ministack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    try:
        said = ministack_check(tmp_path)
    except Missing as missing:
        pytest.skip(str(missing))
    assert SEEN in said, said


@pytest.mark.long
def test_azurite(tmp_path: Path) -> None:
    try:
        with azurite(tmp_path, free_port()) as found:
            command = [sys.executable, second_servers.__file__, "check", "az://runs/one"]
            done = subprocess.run(command, env={**environment(), **found}, capture_output=True, text=True, timeout=180)
    except Missing as missing:
        pytest.skip(str(missing))
    assert SEEN in done.stdout, done.stdout + done.stderr
