"""Updates plots and report.html during a run, in a separate process, so that training does not wait for it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from stagewright.observers.text_log import tell_beside
from stagewright.plan.cost import PAGE_GAP_SECONDS
from stagewright.rundir.event_kinds import Evaluated, Event
from stagewright.system.children import start_beside

_PACKAGES = Path(__file__).resolve().parent.parent.parent
_PAGE = "import sys; sys.path.append(sys.argv.pop(1)); from stagewright.report.__main__ import main; sys.exit(main())"
_PATIENCE_SECONDS = 120.0
_NEARLY_OVER_SECONDS = 5.0


class Pages:
    """Starts ``stagewright.report RUN`` at evaluations, one at a time and at most every ``min_seconds``.

    The first failure is reported on the terminal and in log.txt; later pages are still tried.
    """

    def __init__(self, run: Path, min_seconds: float = PAGE_GAP_SECONDS) -> None:
        self.run, self.min_seconds = run, min_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -min_seconds
        self._told = False
        self._step = 0

    def see(self, event: Event) -> None:
        self._step = event.step
        due = time.monotonic() - self._started_at >= self.min_seconds
        idle = self._process is None or self._process.poll() is not None
        if isinstance(event, Evaluated) and due and idle and not _nearly_over(event):
            if self._process is not None and (code := self._process.poll()):
                self._tell(f"ended with {code}")
            self._started_at = time.monotonic()
            self._process = self._start()

    def close(self) -> None:
        """Writes the last page, of the final state of the run, and waits for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # the last page replaces it, and files are never half written
            self._await(self._process)
        if self.run.is_dir() and (code := self._await(self._start())):
            self._tell(f"ended with {code}" if code != -signal.SIGKILL else "did not end in time, or was killed")

    def _start(self) -> subprocess.Popen[bytes]:
        return start_beside("stagewright.report", [str(self.run)])

    def _await(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _tell(self, how: str) -> None:
        if self._told:
            return
        self._told = True
        text = f"the process that writes plots and report.html {how}; stagewright report {self.run} shows the error"
        tell_beside(self.run, self._step, text)


def _nearly_over(event: Evaluated) -> bool:
    """Returns whether the run ends so soon that a page started now would only delay the last one."""
    return event.eta_seconds is not None and event.eta_seconds < _NEARLY_OVER_SECONDS
