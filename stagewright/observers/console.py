"""The terminal or notebook: a live line with progress and the time left, and one lasting line for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from stagewright.observers.epoch_table import EpochTable, loss_text
from stagewright.rundir.event_kinds import Evaluated, Evaluating, Event, MemoryUse, Notice, Progress
from stagewright.rundir.event_text import sentence
from stagewright.system.notebook import NotebookLine, in_notebook
from stagewright.system.terminal import Terminal
from stagewright.text import number_text, percent_text, seconds_text

_BAR = 14
"""Characters of the bar."""
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
        self._epochs = EpochTable()
        self._eta: float | None = None
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
        elif isinstance(event, Evaluated):
            self._say("\n".join(self._epochs.lines(event, self._width)), no_wrap=True)
        elif is_shown(event) and (text := sentence(event)) is not None:
            self._say(text, _STYLES.get(event.kind, ""))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._notebook is not None:
            self._notebook.close(self._evaluated)

    @property
    def _folds(self) -> bool:
        return self._width is not None or self._notebook is not None

    @property
    def _width(self) -> int | None:
        """Characters of a line of the terminal; None for a file and a notebook, whose lines are as long as they are."""
        return self._console.width if self._console.is_terminal else None

    def _say(self, text: str, style: str = "", *, no_wrap: bool = False) -> None:
        """Prints lasting lines; on a terminal they are folded at blanks, no number is divided from its unit."""
        self._console.print(Text(text, style=style), soft_wrap=no_wrap or not self._folds)

    def _show(self, event: Progress | Evaluating) -> None:
        if isinstance(event, Progress):
            self._eta = event.eta_seconds
        live = self._notebook is None and self._width is not None
        room = self._console.width - _BAR - 1 if live else None
        text = self.progress_text(event, room) if isinstance(event, Progress) else self.evaluating_text(event, room)
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
            columns = (BarColumn(bar_width=_BAR), TextColumn("{task.description}", markup=False))
            self._live = RichProgress(*columns, console=self._console, transient=True)
            self._task = self._live.add_task("", total=self.total_steps)
            self._live.start()
        assert self._task is not None
        self._live.update(self._task, completed=event.step, description=text)

    def progress_text(self, event: Progress, room: int | None = None) -> str:
        """``stage 2/3 middle · step 1,234/5,000 · loss 1.23 · top-1 71.2 % · 1,234 img/s · 3.2 GB · LR 0.0123 · ETA 12 min``;
        in ``room`` characters as many of these as fit, step and ETA always."""
        return _joined(
            [
                (3, f"stage {event.stage + 1}/{len(self.stages)} {self.stages[event.stage][0]}"),
                (0, f"step {event.step:,}/{self.total_steps:,}"),
                (1, f"loss {loss_text(event.loss)}"),
                (4, f"top-1 {percent_text(event.top1)}"),
                (2, f"{number_text(event.images_per_second)} img/s" if event.images_per_second else ""),
                (6, f"{event.memory_gb:.1f} GB"),
                (1, event.mirror or ""),
                (5, f"LR {event.lr:.3g}"),
                (0, f"ETA {seconds_text(event.eta_seconds)}" if event.eta_seconds is not None else ""),
            ],
            room,
        )

    def evaluating_text(self, event: Evaluating, room: int | None = None) -> str:
        """``evaluating · step 1,234/5,000 · 640 of 1,000 pictures · ETA 12 min``, the ETA as before the evaluation."""
        return _joined(
            [
                (0, "evaluating"),
                (1, f"step {event.step:,}/{self.total_steps:,}"),
                (
                    0,
                    f"{event.done:,} of {event.total:,} pictures"
                    if room is None or room > 55
                    else f"{event.done:,}/{event.total:,}",
                ),
                (0, f"ETA {seconds_text(self._eta)}" if self._eta else ""),
            ],
            room,
        )


def _joined(parts: list[tuple[int, str]], room: int | None) -> str:
    """Returns the texts of ``parts`` in one line. While it has more than ``room`` characters, the one with the largest number
    before it is left out; those with 0 never are."""
    kept = [part for part in parts if part[1]]
    while room is not None and any(rank for rank, _ in kept) and len(" · ".join(text for _, text in kept)) > room:
        kept.remove(max(kept, key=lambda part: part[0]))
    return " · ".join(text for _, text in kept)


def is_shown(event: Event) -> bool:
    """Whether ``event`` belongs on the terminal: memory does not, nor what was said there before the run began."""
    return not isinstance(event, MemoryUse) and not (isinstance(event, Notice) and event.already_shown)
