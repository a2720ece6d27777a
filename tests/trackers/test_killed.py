"""The long form: real processes, each ended by SIGKILL ten times, and rollbacks of a real divergence."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from picture_folders import write_stripes
from stopping import begin
from tracked_runs import (
    FIELDS,
    Points,
    assert_same,
    expected,
    pids_of,
    tensorboard_points,
    track,
    wandb_points,
    without_result,
)
from wandb_service import WandbService

from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import RolledBack
from stagewright.rundir.events import read_events
from stagewright.system.children import module_command

NAMES = "tensorboard,wandb,mlflow"
STAGES = [
    {"name": "calm", "epochs": "500st"},
    {"name": "wild", "epochs": "200st", "lr": {"schedule": "constant", "peak": 40.0}},
    {"name": "last", "epochs": "500st", "image_size": 20},
]
GUARD = {"window": 8, "lr_factor": 0.01, "lr_factor_windows": 40}


@pytest.mark.long
def test_ten_times_kill_nine(tmp_path: Path) -> None:
    fields = {**FIELDS, "stages": STAGES, "guard": GUARD, "eval": {"every": "50st"}, "checkpoints": {"every": "40st"}}
    run = begin(
        tmp_path / "run", write_stripes(tmp_path / "pictures"), recipes.from_dict({**fields, "average": "none"})
    )
    chance = random.Random(0)
    server = MlflowServer(tmp_path)
    server.start()
    try:
        with WandbService() as wandb:
            environment = {"MLFLOW_TRACKING_URI": server.url, **wandb.environment()}
            for number in range(1, 11):
                wandb.failing = number in (4, 5)
                if number == 6:
                    server.kill()
                _live(run, environment, 105 * number, kill_trackers=chance.random() < 0.5)
                if number == 6:
                    server.start()
            _live(run, environment, None, kill_trackers=False)
            rolled = {one.event.step for one in read_events(run.events) if isinstance(one.event, RolledBack)}
            assert rolled and json.loads(run.summary.read_bytes())["status"] == "finished"
            for name in NAMES.split(","):
                done = track(run.root, name, environment)
                assert done.returncode == 0, done
                assert_same(without_result(_points(run, name, server, wandb)), expected(run.root))
            assert wandb.overwritten == []
    finally:
        server.kill()


def _live(run: RunDir, environment: dict[str, str], until: int | None, *, kill_trackers: bool) -> None:
    """Resumes the run, and kills it when steps.csv has come to step ``until``."""
    flags = ["--device", "cpu", "--no-pages", "--quiet", "--track", NAMES]
    command = module_command("stagewright", ["resume", str(run.root), *flags])
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=nowhere, stdout=nowhere, stderr=nowhere
    )
    latest = time.monotonic() + 300
    while until is not None and process.poll() is None and time.monotonic() < latest and _step(run) < until:
        time.sleep(0.02)
    if until is None:
        assert process.wait(300) == 0
        while (
            pids_of(run.root) and time.monotonic() < latest
        ):  # a busy machine: they may outlive the training by a minute
            time.sleep(0.2)
        return
    assert process.poll() is None and _step(run) >= until
    process.send_signal(signal.SIGKILL)
    if kill_trackers:
        for pid in pids_of(run.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _step(run: RunDir) -> int:
    if not run.steps.exists():
        return 0
    last = run.steps.read_bytes().split(b"\n")[-2:-1]
    first = last[0].partition(b",")[0] if last else b""
    return int(first) if first.isdigit() else 0


def _points(run: RunDir, name: str, server: MlflowServer, wandb: WandbService) -> Points:
    if name == "tensorboard":
        return tensorboard_points(run.root)
    remote = json.loads((run.root / "trackers" / f"{name}.json").read_bytes())["remote"]
    return wandb_points(wandb.rows(remote)) if name == "wandb" else server.points()[remote]
