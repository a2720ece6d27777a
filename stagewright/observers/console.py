"""The terminal or notebook: a live line with progress and the time left, and one lasting line for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from stagewright.rundir.event_kinds import Evaluated, Evaluating, Event, MemoryUse, Notice, Progress
from stagewright.rundir.event_text import sentence
from stagewright.system.notebook import NotebookLine, in_notebook
from stagewright.system.terminal import Terminal
from stagewright.text import number_text, percent_text, seconds_text

_PLAIN_SECONDS = 30.0
_NOTEBOOK_SECONDS = 0.5
"""Each update of a notebook's line is a message that its page must draw."""
_STYLES = {
    **{"stage": "bold", "finished": "bold green", "interim_finished": "bold green"},
    **{"stopped": "yellow", "bad_image": "yellow"},
}


class Console:
    """Shows a run on the terminal; if the output is a file, without the live line but with a progress line every half minute.
    In a notebook the live line is HTML, drawn twice a second at most, with the last evaluation below it in place of a line for
    each.

    ``stages`` are (name, first step, number of steps). Events that :func:`is_shown` rejects are written to
    log.txt only. ``quiet`` shows nothing. ``close`` restores the terminal.
    """

    def __init__(
        self,
        total_steps: int,
        stages: Sequence[tuple[str, int, int]],
        *,
        quiet: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.total_steps, self.stages, self.quiet = total_steps, stages, quiet
        self._console = Terminal(file, failsafe=True, highlight=False, soft_wrap=True)
        self._live: RichProgress | None = None
        self._task: TaskID | None = None
        self._plain_at = time.monotonic()
        self._notebook = NotebookLine() if file is None and in_notebook() else None
        self._evaluated = ""

    def see(self, event: Event) -> None:
        if self.quiet:
            return
        if isinstance(event, Progress | Evaluating):
            self._show(event)
        elif self._notebook is not None and isinstance(event, Evaluated):
            self._evaluated = sentence(event) or ""
            self._notebook.show(event.step, self.total_steps, self._evaluated)
        elif is_shown(event) and (text := sentence(event)) is not None:
            self._console.print(Text(text, style=_STYLES.get(event.kind, "")))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._notebook is not None:
            self._notebook.close(self._evaluated)

    def _show(self, event: Progress | Evaluating) -> None:
        text = self.progress_text(event) if isinstance(event, Progress) else self.evaluating_text(event)
        if self._notebook is not None:
            if event.step >= self.total_steps or time.monotonic() - self._plain_at > _NOTEBOOK_SECONDS:
                self._plain_at = time.monotonic()
                self._notebook.show(event.step, self.total_steps, text, self._evaluated)
            return
        if not self._console.is_terminal:
            if isinstance(event, Progress) and time.monotonic() - self._plain_at > _PLAIN_SECONDS:
                self._plain_at = time.monotonic()
                self._console.print(text)
            return
        if self._live is None:
            columns = (BarColumn(bar_width=16), TextColumn("{task.description}", markup=False))
            self._live = RichProgress(*columns, console=self._console, transient=True)
            self._task = self._live.add_task("", total=self.total_steps)
            self._live.start()
        assert self._task is not None
        self._live.update(self._task, completed=event.step, description=text)

    def progress_text(self, event: Progress) -> str:
        """``stage 2/3 middle · step 1,234/5,000 · loss 1.23 · top-1 71.2 % · 1,234 img/s · 3.2 GB · LR 0.0123 · ETA 12 min``"""
        parts = [
            f"stage {event.stage + 1}/{len(self.stages)} {self.stages[event.stage][0]}",
            f"step {event.step:,}/{self.total_steps:,}",
            f"loss {event.loss:.3f}",
            f"top-1 {percent_text(event.top1)}",
            f"{number_text(event.images_per_second)} img/s" if event.images_per_second else "",
            f"{event.memory_gb:.1f} GB",
            f"LR {event.lr:.3g}",
            f"ETA {seconds_text(event.eta_seconds)}" if event.eta_seconds is not None else "",
        ]
        return " · ".join(part for part in parts if part)

    def evaluating_text(self, event: Evaluating) -> str:
        """``evaluating · step 1,234/5,000 · 640 of 1,000 pictures``"""
        done = f"{event.done:,} of {event.total:,} pictures"
        return f"evaluating · step {event.step:,}/{self.total_steps:,} · {done}"


def is_shown(event: Event) -> bool:
    """Whether ``event`` belongs on the terminal: memory does not, nor what was said there before the run began."""
    return not isinstance(event, MemoryUse) and not (isinstance(event, Notice) and event.already_shown)
