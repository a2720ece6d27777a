"""Runs that are finished before the end of their plan: what they give, what they leave alone, and that they can still go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import typed
from small_recipe import NETWORK
from stopping import StopAtEvaluation, begin, crash_after, stop_after

import stagewright as sw
from stagewright.api.finish import finish
from stagewright.api.resume_check import Kill, differences, run_in_process
from stagewright.api.run import Run
from stagewright.api.train import resume
from stagewright.errors import CheckpointError, Diverged
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.report.write import write
from stagewright.rundir import checkpoint
from stagewright.rundir.claim import held
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Finished, InterimFinished
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import read_events
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
PLAIN: dict[str, Any] = {
    **NETWORK,
    "data": {"val": 0.3, "test": 0.3},
    "eval": {"every": "4st"},
    "checkpoints": {"every": "3st", "keep": 2},
}
STAGES = [
    {"name": "head", "epochs": "5st", "train": "head"},
    {"name": "all", "epochs": "6st", "average": {"kind": "ema", "half_life": "2st"}},
    {"name": "swa", "epochs": "5st", "image_size": 20, "average": {"kind": "swa", "every": "2st", "recalibrate": 12}},
]
TOTAL = 16


def begun(folder: Path, pictures: Path, **fields: Any) -> RunDir:
    return begin(folder, pictures, recipes.from_dict({**PLAIN, **fields}))


def go(run: RunDir, arm: Callable[[Session], AfterUpdate] | None = None, **more: Any) -> Run:
    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm, **more)


def crash(run: RunDir, step: int) -> None:
    """Ends the run by an error right after update ``step``."""
    with pytest.raises(RuntimeError, match="power cut"):
        go(run, arm=crash_after(step))


def done(run: RunDir, **more: Any) -> Run:
    return finish(run.root, execution=QUIET, **{"say": lambda text: None, **more})


def summary(run: RunDir) -> dict[str, Any]:
    return json.loads(run.summary.read_text())


def kinds(run: RunDir, kind: type[sw.Event]) -> list[sw.Event]:
    return [one.event for one in read_events(run.events) if isinstance(one.event, kind)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begun(tmp_path_factory.mktemp("unbroken") / "r", picture_folder, stages=STAGES)
    assert go(run).finished
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    """Stopped after step 7, which was not evaluated, and finished."""
    run = begun(tmp_path_factory.mktemp("stopped") / "r", picture_folder, stages=STAGES)
    assert not go(run, stop_after(7)).finished
    assert done(run).finished
    return run


@pytest.mark.long
def test_killed_at_many_moments_finished_at_each_and_resumed(
    unbroken: RunDir, picture_folder: Path, tmp_path: Path
) -> None:
    """Before the first evaluation, at stage changes, before averaged weights were evaluated, after the last update; and by
    kill -9 in an evaluation. benchmarks/finishes.py kills at random moments, also within a finish."""
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    moments = [4, 6, Kill(9, evaluating=True), 10, 12, TOTAL]
    for moment in moments:
        if isinstance(moment, Kill):
            run_in_process(run.root, QUIET, moment)
        else:
            crash(run, moment)
        saved = max(checkpoint.steps(run.checkpoints))
        model = done(run).model
        assert all(answer.classes for answer in model.predict(picture_folder)), moment
        found = summary(run)
        assert (found["status"], found["step"], found["error"]) == ("finished", saved, None)
        assert found["stopped_at"] == round(100 * saved / TOTAL, 2) and not found["ended_early"]
        assert (len(found["finalists"]) > 0) == (found["chosen"]["step"] > 5), "it is compared with the head behind it"
        assert found["chosen"]["step"] <= saved and found["top1"]["test"] is not None
        assert {path.name for path in run.evaluations.iterdir()} == {"val.parquet", "test.parquet"}
    assert go(run).finished
    assert differences(unbroken, run) == []
    assert summary(run)["stopped_at"] is None
    assert len(kinds(run, InterimFinished)) == len(moments) and len(kinds(run, Finished)) == 1
    assert {name: summary(run)[name] for name in ("top1", "chosen", "finalists")} == {
        name: summary(unbroken)[name] for name in ("top1", "chosen", "finalists")
    }
    kept = sorted(path.name for path in run.interim.iterdir())
    assert kept[0] == "step_000003" and kept[-1] == "step_000015"
    for folder in run.interim.iterdir():
        assert sw.load_bundle(folder / "model").spec.training["stopped_at"].endswith(f"of {TOTAL})")
        assert (folder / "evaluations" / "test.parquet").is_file()


def test_everything_says_where_it_was_stopped(stopped: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    where = "stopped at 43 % of its plan (step 7 of 16)"
    assert summary(stopped)["stopped_at"] == 43.75
    assert f"The training was {where}." in (stopped.bundle / "README.md").read_text()
    assert "43 % of its plan" in Run(stopped.root).model.spec.training["stopped_at"]
    write(stopped.root)
    page = stopped.report.read_text()
    assert "finished, stopped at 43 %" in page and f"The run was {where}." in page and "var" in page
    assert f"finished, {where} with the" in stopped.log.read_text()
    (event,) = kinds(stopped, InterimFinished)
    assert isinstance(event, InterimFinished) and (event.step, event.total_steps) == (7, TOTAL)
    assert event.test_top1 == summary(stopped)["top1"]["test"]


def test_the_scores_are_those_of_the_model(stopped: RunDir) -> None:
    found = summary(stopped)
    for split in ("val", "test"):
        table = pq.read_table(stopped.evaluations / f"{split}.parquet").to_pydict()
        right = [a == b for a, b in zip(table["label"], table["predicted"], strict=True)]
        assert found["top1"][split] == pytest.approx(100 * sum(right) / len(right))
        assert sw.evaluate(stopped.root, split=split).top1 == pytest.approx(found["top1"][split])


BETTER = {"lr": (1e-6, 0.02), "first": 12, "stop": 54}
WORSE = {"lr": (0.05, 5.0), "first": 48, "stop": 52}


@pytest.mark.parametrize(
    ("course", "rule", "newest"),
    [(BETTER, "best", True), (BETTER, "last", True), (WORSE, "best", False), (WORSE, "last", True)],
    ids=["better-best", "better-last", "worse-best", "worse-last"],
)
def test_a_checkpoint_that_was_not_evaluated_is_a_candidate(
    course: dict[str, Any], rule: str, newest: bool, picture_folder: Path, tmp_path: Path
) -> None:
    """It is better or worse than the only one that was; nothing of its score enters the record that a resume reads."""
    first, stop = course["first"], course["stop"]
    stages = [
        {"epochs": epochs, "lr": {"schedule": "constant", "peak": peak}}
        for epochs, peak in zip((f"{first}st", "60st"), course["lr"], strict=True)
    ]
    rare = {"eval": {"every": "99st", "select": rule}, "checkpoints": {"every": "99st"}, "guard": {"window": 500}}
    run = begun(tmp_path / "r", picture_folder, stages=stages, **rare)
    go(run, stop_after(stop))
    assert checkpoint.steps(run.checkpoints) == [first, stop]
    state = run.checkpoints / checkpoint.name_of(stop) / "state.pt"
    before = [path.read_bytes() for path in (run.metrics, run.plan, state)]
    best = checkpoint.load(state.parent).tensors["best"]
    assert best["step"] == first
    assert sw.load_bundle(run.root).spec.training["step"] == (stop if rule == "last" else first)
    done(run)
    found = summary(run)
    assert (found["chosen"]["step"], found["chosen"]["select"]) == (stop if newest else first, rule)
    if rule == "best":
        assert found["top1"]["val"] > best["top1"] if newest else found["top1"]["val"] == best["top1"]
    assert before == [path.read_bytes() for path in (run.metrics, run.plan, state)]


def test_without_a_checkpoint_it_says_what_to_do(picture_folder: Path, tmp_path: Path, unbroken: RunDir) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    crash(run, 2)
    before = {path: path.read_bytes() for path in run.root.iterdir() if path.is_file() and path.name != ".lock"}
    for use in (done, lambda run: sw.load_bundle(run.root)):
        with pytest.raises(CheckpointError) as refused:
            use(run)
        assert "no checkpoint yet" in refused.value.given and f"stagewright resume {run.root}" in refused.value.remedy
    assert before == {path: path.read_bytes() for path in before}
    assert go(run).finished
    assert differences(unbroken, run) == []


def test_lost_checkpoints_are_not_taken_for_none(picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    go(run, stop_after(4))
    for path in run.checkpoints.glob("step_*/state.pt"):
        path.write_bytes(b"damaged")
    for use in (done, lambda run: sw.load_bundle(run.root)):
        with pytest.raises(CheckpointError, match="no usable checkpoint"):
            use(run)


def test_a_run_that_is_going_on_is_refused_but_can_be_read(picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    go(run, stop_after(6))
    with held(run.root):
        with pytest.raises(CheckpointError, match="in use by process"):
            done(run)
        assert len(list(sw.load_bundle(run.root).predict(picture_folder))) == 60
    assert not run.bundle.exists() and done(run).finished


def test_a_second_finish_changes_nothing(stopped: RunDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in stopped.bundle.rglob("*")} | {stopped.summary: 0}
    before[stopped.summary] = stopped.summary.stat().st_mtime_ns
    said: list[str] = []
    assert done(stopped, say=said.append).finished
    assert said[0] == (
        f"{stopped.root} is finished already, stopped at 43 % of its plan (step 7 of 16); its model is {stopped.bundle}."
    )
    assert "\n".join(said[1:]) == sentence(kinds(stopped, InterimFinished)[-1]), (
        "the result, in the words of the finish"
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_finished_run_is_left_alone(unbroken: RunDir) -> None:
    said: list[str] = []
    weights = (unbroken.bundle / "weights.safetensors").stat().st_mtime_ns
    assert done(unbroken, say=said.append).finished
    assert "at the end of its plan" in said[0]
    assert (unbroken.bundle / "weights.safetensors").stat().st_mtime_ns == weights


def test_a_plan_that_is_done_is_finished_as_planned(
    unbroken: RunDir, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the finish, all updates are done: then it is a finish like any other, and so is one with a pending
    evaluation."""
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    go(run, stop_after(TOTAL))
    assert checkpoint.load(run.checkpoints / checkpoint.name_of(TOTAL)).tensors["evaluated_step"] < TOTAL
    assert done(run).finished
    assert differences(unbroken, run) == []
    assert summary(run)["stopped_at"] is None and kinds(run, InterimFinished) == []


def test_a_diverged_run_has_the_model_of_before(picture_folder: Path, tmp_path: Path) -> None:
    bad = {"epochs": "8st", "lr": {"schedule": "constant", "peak": 1e12}}
    run = begun(
        tmp_path / "r",
        picture_folder,
        stages=[{"name": "good", "epochs": "4st"}, {"name": "bad", **bad}],
        guard={"window": 4, "rollbacks": 0},
        eval={"every": "4st", "consider_head": False},
    )
    with pytest.raises(Diverged):
        go(run)
    assert summary(run)["status"] == "failed"
    assert done(run).finished
    found = summary(run)
    assert found["chosen"]["step"] <= 4 and found["error"] is None
    assert all(answer.classes for answer in Run(run.root).model.predict(picture_folder))


def test_a_finish_that_is_stopped_can_be_repeated(unbroken: RunDir, picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)
    go(run, stop_after(9))
    assert not done(run, observers=[StopAtEvaluation()]).finished
    assert summary(run)["status"] == "stopped" and not run.bundle.exists()
    assert done(run).finished and summary(run)["stopped_at"] == 56.25
    assert go(run).finished
    assert differences(unbroken, run) == []


def test_without_validation_images_it_is_the_last(picture_folder: Path, tmp_path: Path) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES, data={"val": 0, "test": 0.3})
    go(run, stop_after(9))
    done(run)
    assert summary(run)["chosen"] == {"step": 9, "weights": "ema", "stage": "all", "select": "best"}
    assert summary(run)["top1"]["val"] is None and summary(run)["top1"]["test"] is not None


def test_moved_images_are_found_where_they_are_now(picture_folder: Path, tmp_path: Path) -> None:
    os.makedirs(tmp_path / "old")
    for folder in picture_folder.iterdir():
        os.symlink(folder, tmp_path / "old" / folder.name)
    run = begun(tmp_path / "r", tmp_path / "old", stages=STAGES)
    go(run, stop_after(5))
    os.rename(tmp_path / "old", tmp_path / "new")
    with pytest.raises(sw.StagewrightError, match="does not exist now"):
        done(run)
    assert done(run, data=tmp_path / "new").finished


def test_on_the_command_line(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "r", picture_folder, stages=STAGES)

    class StopAtSix:
        def see(self, event: sw.Event) -> None:
            if event.kind == "saved" and event.step >= 6:
                os.kill(os.getpid(), signal.SIGTERM)

        def close(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr("stagewright.cli.main.metric_observers", lambda enabled: [StopAtSix()])
        code, out, err = typed(capsys, patch, "resume", run.root, "--no-pages", "--device", "cpu")
    assert code == 75 and err.splitlines()[-1].endswith(f"stagewright finish {run.root}")
    code, out, err = typed(capsys, monkeypatch, "finish", run.root, "--no-pages", "--device", "cpu")
    assert code == 0, err
    step = summary(run)["step"]
    assert out.splitlines()[-1] == f"Stopped at {100 * step // TOTAL} % of its plan (step {step} of {TOTAL})."
    assert f"Go on    stagewright resume {run.root}" in out
    code, out, err = typed(capsys, monkeypatch, "resume", run.root, "--no-pages", "--device", "cpu")
    assert code == 0 and f"the model of step {step} is now in {run.interim / checkpoint.name_of(step) / 'model'}" in out
