"""Writes a run's plots and page."""

from __future__ import annotations

from pathlib import Path

from stagewright.report.gallery import MOST_BYTES, Gallery, Heat
from stagewright.report.html import page
from stagewright.report.plots import write_plots
from stagewright.report.read import read_run
from stagewright.storage.files import user_path, write_whole


def write(run: str | Path, *, picture_bytes: float = MOST_BYTES, heat: Heat | None = None) -> Path:
    """Writes ``plots/*.png`` and ``report.html`` of ``run`` and returns the page's path; CheckpointError if it is not a run.

    The pictures in the page take at most ``picture_bytes`` of it; ``heat`` has saliency maps of some of them.
    """
    run = user_path(run)
    record = read_run(run)
    drawings = write_plots(record, run / "plots")
    write_whole(run / "report.html", page(record, drawings, Gallery(record, picture_bytes, heat)), durable=False)
    return run / "report.html"
