"""Progress of every command but a training: on standard error, once the command takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stagewright.system.notebook import NotebookLine, in_notebook
from stagewright.system.terminal import Terminal
from stagewright.text import seconds_text

_PATIENCE_SECONDS = 2.0
_PLAIN_SECONDS = 30.0
_SILENT_SECONDS = 10.0
_REDRAW_SECONDS = 0.1
_CELL_SECONDS = 0.5


class ProgressLine:
    """Context manager that shows how many of the items are done: ``progress(done, total)`` sets the numbers.

    Nothing is shown in the first two seconds. Then a terminal or a notebook has one line that is drawn again and again, and
    vanishes at the end; elsewhere a line is printed as soon as something is done, or after 10 s, and then every 30 s.
    ``activities`` are named in order: when the count starts again at a lower number, the next one has begun. ``quiet`` shows
    nothing. A call costs no more than setting the numbers, because a thread of its own shows them.
    """

    def __init__(self, *activities: str, quiet: bool = False) -> None:
        self._activities: Sequence[str] = activities or ("looking at the pictures",)
        self._at = 0
        self._done = 0
        self._total: int | None = None
        self._began, self._first = time.monotonic(), 0
        self._ended = threading.Event()
        self._thread = None if quiet else threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        if self._thread is not None:
            self._thread.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        if done < self._done or self._total is None:
            if done < self._done and self._at + 1 < len(self._activities):
                self._at += 1
            self._began, self._first = time.monotonic(), done
        self._done, self._total = done, total

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)  # standard error may be a pipe that nobody empties

    def text(self) -> str:
        """Returns the line for a file: ``packing: 1,200 of 50,000 (2 %), about 12 min left``."""
        activity, done, total = self._activities[self._at], self._done, self._total
        if not total:
            return f"{activity} ..."
        line = f"{activity}: {done:,} of {total:,} ({100 * done // total} %)"
        if not self._first < done < total:
            return line
        left = (time.monotonic() - self._began) / (done - self._first) * (total - done)
        return f"{line}, about {seconds_text(left)} left"

    def _show(self) -> None:
        if self._ended.wait(_PATIENCE_SECONDS):
            return
        if in_notebook():
            self._draw_in_cell()
            return
        console = Terminal(sys.stderr, failsafe=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self._draw(console)
            return
        waited = _PATIENCE_SECONDS
        while self._done == self._first and waited < _SILENT_SECONDS and not self._ended.wait(_REDRAW_SECONDS):
            waited += _REDRAW_SECONDS  # the first line is worth more once it has a number
        while not self._ended.is_set():
            console.file.write(f"{self.text()}\n")
            console.file.flush()
            self._ended.wait(_PLAIN_SECONDS)

    def _draw(self, console: Terminal) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        # What is printed meanwhile goes above the line if it goes to the same terminal, and else where it belongs.
        live = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        shown: tuple[int, TaskID] | None = None
        with live:
            while not self._ended.wait(_REDRAW_SECONDS):
                if shown is None or shown[0] != self._at:
                    if shown is not None:
                        live.remove_task(shown[1])
                    shown = self._at, live.add_task(self._activities[self._at], total=None)
                live.update(shown[1], completed=self._done, total=self._total or None)

    def _draw_in_cell(self) -> None:
        line = NotebookLine()
        while not self._ended.wait(_CELL_SECONDS):
            line.show(self._done, self._total or 1, self.text())
        line.close()
