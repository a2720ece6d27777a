"""100 damaged and hostile files at all doors for text; ``make test-long`` tries 50,000."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "run.py"


@pytest.mark.slow
def test_every_changed_file_is_valid_or_gives_one_error_that_says_where(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZER), "--count", "100", "--findings", str(tmp_path / "findings")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
