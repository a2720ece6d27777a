"""The terminal: a live line with progress and the time left, and one lasting line for each evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from stagewright.rundir.event_text import Event, sentence
from stagewright.system.output import unbreakable
from stagewright.text import number_text, percent_text, seconds_text

_PLAIN_SECONDS = 30.0


class Console:
    """Shows a run on the terminal; if the output is a file, without the live line but with a progress line every half minute.

    ``stages`` are (name, first step, number of steps). Events with ``told`` in their clock were shown before and are skipped.
    ``quiet`` shows nothing. ``close`` restores the terminal.
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
        self._console = RichConsole(file=unbreakable(file or sys.stdout), highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._plain_at = time.monotonic()

    def see(self, event: Event) -> None:
        if self.quiet:
            return
        if event["kind"] in ("progress", "evaluating"):
            self._show(event)
        elif not event["clock"].get("told") and (text := sentence(event)) is not None:
            style = {"stage": "bold", "finished": "bold green", "stopped": "yellow", "bad_image": "yellow"}
            self._console.print(Text(text, style=style.get(event["kind"], "")))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, event: Event) -> None:
        text = self.progress_text(event) if event["kind"] == "progress" else self.evaluating_text(event)
        if not self._console.is_terminal:
            if event["kind"] == "progress" and time.monotonic() - self._plain_at > _PLAIN_SECONDS:
                self._plain_at = time.monotonic()
                self._console.print(text)
            return
        if self._live is None:
            columns = (BarColumn(bar_width=16), TextColumn("{task.description}", markup=False))
            self._live = Progress(*columns, console=self._console, transient=True)
            self._task = self._live.add_task("", total=self.total_steps)
            self._live.start()
        assert self._task is not None
        self._live.update(self._task, completed=event["step"], description=text)

    def progress_text(self, event: Event) -> str:
        """``stage 2/3 middle · step 1,234/5,000 · loss 1.23 · top-1 71.2 % · 1,234 img/s · 3.2 GB · LR 0.0123 · ETA 12 min``"""
        number = int(event["stage"])
        parts = [
            f"stage {number + 1}/{len(self.stages)} {self.stages[number][0]}",
            f"step {event['step']:,}/{self.total_steps:,}",
            f"loss {event['loss']:.3f}",
            f"top-1 {percent_text(event['top1'])}",
            f"{number_text(event['images_per_second'])} img/s" if event["images_per_second"] else "",
            f"{event['memory_gb']:.1f} GB",
            f"LR {event['lr']:.3g}",
            f"ETA {seconds_text(event['eta_seconds'])}" if event["eta_seconds"] is not None else "",
        ]
        return " · ".join(part for part in parts if part)

    def evaluating_text(self, event: Event) -> str:
        """``evaluating · step 1,234/5,000 · 640 of 1,000 pictures``"""
        done = f"{event['done']:,} of {event['total']:,} pictures"
        return f"evaluating · step {event['step']:,}/{self.total_steps:,} · {done}"
