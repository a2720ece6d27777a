"""What a run's files allow to be sent: settled steps only, once, whatever happens to steps.csv meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from picture_folders import write_stripes
from stopping import begin
from tracked_runs import FIELDS

from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Resumed, RolledBack, StageBegun
from stagewright.rundir.events import append_event
from stagewright.trackers.source import WINDOWS_BACK, Changed, Source, horizon, study_of
from stagewright.training.guard import KEPT_STATES, Guard
from stagewright.training.recorder import STEPS

HEADER = f"{','.join(STEPS)}\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> RunDir:
    return begin(tmp_path / "run", pictures, recipes.from_dict(FIELDS))


def row(step: int, loss: float = 0.5) -> str:
    return f"{step},0,{step / 6},0.02,0.9,{loss},50.0,1.25\n"


def write(run: RunDir, last: int, torn: str = "") -> None:
    run.steps.write_text(HEADER + "".join(row(step) for step in range(1, last + 1)) + torn)


def taken(source: Source, most: int = 1000) -> list[int]:
    return [point.step for point in source.take(most)]


def finish(run: RunDir, **more: object) -> None:
    content = {"status": "finished", "top1": {"val": 90.0, "test": None}, "chosen": None, "step": 120, **more}
    run.summary.write_text(json.dumps(content))


@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}, {"guard": {"window": 5}}, {"guard": {"window": 16}}])
def test_the_guard_never_goes_back_behind_the_horizon(run: RunDir, changes: dict[str, object]) -> None:
    """From any later step, the oldest step that the guard can go back to is at the horizon or after it."""
    fields = {**FIELDS, **{name: value for name, value in changes.items() if name == "guard"}}
    plan = run.read_plan().model_copy(update={"recipe": recipes.from_dict(fields)})
    if "precision" in changes:
        plan = plan.model_copy(update={"precision": "fp16"})
    guard = Guard(plan)
    for last in range(0, 300):
        settled = horizon(plan, last, over=False)
        assert 0 <= settled <= last
        assert all(guard.oldest_restorable_step(later) >= settled for later in range(last, last + 40))
    assert WINDOWS_BACK > KEPT_STATES and horizon(plan, 299, over=False) > 0


def test_rows_are_taken_once_as_they_settle(run: RunDir) -> None:
    source = Source(run)
    assert taken(source) == []
    write(run, 19)
    assert taken(source) == []
    write(run, 30, torn="31,0,0.5")
    assert taken(source) == list(range(1, 9))  # 30 lies in the window from 28, five of four steps before it: 8
    assert taken(source) == []
    write(run, 32)
    assert taken(source) == [9, 10, 11, 12]
    finish(run)
    assert taken(source, most=5) == [13, 14, 15, 16, 17]
    assert taken(source) == list(range(18, 33))


def test_a_resume_that_cuts_and_writes_again_changes_nothing(run: RunDir) -> None:
    source = Source(run)
    write(run, 40)
    assert taken(source) == list(range(1, 21))
    write(run, 9)
    assert taken(source) == []
    write(run, 21)
    assert taken(source) == []
    write(run, 44)
    assert taken(source) == [21, 22, 23, 24]


def test_rows_that_differ_are_noticed_at_once_and_after_a_restart(run: RunDir) -> None:
    source = Source(run)
    write(run, 40)
    assert len(taken(source)) == 20
    digest = source.digest
    fresh = Source(run)
    assert fresh.start_after(20, digest)
    run.steps.write_text(HEADER + "".join(row(step, 0.25 if step == 20 else 0.5) for step in range(1, 60)))
    with pytest.raises(Changed):
        source.take(100)
    with pytest.raises(Changed):
        Source(run).start_after(20, digest)
    write(run, 12)
    assert not Source(run).start_after(20, digest)  # not there yet: a resume is on its way


def test_a_part_that_was_begun_comes_again_just_as_it_was(run: RunDir) -> None:
    write(run, 40)
    first = Source(run).take(7)
    write(run, 5)
    source = Source(run)
    assert source.take(7, upto=7) == []
    write(run, 30)
    assert source.take(7, upto=7) == first


def test_an_evaluation_belongs_to_its_step(run: RunDir) -> None:
    write(run, 40)
    run.metrics.write_text(
        "step,stage,stage_name,val_loss,val_top1,chosen\n10,0,first,0.1,75.0,ema\n30,0,first,0.2,80.0,raw\n"
    )
    points = Source(run).take(100)
    assert [point.step for point in points if "val/top1" in point.values] == [10]
    assert points[9].values["val/loss"] == 0.1 and points[9].values["train/loss"] == 0.5


def test_notes_are_said_once_and_only_grow(run: RunDir) -> None:
    append_event(run.events, StageBegun(step=0, stage=0, name="first", trainable=10, frozen=0))
    append_event(run.events, Resumed(step=9, checkpoint="step_000009", rejected=()))
    append_event(run.events, StageBegun(step=0, stage=0, name="first", trainable=10, frozen=0))
    source = Source(run)
    before = source.notes()
    append_event(run.events, Resumed(step=9, checkpoint="step_000009", rejected=()))
    back = {"number": 1, "at": 30, "found": 32, "fault": "spike", "reason": "r", "remedy": "m"}
    append_event(run.events, RolledBack(step=20, **back))
    append_event(run.events, RolledBack(step=20, **back))
    notes = source.notes()
    assert notes == Source(run).notes()
    assert [note.kind for note in before] == ["stage", "resumed"] and notes[:2] == before
    assert [note.kind for note in notes[2:]] == ["resumed", "rolled_back"]


def test_a_closed_test_part_is_not_sent(run: RunDir) -> None:
    finish(run, top1={"val": 90.0, "test": 80.0})
    assert Source(run).result()["final/test_top1"] == 80.0
    finish(run, test={"held": True, "opened": 0}, measures={"test": {"macro_f1": {"value": 0.5}}})
    assert not [tag for tag in Source(run).result() if "test" in tag]


def test_runs_of_a_study_know_it(tmp_path: Path) -> None:
    (tmp_path / "search" / "runs" / "a").mkdir(parents=True)
    assert study_of(tmp_path / "search" / "runs" / "a") is None
    (tmp_path / "search" / "study.json").write_text("{}")
    assert study_of(tmp_path / "search" / "runs" / "a") == (tmp_path / "search").resolve()
