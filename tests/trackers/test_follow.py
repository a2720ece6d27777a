"""One tracker's process: killed between sending and noting it, sent rows that differ later, studies, other runs under the id."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import stored_points
from picture_folders import write_stripes
from stopping import begin
from tracked_runs import (
    FIELDS,
    assert_same,
    expected,
    tensorboard_points,
    track,
    wandb_points,
    without_result,
)
from wandb_service import WandbService

from stagewright.api.train import resume
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.trackers import follow
from stagewright.trackers.follow import Follower
from stagewright.trackers.state import State, write_state

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("follow")
    run = begin(folder / "run", write_stripes(folder / "pictures"), recipes.from_dict(FIELDS))
    assert resume(run.root, execution=QUIET, say=lambda text: None).finished
    return run


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(trained.root, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "trackers"))
    return RunDir(tmp_path / "run")


class _Killed(BaseException):
    pass


def ended(seconds: float) -> bool:
    return True


def test_killed_at_any_write_of_the_state_nothing_is_lost_or_doubled(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends right before it writes its state for the first, second, ... time, until it comes through."""
    monkeypatch.setattr(follow, "_MOST_STEPS", 25)
    nth = 0
    for nth in range(1, 100):
        writes = 0

        def write(run: RunDir, state: State, nth: int = nth) -> None:
            nonlocal writes
            writes += 1
            if writes == nth:
                raise _Killed
            write_state(run, state)

        monkeypatch.setattr(follow, "write_state", write)
        try:
            assert Follower(run, "tensorboard", ended, lambda text: None).follow()
            break
        except _Killed:
            pass
    assert nth > 5
    points = tensorboard_points(run.root)
    assert_same(without_result(points), expected(run.root))
    assert len(points) == len(set(points))  # the result too came once


_CRASH = """
import os, sys
from pathlib import Path
from stagewright.rundir.directory import RunDir
from stagewright.trackers import follow
follow._MOST_STEPS = 50
left, write = int(sys.argv[3]), follow.write_state
def count(run, state):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    write(run, state)
follow.write_state = count
follow.Follower(RunDir(Path(sys.argv[1])), sys.argv[2], lambda seconds: True, print).follow()
"""


@pytest.mark.long
def test_mlflow_takes_a_part_that_comes_twice_once(run: RunDir, tmp_path: Path) -> None:
    """Writes: 1 opened, 2 and 3 around the first part; then 1 opened, 2 after the same part, 3 and 4 around the second."""
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for nth in (3, 4):
        command = [sys.executable, "-c", _CRASH, str(run.root), "mlflow", str(nth)]
        assert subprocess.run(command, env={**os.environ, **environment}, capture_output=True).returncode == 9
        assert json.loads((run.root / "trackers" / "mlflow.json").read_bytes())["sending"] is not None
    done = track(run.root, "mlflow", environment, "--with-files")
    assert done.returncode == 0, done
    (points,) = stored_points(tmp_path / "mlflow.db").values()
    assert_same(without_result(points), expected(run.root))
    files = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert {"summary.json", "weights.safetensors"} <= files


@pytest.mark.long
def test_wandb_goes_on_from_what_its_service_has(run: RunDir) -> None:
    with WandbService() as service:
        environment = service.environment()
        command = [sys.executable, "-c", _CRASH, str(run.root), "wandb", "3"]
        assert subprocess.run(command, env={**os.environ, **environment}, capture_output=True).returncode == 9
        for _ in range(2):
            done = track(run.root, "wandb", environment)
            assert done.returncode == 0, done
        (rows,) = (service.rows(name) for name in service.history)
        assert_same(without_result(wandb_points(rows)), expected(run.root))


def test_rows_that_differ_later_are_written_anew_or_said(run: RunDir) -> None:
    """As after a resume on other hardware: the last bits of a row that was sent are others."""
    said: list[str] = []
    assert Follower(run, "tensorboard", ended, said.append).follow()
    text = run.steps.read_text()
    second = text.splitlines()[2]
    cells = second.split(",")
    cells[5] = repr(float(cells[5]) * (1 + 2**-40))
    run.steps.write_text(text.replace(second, ",".join(cells)))
    assert Follower(run, "tensorboard", ended, said.append).follow()
    assert_same(without_result(tensorboard_points(run.root)), expected(run.root))


@pytest.mark.long
def test_wandb_says_that_rows_differ(run: RunDir) -> None:
    with WandbService() as service:
        assert track(run.root, "wandb", service.environment()).returncode == 0
        text = run.steps.read_text()
        run.steps.write_text(text.replace(",0.02,", ",0.03,", 1))
        done = track(run.root, "wandb", service.environment())
        assert done.returncode == 0
        assert f"to send all anew: stagewright track {run.root} --to wandb --rebuild" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_run_of_another_place_under_the_id_is_refused(run: RunDir, tmp_path: Path, name: str) -> None:
    """The same plan in a directory of the same name on another machine: the service has a run with this id already."""
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with WandbService() as service:
        environment |= service.environment()
        assert track(run.root, name, environment).returncode == 0
        shutil.rmtree(run.root / "trackers")
        env = run.read_env()
        run.env.write_text(json.dumps({**env, "created": "2020-01-01T00:00:00+00:00"}))
        done = track(run.root, name, environment)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
        assert f"is of another run, begun {env['created']} in {run.root}" in done.stderr
        assert f"stagewright track {run.root} --to {name} --rebuild sends this one under an id" in done.stderr
        assert track(run.root, name, environment, "--rebuild").returncode == 0
        if name == "wandb":
            assert len(service.history) == 2 and all(len(service.rows(one)) == 120 for one in service.history)
        else:
            assert len(stored_points(tmp_path / "mlflow.db")) == 2


@pytest.mark.long
def test_runs_of_a_study_are_grouped(run: RunDir, tmp_path: Path) -> None:
    study = tmp_path / "sweep"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for name in ("a", "b"):
        shutil.copytree(run.root, study / "runs" / name)
    (study / "study.json").write_text("{}")
    with WandbService() as service:
        for name in ("a", "b"):
            done = track(study / "runs" / name, "wandb,mlflow", {**environment, **service.environment()})
            assert done.returncode == 0, done
        assert [bucket["groupName"] for bucket in service.buckets.values()] == ["sweep", "sweep"]
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    rows = connection.execute("select run_uuid, key, value from tags").fetchall()
    connection.close()
    (parent,) = (one for one, key, value in rows if key == "stagewright.study" and value == str(study))
    assert [value for _, key, value in rows if key == "mlflow.parentRunId"] == [parent, parent]


def test_a_run_that_has_not_finished_keeps_its_last_steps(run: RunDir) -> None:
    run.summary.write_text(json.dumps({**json.loads(run.summary.read_bytes()), "status": "stopped"}))
    said: list[str] = []
    follower = Follower(run, "tensorboard", ended, said.append, by_hand=True)
    assert follower.follow()
    assert (
        "sent up to step 100 of 120" in "\n".join(said) and "stagewright resume or finish settles the rest" in said[-1]
    )
    assert max(step for _, step, _ in tensorboard_points(run.root)) == 100
    assert dataclasses.asdict(follower.state)["result_sha256"] is None
