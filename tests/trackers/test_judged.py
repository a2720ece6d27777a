"""A three-stage run that is killed ten times and rolled back once, seen by all trackers: every number once, to the bit."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from picture_folders import write_stripes
from stopping import begin, crash_after
from tracked_runs import (
    FAULT,
    FIELDS,
    Points,
    Trackers,
    assert_same,
    break_once,
    expected,
    offline_rows,
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
from stagewright.rundir.event_kinds import Resumed, RolledBack
from stagewright.rundir.events import read_events
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

pytestmark = pytest.mark.long  # its short form is test_follow.py

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
NAMES = ("tensorboard", "wandb", "mlflow")


@dataclass
class Followed:
    """A finished run, its trackers' services, and what was seen on the way."""

    run: RunDir
    mlflow: MlflowServer
    wandb: WandbService
    environment: dict[str, str]
    told: dict[str, tuple[int, str]] = field(default_factory=dict)
    live: dict[int, dict[str, int]] = field(default_factory=dict)
    """How far each tracker was, by step of the training."""

    def points(self, name: str, run: Path | None = None) -> Points:
        root = run or self.run.root
        if name == "tensorboard":
            return tensorboard_points(root)
        remote = json.loads((root / "trackers" / f"{name}.json").read_bytes())["remote"]
        return wandb_points(self.wandb.rows(remote)) if name == "wandb" else self.mlflow.points()[remote]


def at_steps(actions: dict[int, Callable[[], None]]) -> Callable[[Session], AfterUpdate]:
    """Calls each action after its step, once."""

    def arm(session: Session) -> AfterUpdate:
        def act(stage: object, batch: object) -> None:
            if (action := actions.pop(session.state.step, None)) is not None:
                session.recorder.fetch()
                action()

        return act

    return arm


def go(run: RunDir, *arms: Callable[[Session], AfterUpdate | None]) -> bool:
    def arm(session: Session) -> AfterUpdate:
        hooks = [hook for one in arms if (hook := one(session)) is not None]

        def after_update(stage: object, batch: object) -> None:
            for hook in hooks:
                hook(stage, batch)  # type: ignore[arg-type]

        return after_update

    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm).finished


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """The run with its trackers: ten kills of the training, three of trackers, one rollback; both services away for a while."""
    folder = tmp_path_factory.mktemp("tracked")
    server = MlflowServer(folder)
    server.start()
    try:
        with WandbService() as wandb:
            run = begin(folder / "run", write_stripes(folder / "pictures"), recipes.from_dict(FIELDS))
            environment = {"MLFLOW_TRACKING_URI": server.url, **wandb.environment()}
            found = Followed(run, server, wandb, environment)
            trackers = Trackers(run, environment, NAMES)
            trackers.start()
            try:
                _train(found, trackers)
            finally:
                if trackers.processes:
                    found.told |= trackers.end()
            yield found
    finally:
        server.kill()


def _train(found: Followed, trackers: Trackers) -> None:
    def live(step: int, settled: int, then: Callable[[], None] = lambda: None) -> Callable[[], None]:
        def wait() -> None:
            trackers.await_step(settled)
            found.live[step] = {name: trackers.sent(name) for name in NAMES}
            then()

        return wait

    def down() -> None:
        trackers.kill("tensorboard")
        found.mlflow.kill()
        found.wandb.failing = True

    def up() -> None:
        found.mlflow.start()
        found.wandb.failing = False
        trackers.start("tensorboard")

    def restart(name: str) -> Callable[[], None]:
        def act() -> None:
            trackers.kill(name)
            trackers.start(name)

        return act

    actions = {
        35: live(35, 12, restart("wandb")),
        45: live(45, 24, down),
        85: up,
        95: live(95, 72, restart("mlflow")),
    }
    for step in (5, 14, 23, 31, 44, 57, 66, 79, 90, 111):
        with pytest.raises(RuntimeError, match="power cut"):
            go(found.run, break_once, at_steps(actions), crash_after(step))
    assert go(found.run, break_once, at_steps(actions))
    assert not actions


def test_the_run_was_killed_ten_times_and_rolled_back_once(followed: Followed) -> None:
    events = [one.event for one in read_events(followed.run.events)]
    assert sum(isinstance(event, Resumed) for event in events) >= 10
    rollbacks = {(event.number, event.step) for event in events if isinstance(event, RolledBack)}
    assert len(rollbacks) == 1 and FAULT - 12 < min(rollbacks)[1] <= FAULT + 12
    assert [step for step, *_ in sorted(followed.live.items())] == [35, 45, 95]
    assert all(sent < step for step, by_name in followed.live.items() for sent in by_name.values())
    assert followed.wandb.failures > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_there_once_and_to_the_bit(followed: Followed, name: str) -> None:
    code, told = followed.told[name]
    assert code == 0 and "sent up to step 120" in told
    wanted = expected(followed.run.root)
    assert len({step for _, step, _ in wanted}) == 120 and len(wanted) > 120 * 7
    assert_same(without_result(followed.points(name)), wanted)


def test_a_service_that_was_away_is_said_once(followed: Followed) -> None:
    for name in ("mlflow", "wandb"):
        assert followed.told[name][1].count("the training goes on") <= 1


@pytest.mark.parametrize("name", NAMES)
def test_sent_again_and_anew_it_is_the_same(followed: Followed, name: str) -> None:
    wanted = expected(followed.run.root)
    before = followed.points(name)
    again = track(followed.run.root, name, followed.environment)
    assert again.returncode == 0, again
    assert_same(followed.points(name), before)
    for _ in range(2):
        anew = track(followed.run.root, name, followed.environment, "--rebuild")
        assert anew.returncode == 0, anew
        assert_same(without_result(followed.points(name)), wanted)
    if name == "mlflow":
        assert len(followed.mlflow.points()) == 1  # the earlier ones are deleted
    assert followed.wandb.overwritten == []


def copied(followed: Followed, to: Path) -> Path:
    """A copy of the run as it was before any tracker."""
    shutil.copytree(followed.run.root, to, ignore=shutil.ignore_patterns("trackers", "checkpoints"))
    return to


@pytest.mark.parametrize("name", NAMES)
def test_a_service_that_is_away_throughout_gets_all_by_track(followed: Followed, tmp_path: Path, name: str) -> None:
    """Nobody listens at port 9; TensorBoard's folder cannot be made where a file has its name."""
    run = copied(followed, tmp_path / "copy")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    in_the_way = run / "trackers" / "tensorboard"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    trackers = Trackers(RunDir(run), {**followed.environment, **away}, (name,))
    trackers.start(at_the_end=12.0)
    code, told = trackers.end()[name]
    assert code == 3
    assert f"stagewright track {run} --to {name}" in told.splitlines()[-1]
    in_the_way.unlink()
    done = track(run, name, followed.environment)
    assert done.returncode == 0, done
    assert_same(without_result(followed.points(name, run)), expected(run))


def test_offline_wandb_writes_one_whole_folder(followed: Followed, tmp_path: Path) -> None:
    run = copied(followed, tmp_path / "copy")
    offline = {**followed.environment, "WANDB_MODE": "offline"}
    for flags in ([], ["--rebuild"], []):
        done = track(run, "wandb", offline, *flags)
        assert done.returncode == 0, done
        (file,) = run.glob("trackers/wandb/offline-run-*/*.wandb")
        assert_same(without_result(wandb_points(offline_rows(file))), expected(run))
    assert "aaaaaaaa" not in "".join(path.read_text(errors="ignore") for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_finite(followed: Followed, tmp_path: Path, name: str) -> None:
    """As the gradient's norm of an update that overflowed. MLflow's database has no infinite numbers: the largest float64."""
    run = copied(followed, tmp_path / "copy")
    odd = {3: "inf", 7: "nan", 50: "-inf"}
    header, *rows = (run / "steps.csv").read_text().splitlines()
    at = header.split(",").index("grad_norm")
    for step, text in odd.items():
        cells = rows[step - 1].split(",")
        assert cells[0] == str(step)
        rows[step - 1] = ",".join([*cells[:at], text, *cells[at + 1 :]])
    (run / "steps.csv").write_text("\n".join([header, *rows, ""]))
    done = track(run, name, followed.environment)
    assert done.returncode == 0, done
    wanted = expected(run)
    assert {step: str(value) for tag, step, value in wanted if tag == "train/grad_norm" and step in odd} == odd
    if name == "mlflow":
        largest = sys.float_info.max
        wanted = [
            (tag, step, max(-largest, min(largest, value)) if math.isinf(value) else value)
            for tag, step, value in wanted
        ]
    assert_same(without_result(followed.points(name, run)), wanted)
