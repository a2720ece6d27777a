"""Runs that are paused after an evaluation: by a function that says no, or at a part of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import typed
from small_recipe import NETWORK
from stopping import begin

from stagewright.api.pause import pausing
from stagewright.api.resume_check import differences
from stagewright.api.run import Run
from stagewright.api.train import resume, train
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluated
from stagewright.rundir.events import read_events

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
FIELDS: dict[str, Any] = {
    **NETWORK,
    "data": {"val": 0.3, "test": 0.3},
    "eval": {"every": "4st"},
    "checkpoints": {"every": "30st", "keep": 2},
    "stages": [
        {"name": "first", "epochs": "6st"},
        {"name": "second", "epochs": "10st", "average": {"kind": "ema", "half_life": "2st"}},
    ],
}
EVALUATIONS = [4, 6, 10, 14, 16]


def begun(folder: Path, pictures: Path) -> RunDir:
    return begin(folder, pictures, recipes.from_dict(FIELDS))


def go(run: RunDir, **more: Any) -> Run:
    return resume(run.root, execution=QUIET, say=lambda text: None, **more)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begun(tmp_path_factory.mktemp("unbroken") / "run", picture_folder)
    go(run)
    return run


@pytest.fixture(scope="module")
def plan(unbroken: RunDir) -> Plan:
    return unbroken.read_plan()


def test_a_run_paused_after_each_evaluation_gives_the_same_bits(
    tmp_path: Path, picture_folder: Path, unbroken: RunDir
) -> None:
    run, asked = begun(tmp_path / "run", picture_folder), list[int]()

    def no(event: Evaluated) -> bool:
        asked.append(event.step)
        # What is decided upon is saved before: a kill here loses nothing.
        assert checkpoint.steps(run.checkpoints)[-1] == event.step
        return False

    for step in EVALUATIONS:
        found = go(run, decide=no)
        assert not found.finished
        assert (found.summary["status"], found.summary["step"]) == ("paused", step)
    assert go(run, decide=no).finished
    assert asked == EVALUATIONS == [*run.read_plan().eval_steps]
    assert not differences(unbroken, run)


def test_a_run_whose_function_says_yes_is_the_run_without_it(
    tmp_path: Path, picture_folder: Path, unbroken: RunDir
) -> None:
    run, seen = begun(tmp_path / "run", picture_folder), list[Evaluated]()
    assert go(run, decide=seen.append).finished
    logged = [one.event for one in read_events(run.events) if isinstance(one.event, Evaluated)]
    assert [one.results for one in seen] == [one.results for one in logged]
    assert not differences(unbroken, run)


def test_a_fault_of_the_function_ends_the_run_with_its_state_saved(tmp_path: Path, picture_folder: Path) -> None:
    run = begun(tmp_path / "run", picture_folder)

    def broken(event: Evaluated) -> bool:
        raise ValueError("nobody answers")

    with pytest.raises(ValueError, match="nobody answers"):
        go(run, decide=broken)
    assert Run(run.root).summary["status"] == "failed"
    assert checkpoint.steps(run.checkpoints) == [4]


@pytest.mark.parametrize(("until", "step"), [("25%", 4), ("26%", 6), ("7st", 10), ("12st", 14), ("1ep", None)])
def test_until_pauses_at_the_first_evaluation_there_or_later(
    tmp_path: Path, picture_folder: Path, plan: Plan, until: str, step: int | None
) -> None:
    if step is None:  # an epoch of these pictures
        step = next(one for one in plan.eval_steps if plan.stage_before(one).epoch_at(one) >= 1)
    run = begun(tmp_path / "run", picture_folder)
    found = go(run, until=until)
    assert (found.summary["status"], found.summary["step"]) == ("paused", step)


def test_until_and_a_function_are_both_asked(plan: Plan) -> None:
    both = pausing("50%", lambda event: event.step != 6, plan)
    assert both is not None
    assert [both(_evaluated(step)) for step in EVALUATIONS] == [True, False, False, False, True]
    assert pausing(None, None, plan) is None
    assert pausing("50%", None, plan, plan.total_steps) is None  # nothing is left to pause


@pytest.mark.parametrize(
    ("until", "step", "message"),
    [
        ("soon", 0, "--until soon"),
        ("0%", 0, "40% \\(of the run's steps\\), 12ep"),
        ("100%", 0, "a part of the run"),
        ("300img", 0, "a part of the run"),
        ("-3ep", 0, "a part of the run"),
        ("15st", 0, "no evaluation is planned.*as step 14"),
        ("99ep", 0, "no evaluation is planned.*16 steps"),
        ("25%", 4, "is at step 4 already"),
    ],
)
def test_a_pause_that_cannot_be_is_refused(plan: Plan, until: str, step: int, message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        pausing(until, None, plan, step)


def test_a_wrong_until_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--until never"):
        train(tmp_path / "nowhere", "quick", until="never", execution=QUIET)


def test_the_command_pauses_and_says_how_to_go_on(
    tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run", picture_folder)
    code, out, _ = typed(capsys, monkeypatch, "resume", run.root, "--until", "50%", "--no-pages", "-j", 1)
    assert code == 0
    assert "Paused at 62 % of its plan (step 10 of 16)." in out
    assert f"stagewright resume {run.root}" in out
    code, _, err = typed(capsys, monkeypatch, "resume", run.root, "--until", "50%")
    assert code == 2
    assert "is at step 10 already" in err
    code, out, _ = typed(capsys, monkeypatch, "resume", run.root, "--no-pages", "-j", 1)
    assert code == 0
    assert "Paused" not in out


def _evaluated(step: int) -> Evaluated:
    return Evaluated(
        step=step,
        stage=0,
        stage_name="first",
        epoch=1.0,
        split="val",
        train_loss=None,
        train_top1=None,
        results={},
        chosen="raw",
        best=False,
    )
