"""What stays of a run that has ended and will not be resumed: its best and its last checkpoint."""

from __future__ import annotations

import os
import shutil

from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir


def keep_best_and_last(run: RunDir) -> None:
    """Removes all checkpoints but those that best.json and last.json name; if neither does, none."""
    folder = run.checkpoints
    needed = {path.name for name in ("best", "last") if (path := checkpoint.pointed(folder, name)) is not None}
    for name in map(checkpoint.name_of, checkpoint.steps(folder) if needed else ()):
        if name not in needed and (folder / name).is_dir():
            # Renamed first, so that a kill in the middle does not leave half of a checkpoint under its name.
            os.replace(folder / name, folder / f".tmp-{name}")
            shutil.rmtree(folder / f".tmp-{name}", ignore_errors=True)
