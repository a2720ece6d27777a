"""The processes that send a run to trackers, as the training sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture_folders import write_stripes
from stopping import begin
from tracked_runs import FIELDS, pids_of

from stagewright.observers import tracker_processes
from stagewright.observers.tracker_processes import TrackerProcesses
from stagewright.recipe import recipes
from stagewright.rundir.event_kinds import StageBegun


def test_a_process_that_cannot_end_in_time_is_ended_and_the_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that is too busy for it, or where it was killed: it cannot say by itself what is left."""
    monkeypatch.setattr(tracker_processes, "_AT_THE_END_SECONDS", 0.0)
    run = begin(tmp_path / "run", write_stripes(tmp_path / "pictures"), recipes.from_dict(FIELDS))
    processes = TrackerProcesses(run.root, ("tensorboard", "mlflow"))
    processes.see(StageBegun(step=0, stage=0, name="first", trainable=10, frozen=0))
    assert len(pids_of(run.root)) == 2
    processes.close()
    assert not pids_of(run.root)
    for name in ("tensorboard", "mlflow"):
        assert f"{name}: not all of {run.root} was sent; to send the rest: " in run.log.read_text()
        assert f"stagewright track {run.root} --to {name}\n" in run.log.read_text()
