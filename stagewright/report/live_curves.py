"""The curves of a run in a notebook, in one place of the cell that trains."""

from __future__ import annotations

import time
from pathlib import Path

from stagewright.report.read import read_run
from stagewright.rundir.event_kinds import Evaluated, Event
from stagewright.system.notebook import NotebookPlace, in_notebook

_SHARE = 20
"""A drawing of T seconds is followed by none for this many times T, so that curves take no more than a twentieth of a run."""


class LiveCurves:
    """Observer that shows loss and accuracy by step, as the report draws them, and draws them again at evaluations.

    They stay in the cell, and are of the whole run at the end. Outside of a notebook it does nothing.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._place = NotebookPlace()
        self._next_at = 0.0
        self._behind = False

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluated) and in_notebook():
            self._behind = True
            if time.monotonic() >= self._next_at:
                self._draw()

    def close(self) -> None:
        if self._behind:
            self._draw()

    def _draw(self) -> None:
        from stagewright.report.plots import learning_curves  # matplotlib comes with it, which a training does not need

        began = time.monotonic()
        plots = learning_curves(read_run(self.run))
        self._place.put({"text/plain": "loss and accuracy by step", "text/html": plots._repr_html_()})
        self._behind = False
        self._next_at = time.monotonic() + _SHARE * (time.monotonic() - began)
