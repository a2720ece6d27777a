"""Updates plots and report.html during a run, in a separate process, so that training does not wait for it."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from stagewright.observers.text_log import TextLog
from stagewright.plan.cost import PAGE_GAP_SECONDS
from stagewright.rundir.event_kinds import Evaluated, Event, Notice
from stagewright.system.children import module_command

_log = logging.getLogger(__name__)

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
        command = module_command("stagewright.report", [str(self.run)])
        if nice := shutil.which("nice"):
            command = [nice, "-n", "15", *command]  # training has priority
        nowhere = subprocess.DEVNULL
        # A separate process group, because Ctrl-C is meant for the training, which closes its observers itself. Not a separate
        # session, because Linux may divide the processors evenly among sessions (autogroup) and ignore nice.
        return subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, process_group=0)

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
        _log.warning("%s", text)
        if self.run.is_dir():
            log = TextLog(self.run / "log.txt")
            log.see(Notice(step=self._step, text=text, time=datetime.now(UTC).isoformat()))
            log.close()


def _nearly_over(event: Evaluated) -> bool:
    """Returns whether the run ends so soon that a page started now would only delay the last one."""
    return event.eta_seconds is not None and event.eta_seconds < _NEARLY_OVER_SECONDS
