"""``python -m stagewright.report RUN...``: writes plots and report.html anew, from the run's files alone."""

from __future__ import annotations

import sys
from pathlib import Path

from stagewright.errors import StagewrightError
from stagewright.report.html import page
from stagewright.report.plots import write_plots
from stagewright.report.read import read_run
from stagewright.storage.files import user_path, write_whole


def write(run: str | Path) -> Path:
    """Writes ``plots/*.png`` and ``report.html`` of ``run``; returns the page's path. CheckpointError if it is no run."""
    run = user_path(run)
    record = read_run(run)
    drawings = write_plots(record, run / "plots")
    write_whole(run / "report.html", page(record, drawings), durable=False)
    return run / "report.html"


def main() -> int:
    """Writes the report of every run named; 2 where one is none."""
    try:
        for run in sys.argv[1:]:
            print(write(run))
    except StagewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
