"""Keeps plots and report.html fresh while a run lives, in a process of its own, so that training never waits for ink."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from stagewright.sentences import Event

_PACKAGES = Path(__file__).resolve().parent.parent.parent
_PAGE = "import sys; sys.path.append(sys.argv.pop(1)); from stagewright.report.__main__ import main; sys.exit(main())"
_PATIENCE_SECONDS = 120.0
_NEARLY_OVER_SECONDS = 5.0
GAP_SECONDS = 60.0
"""Between two pages. One takes about 1.8 s of a processor, and on 2 cores that train it costs the training 1 to 1.3 s, since
its threads wait for each other (in a session of its own 2.4 s): every 20 s that was 6 %."""


class Pages:
    """Starts ``stagewright.report`` in a process of its own at evaluations, one at a time and at most every ``min_seconds``."""

    def __init__(self, run: Path, min_seconds: float = GAP_SECONDS) -> None:
        self.run, self.min_seconds = run, min_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -min_seconds

    def see(self, event: Event) -> None:
        due = time.monotonic() - self._started_at >= self.min_seconds
        idle = self._process is None or self._process.poll() is not None
        if event["kind"] == "evaluated" and due and idle and not _nearly_over(event):
            self._started_at = time.monotonic()
            self._process = self._start()

    def close(self) -> None:
        """Writes the last page, of the run as it was left, and waits for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # the last page has all of it; files are whole or not there
            self._await(self._process)
        if self.run.is_dir():
            self._await(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        # -P, not -m: Python must not find modules of the current folder, where a person's html.py or numpy.py may lie. The
        # package itself is looked for last, where this process has it from.
        command = [sys.executable, "-P", "-c", _PAGE, str(_PACKAGES), os.path.abspath(self.run)]
        if nice := shutil.which("nice"):
            command = [nice, "-n", "15", *command]  # the processors belong to the training
        nowhere = subprocess.DEVNULL
        # A process group of its own: Ctrl-C is meant for the training, which tells its observers when to end. Not a session
        # of its own: between sessions Linux may share the processors out evenly (autogroup), whatever nice says.
        return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, process_group=0)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _nearly_over(event: Event) -> bool:
    """Whether the run ends so soon that the last page, which comes anyway, would have to wait for one begun now."""
    left = event["clock"].get("eta_seconds")
    return left is not None and left < _NEARLY_OVER_SECONDS
