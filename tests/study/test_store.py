"""The store: its journal survives cut lines, its URLs say no passwords, and a job's deaths are counted."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from stagewright.errors import StorageError
from stagewright.study.ledger import Ledger
from stagewright.study.store import (
    DEATHS,
    ENVIRONMENT,
    JOB,
    AfterDeath,
    KernelLock,
    OwnProcess,
    is_alive,
    job_of,
    masked,
    open_store,
    storage_url,
)


def opened(folder: Path) -> tuple[Ledger, optuna.Study]:
    for name in ("failures", "runs", "jobs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder)
    store = open_store(ledger, None, AfterDeath(ledger))
    return ledger, optuna.create_study(study_name="s", storage=store, load_if_exists=True, direction="maximize")


def dead(queue: optuna.Study, job: str = "a-s0") -> FrozenTrial:
    """A trial that has begun and failed, as one whose process is gone."""
    waiting = [one for one in queue.trials if one.state == TrialState.WAITING]
    if not waiting:
        queue.enqueue_trial({}, user_attrs={JOB: job})
    trial = queue.ask()
    queue.tell(trial.number, state=TrialState.FAIL)
    return queue.trials[trial.number]


def test_a_line_that_a_kill_has_cut_is_removed(tmp_path: Path) -> None:
    ledger, queue = opened(tmp_path)
    queue.enqueue_trial({"x": 1}, user_attrs={JOB: "a-s0"})
    whole = ledger.journal.read_bytes()
    for cut in (1, 5, 40):
        queue.enqueue_trial({"x": 2}, user_attrs={JOB: "b-s0"})
        ledger.journal.write_bytes(ledger.journal.read_bytes()[:-cut])
        _, again = opened(tmp_path)
        assert [one.user_attrs[JOB] for one in again.trials] == ["a-s0"], cut
        again.enqueue_trial({"x": 3}, user_attrs={JOB: "c-s0"})  # would stand behind half a line
        _, third = opened(tmp_path)
        assert [one.user_attrs[JOB] for one in third.trials] == ["a-s0", "c-s0"], cut
        ledger.journal.write_bytes(whole)
        _, queue = opened(tmp_path)


def test_a_journal_that_is_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.journal.write_bytes(b'{"op_code": 0' + b" " * 70_000)
    store = open_store(ledger, None, AfterDeath(ledger))
    optuna.create_study(study_name="s", storage=store)
    assert ledger.journal.read_bytes().startswith(b'{"op_code"') and ledger.journal.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///study.db", "SQLite has one writer at a time"),
        ("mysql://host/name", "postgresql://USER@HOST/NAME"),
        ("no url at all", "this is no URL"),
        ("postgresql://me:secret@host/name", "which everybody on this machine could read"),
    ],
)
def test_other_stores_are_refused(monkeypatch: pytest.MonkeyPatch, url: str, message: str) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(StorageError, match=message) as caught:
        storage_url(url)
    assert "secret" not in str(caught.value)


def test_the_environment_may_have_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert storage_url(None) is None
    monkeypatch.setenv(ENVIRONMENT, "postgresql://me:secret@host/name")
    assert storage_url(None) == "postgresql+psycopg://me:secret@host/name"
    assert masked("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"


def test_a_server_that_is_not_there_is_said_without_its_password(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        open_store(ledger, "postgresql+psycopg://me:secret@127.0.0.1:9/name", AfterDeath(ledger))
    assert "secret" not in str(caught.value)


def test_a_job_whose_process_dies_is_queued_again_with_what_it_reported(tmp_path: Path) -> None:
    ledger, queue = opened(tmp_path)
    queue.enqueue_trial({}, user_attrs={JOB: "a-s0", "process": {"host": "h", "lock": "l"}})
    trial = queue.ask()
    trial.report(0.5, 100)
    queue.tell(trial.number, state=TrialState.FAIL)
    AfterDeath(ledger)(queue, queue.trials[0])
    again = queue.trials[1]
    assert again.state == TrialState.WAITING
    assert again.user_attrs == {JOB: "a-s0", DEATHS: 1, "died_at": 0}
    assert again.intermediate_values == {100: 0.5}
    assert job_of(again) == "a-s0"


def test_three_deaths_without_a_checkpoint_are_a_failure(tmp_path: Path) -> None:
    ledger, queue = opened(tmp_path)
    for _ in range(2):
        AfterDeath(ledger)(queue, dead(queue))
    assert ledger.failure("a-s0") is None
    AfterDeath(ledger)(queue, dead(queue))
    assert "3 times" in str(ledger.failure("a-s0"))
    assert not [one for one in queue.trials if one.state == TrialState.WAITING]


def test_a_checkpoint_between_deaths_begins_the_count_again(tmp_path: Path) -> None:
    ledger, queue = opened(tmp_path)
    for step in range(6):
        (ledger.run("a-s0") / "checkpoints" / f"step_{step + 1:06d}").mkdir(parents=True)
        AfterDeath(ledger)(queue, dead(queue))
    assert ledger.failure("a-s0") is None


def test_a_point_of_a_search_keeps_the_name_of_its_first_trial(tmp_path: Path) -> None:
    ledger, queue = opened(tmp_path)
    trial = queue.ask()
    queue.tell(trial.number, state=TrialState.FAIL)
    assert job_of(queue.trials[0]) == "trial-0000"
    AfterDeath(ledger)(queue, queue.trials[0])
    assert job_of(queue.trials[1]) == "trial-0000"


def test_a_process_is_alive_until_it_ends(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    process = OwnProcess(ledger)
    assert is_alive(ledger, process.name) is True
    elsewhere = {**process.name, "host": "another"}
    assert is_alive(Ledger(tmp_path, one_host=False), elsewhere) is None
    assert is_alive(ledger, elsewhere) is True  # a container that was started again has another name
    process.close()
    assert is_alive(ledger, process.name) is False
    assert is_alive(ledger, {"host": "x", "lock": "../../etc/passwd"}) is False
    assert is_alive(ledger, "nonsense") is None


HOLD = """
import sys
from stagewright.study.store import KernelLock
KernelLock(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "l")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (tmp_path / "l").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
    lock = KernelLock(tmp_path / "l")
    assert lock.acquire()
    lock.release()
    lock.release()
