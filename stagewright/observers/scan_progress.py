"""A progress bar for scans of a data set."""

from __future__ import annotations

import sys
import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stagewright.system.output import failsafe_stream

_SCAN_SECONDS = 0.5


class ScanProgress:
    """Shows the number of files done, on a terminal, if it takes longer than half a second.

    ``what`` names the activities in order: when the count starts again at a lower number, the next one has begun.
    """

    def __init__(self, *what: str, quiet: bool = False) -> None:
        self.quiet = quiet
        self._what = list(what or ("looking at the pictures",))
        self._done = 0
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._began = time.monotonic()

    def __enter__(self) -> ScanProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._live is None:
            console = RichConsole(file=failsafe_stream(sys.stderr))
            if self.quiet or not console.is_terminal or time.monotonic() - self._began < _SCAN_SECONDS:
                return
            told = TextColumn("{task.description}", markup=False)
            columns = (told, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._live = Progress(*columns, console=console, transient=True)
            self._task = self._live.add_task(self._what[0])
            self._live.start()
        assert self._task is not None
        if done < self._done and len(self._what) > 1:
            del self._what[0]
            self._live.reset(self._task, description=self._what[0])
        self._done = done
        self._live.update(self._task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
