"""Data that disappears during a run: the run stops, saves the state before, and later ends like an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import stop_after

import stagewright as sw
from stagewright.api.resume_check import differences
from stagewright.api.train import resume, train
from stagewright.data.images.decode import FileImages
from stagewright.errors import DataError
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Event, StageBegun
from stagewright.training.session import Session

FILES = sw.Execution(quiet=True, pages=False, keep_decoded=False, prefetch=1)
SMALL = (
    *("model.name=cifar_resnet18", "model.options={width: 4}", "image_size=8", "batch_size=8", "epochs=14st"),
    *("eval.every=7st", "checkpoints.every=50st", "guard={window: 4}"),
)


def silent(text: str) -> None: ...


@pytest.fixture
def data(picture_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_folder, tmp_path / "data"))


def begin(data: Path, out: Path, *overrides: str, **options: Any) -> sw.Run:
    return train(data, "quick", overrides=[*SMALL, *overrides], out=out, execution=FILES, say=silent, **options)


def act_before(step: int, act: Callable[[], object]) -> Callable[[Session], None]:
    """Prepares a session to call ``act`` when the batch after ``step`` updates is requested."""

    def arm(session: Session) -> None:
        def hook(*given: object) -> None:
            if session.state.step == step:
                act()

        session.state.model.register_forward_pre_hook(hook)

    return arm


@pytest.mark.parametrize("kind", ["renamed", "emptied", "some"])
def test_data_that_goes_away_while_it_trains(data: Path, tmp_path: Path, kind: str) -> None:
    """Attack C4, situation 054: the run trained on black images to its end, with exit code 0."""
    unbroken = begin(data, tmp_path / "unbroken", "eval.every=14st")
    away = tmp_path / "away"

    def go() -> None:
        if kind == "some":
            (away / "down").mkdir(parents=True)
            for path in (data / "down").iterdir():
                os.rename(path, away / "down" / path.name)
        else:
            os.rename(data, away)
            if kind == "emptied":
                data.mkdir()

    stopped = tmp_path / "run"
    assert not _stopped_at(data, stopped, 3, "eval.every=14st").finished
    where = {"renamed": "data does not exist any more", "emptied": "is its disk mounted", "some": "the first is down/"}[
        kind
    ]
    with pytest.raises(DataError, match=rf"pictures of steps? [\s\S]*{where}"):
        resume(stopped, execution=FILES, say=silent, arm=act_before(5, go))
    summary = sw.Run(stopped).summary
    assert summary["status"] == "failed" and 3 <= summary["step"] < 14
    if kind == "some":
        for path in (away / "down").iterdir():
            os.rename(path, data / "down" / path.name)
    else:
        shutil.rmtree(data, ignore_errors=True)
        os.rename(away, data)
    assert resume(stopped, execution=FILES, say=silent).finished
    assert differences(RunDir(unbroken.path), RunDir(stopped)) == []


def _stopped_at(data: Path, out: Path, step: int, *overrides: str) -> sw.Run:
    """Makes a run that was stopped after ``step`` updates."""

    class Stop:
        def see(self, event: Event) -> None:
            if isinstance(event, StageBegun):
                os.kill(os.getpid(), 15)

        def close(self) -> None: ...

    begin(data, out, *overrides, observers=[Stop()])
    return resume(out, execution=FILES, say=silent, arm=stop_after(step))


@pytest.mark.parametrize("folder", ["val", "test"])
def test_an_evaluation_of_what_cannot_be_read_is_an_error(picture_folder: Path, tmp_path: Path, folder: str) -> None:
    data = tmp_path / "data"
    for part, names in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20))):
        for source in picture_folder.iterdir():
            (data / part / source.name).mkdir(parents=True)
            for at in names:
                shutil.copy(source / f"{at:02d}.png", data / part / source.name)
    unbroken = begin(data, tmp_path / "unbroken")
    stopped = _stopped_at(data, tmp_path / "run", 3)
    with pytest.raises(DataError, match=f"12 of 12 pictures of the {folder} part cannot be read"):
        arm = act_before(5, lambda: os.rename(data / folder, tmp_path / "away"))
        resume(stopped.path, execution=FILES, say=silent, arm=arm)
    os.rename(tmp_path / "away", data / folder)
    assert stopped.summary["step"] >= 5
    assert resume(stopped.path, execution=FILES, say=silent).finished
    assert differences(RunDir(unbroken.path), RunDir(stopped.path)) == []


def test_a_run_is_taken_up_where_its_pictures_are_now(data: Path, tmp_path: Path) -> None:
    """Situation 058, from the stop to the finished model and its evaluation."""
    unbroken = begin(data, tmp_path / "unbroken")
    stopped = _stopped_at(data, tmp_path / "run", 3)
    os.rename(data, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"--data"):
        resume(stopped.path, execution=FILES, say=silent)
    assert resume(stopped.path, execution=FILES, say=silent, data=tmp_path / "elsewhere").finished
    assert differences(RunDir(unbroken.path), RunDir(stopped.path)) == []
    assert "the pictures are in" in (stopped.path / "log.txt").read_text()


def test_a_stop_while_every_read_hangs_saves_the_last_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that hangs: SIGTERM had no effect, and up to ten minutes of training were lost (attack M8)."""
    unbroken = begin(data, tmp_path / "unbroken")
    stopped = _stopped_at(data, tmp_path / "run", 3)
    release, path_of = threading.Event(), FileImages.path

    def hang() -> None:
        monkeypatch.setattr(FileImages, "path", lambda self, row: release.wait() and path_of(self, row))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), 15))
        timer.start()

    went_on = resume(stopped.path, execution=FILES, say=silent, arm=act_before(5, hang))
    monkeypatch.undo()
    release.set()
    assert not went_on.finished and went_on.summary["status"] == "stopped" and went_on.summary["step"] >= 6
    assert resume(stopped.path, execution=FILES, say=silent).finished
    assert differences(RunDir(unbroken.path), RunDir(stopped.path)) == []
