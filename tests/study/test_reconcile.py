"""The store follows the directories of the runs: what is done is told, what is missing is queued, what is gone is tried again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from stagewright.recipe.yaml_text import write_yaml
from stagewright.study.definition import Study, read_study
from stagewright.study.ledger import Ledger, StudyJob, jobs_of
from stagewright.study.queue import open_queue
from stagewright.study.reconcile import continue_paused, reconcile
from stagewright.study.store import CONTINUES, JOB, PROCESS, AfterDeath, OwnProcess, job_of, open_store

GRID: dict[str, Any] = {"data": "photos", "recipe": "quick", "seeds": [0, 1], "grid": {"lr.peak": [0.01, 0.1]}}
SEARCH: dict[str, Any] = {
    "data": "photos",
    "recipe": "quick",
    "seeds": [0],
    "search": {
        "space": {"lr.peak": {"log": [0.003, 0.3]}},
        "trials": 4,
        "sampler": "random",
        "rungs": {"first": "10%", "eta": 3},
    },
}


class World:
    """A study's folder and its queue."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        (folder / "s.yaml").write_text(write_yaml(content))
        self.study: Study = read_study(str(folder / "s.yaml"))
        self.ledger = Ledger(folder / "out")
        self.ledger.write(self.study, {"threads": 1, "tiny": False, "precision": "fp32", "plans": {}, "datasets": []})
        for job in jobs_of(self.study):
            self.ledger.record(job, ["stagewright"])
        self.queue: optuna.Study = open_queue(
            self.study, "study", open_store(self.ledger, None, AfterDeath(self.ledger))
        )

    @property
    def jobs(self) -> Sequence[StudyJob]:
        return self.ledger.jobs()

    def reconcile(self) -> None:
        reconcile(self.queue, self.ledger, self.study, "study", self.jobs)

    def finish(self, job: str, top1: float = 50.0, status: str = "finished") -> None:
        place = self.ledger.run(job)
        place.mkdir(parents=True, exist_ok=True)
        (place / "plan.json").write_text("{}")
        summary = {
            "status": status,
            "step": 10,
            "total_steps": 10,
            "top1": {"val": top1, "test": None},
            "chosen": {"step": 10, "weights": "raw", "stage": "s", "select": "best"},
        }
        (place / "summary.json").write_text(json.dumps(summary))

    def states(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for trial in self.queue.trials:
            found.setdefault(job_of(trial), []).append(trial.state.name)
        return found


@pytest.fixture
def grid(tmp_path: Path) -> World:
    return World(tmp_path, GRID)


@pytest.fixture
def search(tmp_path: Path) -> World:
    return World(tmp_path, SEARCH)


def test_every_job_is_queued_once_however_often_it_is_called(grid: World) -> None:
    for _ in range(3):
        grid.reconcile()
    assert grid.states() == {job.name: ["WAITING"] for job in jobs_of(grid.study)}
    first = grid.queue.ask()
    assert first.suggest_categorical("lr.peak", ["0.01", "0.1"]) == "0.01"


def test_a_finished_run_that_the_store_does_not_know_is_told_and_not_queued(grid: World) -> None:
    grid.finish("0.01-s0", 61.5)
    grid.reconcile()
    assert grid.states()["0.01-s0"] == ["COMPLETE"]
    assert grid.queue.best_trial.value == 61.5
    assert grid.queue.best_trial.params == {"lr.peak": "0.01", "seed": 0}


def test_a_queued_job_that_is_finished_is_not_run_again(grid: World) -> None:
    grid.reconcile()
    grid.finish("0.1-s1")
    grid.reconcile()
    assert grid.states()["0.1-s1"] == ["COMPLETE"]
    assert Counter(one.state for one in grid.queue.trials)[TrialState.WAITING] == 3


def test_a_lost_store_is_made_again_from_the_runs(grid: World, tmp_path: Path) -> None:
    grid.reconcile()
    grid.finish("0.01-s0")
    grid.reconcile()
    grid.ledger.journal.unlink()
    grid.queue = open_queue(grid.study, "study", open_store(grid.ledger, None, AfterDeath(grid.ledger)))
    grid.reconcile()
    assert grid.states() == {
        "0.01-s0": ["COMPLETE"],
        **{name: ["WAITING"] for name in ("0.1-s0", "0.01-s1", "0.1-s1")},
    }


def test_a_trial_whose_process_is_gone_is_failed_and_queued_again(grid: World) -> None:
    grid.reconcile()
    process = OwnProcess(grid.ledger)
    trial = grid.queue.ask()
    trial.set_user_attr(PROCESS, process.name)
    job = job_of(grid.queue.trials[trial.number])
    grid.reconcile()
    assert grid.states()[job] == ["RUNNING"]
    process.close()
    grid.reconcile()
    grid.reconcile()
    assert grid.states()[job] == ["FAIL", "WAITING"]


def test_a_trial_that_has_just_begun_may_not_have_said_its_process_yet(grid: World) -> None:
    grid.reconcile()
    trial = grid.queue.ask()
    job = job_of(grid.queue.trials[trial.number])
    grid.reconcile()
    assert grid.states()[job] == ["RUNNING"]


def test_a_run_that_finished_before_its_process_died_is_told_from_its_directory(grid: World) -> None:
    grid.reconcile()
    process = OwnProcess(grid.ledger)
    trial = grid.queue.ask()
    trial.set_user_attr(PROCESS, process.name)
    job = job_of(grid.queue.trials[trial.number])
    grid.finish(job, 44.0)
    grid.reconcile()
    assert grid.states()[job] == ["RUNNING"]  # it tells itself
    process.close()
    grid.reconcile()
    assert grid.states()[job] == ["COMPLETE"]


def test_a_job_that_has_failed_by_itself_is_not_tried_again(grid: World) -> None:
    grid.reconcile()
    grid.ledger.fail("0.1-s0", "diverged")
    grid.reconcile()
    grid.reconcile()
    assert grid.states()["0.1-s0"] == ["FAIL"]


def test_a_job_without_any_open_trial_is_queued(grid: World) -> None:
    """Killed between the failure of a trial and the queueing of the next."""
    grid.reconcile()
    trial = grid.queue.ask()
    job = job_of(grid.queue.trials[trial.number])
    grid.queue.tell(trial.number, state=TrialState.FAIL)
    grid.reconcile()
    assert grid.states()[job] == ["FAIL", "WAITING"]


def test_a_finished_run_whose_folder_was_removed_is_queued_again_on_one_host(grid: World) -> None:
    grid.finish("0.01-s0")
    grid.reconcile()
    (grid.ledger.run("0.01-s0") / "summary.json").unlink()
    grid.reconcile()
    assert grid.states()["0.01-s0"] == ["COMPLETE", "WAITING"]


def test_a_stopped_run_is_no_finished_one(grid: World) -> None:
    grid.finish("0.01-s0", status="stopped")
    grid.reconcile()
    assert grid.ledger.state("0.01-s0") == "interrupted"
    assert grid.states()["0.01-s0"] == ["WAITING"]


def begun(world: World, name: str, at: int, score: float) -> None:
    """A point of the search that was paused at ``at`` thousandths with ``score``."""
    trial = world.queue.ask()
    value = trial.suggest_float("lr.peak", 0.003, 0.3, log=True)
    trial.set_user_attr(JOB, name)
    world.ledger.record(StudyJob(name, "study", world.study.at({"lr.peak": value}), 0), ["stagewright"])
    trial.report(score, at)
    world.queue.tell(trial.number, state=TrialState.PRUNED)
    world.finish(name, score, "paused")


def test_paused_runs_go_on_from_the_furthest_and_best_one(search: World) -> None:
    for name, at, score in (("a", 100, 90.0), ("b", 300, 50.0), ("c", 300, 60.0), ("d", 100, 20.0)):
        begun(search, name, at, score)
    search.reconcile()
    assert not [one for one in search.queue.trials if one.state == TrialState.WAITING]
    assert continue_paused(search.queue, search.ledger, search.study, 2) == ["c", "b"]
    assert continue_paused(search.queue, search.ledger, search.study, 2) == ["a", "d"]
    assert continue_paused(search.queue, search.ledger, search.study, 2) == []
    waiting = [one for one in search.queue.trials if one.state == TrialState.WAITING]
    assert all(one.user_attrs[CONTINUES] for one in waiting)
    assert waiting[0].intermediate_values == {300: 60.0}
    search.reconcile()  # paused, and queued: not once more
    assert len([one for one in search.queue.trials if one.state == TrialState.WAITING]) == 4


def test_a_point_whose_process_died_before_its_run_began_is_tried_again(search: World) -> None:
    trial = search.queue.ask()
    value = trial.suggest_float("lr.peak", 0.003, 0.3, log=True)
    process = OwnProcess(search.ledger)
    trial.set_user_attr(PROCESS, process.name)
    process.close()
    search.reconcile()
    again = search.queue.ask()
    assert again.suggest_float("lr.peak", 0.003, 0.3, log=True) == value
    assert job_of(search.queue.trials[again.number]) == "trial-0000"
