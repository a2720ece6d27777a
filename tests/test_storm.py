"""Small forms of the storms; `make test-long` raises the long ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parent.parent / "benchmarks" / "storm.py"


@pytest.mark.slow
@pytest.mark.parametrize(("storm", "count"), [("signals", 2), pytest.param("operations", 2, marks=pytest.mark.long)])
def test_a_storm(storm: str, count: int) -> None:
    if storm == "operations" and not shutil.which("cc"):
        pytest.skip("needs a C compiler, for operations that fail")
    raise_storm(STORM, storm, "--count", str(count))


@pytest.mark.slow
@pytest.mark.long
def test_finishes_of_killed_runs() -> None:
    raise_storm(STORM.with_name("finishes.py"), "--count", "2")


def raise_storm(program: Path, *words: str) -> None:
    command = [sys.executable, str(program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
