"""Starts the processes that send a run to trackers, one for each, and says what they say. The training never waits for them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from stagewright.observers.text_log import tell_beside
from stagewright.rundir.event_kinds import Event
from stagewright.rundir.tracking import not_all_sent
from stagewright.system.children import start_beside

_AT_THE_END_SECONDS = 70.0
"""The processes end by themselves a minute after the training."""
_GAP_SECONDS = 1.0


class TrackerProcesses:
    """Starts ``stagewright.trackers RUN NAME`` for each name at the first event, and writes what they say to the terminal and to
    log.txt."""

    def __init__(self, run: Path, names: Sequence[str]) -> None:
        self.run, self.names = run, tuple(names)
        self._processes: dict[str, subprocess.Popen[bytes]] | None = None
        self._begun: dict[str, bytes] = {}
        self._looked_at = 0.0
        self._step = 0

    def see(self, event: Event) -> None:
        self._step = event.step
        if self._processes is None:
            self._processes = {name: self._start(name) for name in self.names}
        elif time.monotonic() - self._looked_at > _GAP_SECONDS:
            self._looked_at = time.monotonic()
            self._listen()

    def close(self) -> None:
        """Lets the processes send the rest, for a minute at most."""
        processes = self._processes or {}
        for process in processes.values():
            if process.stdin is not None:
                process.stdin.close()
        until = time.monotonic() + _AT_THE_END_SECONDS
        for process in processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:  # as on a machine that is too busy for it
                process.kill()
                process.wait()
        self._listen()
        for name, process in processes.items():
            if process.returncode < 0 or process.returncode == 1:  # killed, or a fault: it could not say so itself
                self._tell(not_all_sent(self.run, name))
            if process.stdout is not None:
                process.stdout.close()
        self._processes = {}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        process = start_beside("stagewright.trackers", [str(self.run), name], pipes=True)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _listen(self) -> None:
        for name, process in (self._processes or {}).items():
            assert process.stdout is not None
            while True:
                try:
                    found = os.read(process.stdout.fileno(), 65536)
                except BlockingIOError:
                    break
                if not found:
                    break
                *lines, self._begun[name] = (self._begun.get(name, b"") + found).split(b"\n")
                for line in lines:
                    self._tell(line.decode(errors="replace"))

    def _tell(self, text: str) -> None:
        tell_beside(self.run, self._step, text)
