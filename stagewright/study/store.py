"""The store of a study: Optuna's record of its trials. On one host a journal beside the runs, for several a PostgreSQL server.

A trial is one attempt at a job; when its process is gone, another trial goes on with the same run. The store may be lost or lag
behind: what the directories of the runs say counts (:mod:`stagewright.study.reconcile`).
"""

from __future__ import annotations

import copy
import fcntl
import os
import socket
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from stagewright.api.pause import saved_step
from stagewright.errors import StorageError
from stagewright.rundir.directory import RunDir
from stagewright.storage.lock import is_held
from stagewright.study.definition import Study
from stagewright.study.ledger import Ledger, Phase, identity

ENVIRONMENT = "STAGEWRIGHT_STORAGE"
_REACH_SECONDS = 5
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 30, 120
_CONNECTING = {
    "connect_timeout": _REACH_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Of psycopg, in seconds (the last in milliseconds): a server whose host is gone is noticed within a minute, not after hours."""
_MOST_DEATHS = 3
"""So many processes of a job may end without a new checkpoint."""
_DRIVER = "postgresql+psycopg"
_FORMS = "postgresql://USER@HOST/NAME"

JOB, PROCESS, DEATHS, DIED_AT, CONTINUES = "job", "process", "deaths", "died_at", "continues"
"""Attributes of trials: the job's name; the process at it; how many ended without a new checkpoint, and at which step; whether
the trial goes on with a paused run, to its end."""

Again = Callable[[optuna.Study, FrozenTrial], None]


class _Lock(Protocol):
    def acquire(self) -> bool: ...
    def release(self) -> None: ...


class KernelLock:
    """A lock on a file that the kernel releases however a process ends, unlike Optuna's own, for which others wait half a
    minute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Releases it; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Journal(JournalFileBackend):
    """A journal whose last line may have been cut off by a kill: it is removed before the next one is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_writer = KernelLock(path.with_name(path.name + ".lock"))
        super().__init__(str(path), _NO_LOCK)  # pyright: ignore[reportArgumentType] # has the two methods that are called

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._one_writer.acquire()
        try:
            _cut_torn_line(self._path)
            super().append_logs(logs)
        finally:
            self._one_writer.release()


class _NoLock:
    def acquire(self) -> bool:
        return True

    def release(self) -> None: ...


_NO_LOCK: _Lock = _NoLock()


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at > 0:
            begin = max(0, at - 65_536)
            file.seek(begin)
            found = file.read(at - begin).rfind(b"\n")
            if found >= 0:
                at = begin + found + 1
                break
            at = begin
        if at != end:
            file.truncate(at)


class _PatientStorage(RDBStorage):
    """A server that may be away for a while: heartbeats go on when it is back, and until then no run is taken for dead that has
    a process."""

    def __init__(self, ledger: Ledger, url: str, **settings: Any) -> None:
        self._ledger = ledger
        try:
            super().__init__(url, **settings)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise
        weakref.finalize(self, self.engine.dispose)  # closes its connections

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (SQLAlchemyError, StorageInternalError):
            return  # the thread calls again

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        found = super()._get_stale_trial_ids(study_id)
        return [one for one in found if not is_held(self._ledger.run(job_of(self.get_trial(one))))]


def storage_url(given: str | None) -> str | None:
    """Returns the URL of the store from ``--storage`` or the environment; None for the journal. StorageError for one that is not
    a PostgreSQL server's, and for a password on the command line, which other users of the machine can read."""
    url = given or os.environ.get(ENVIRONMENT)
    if not url:
        return None
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StorageError(
            "--storage: this is no URL", f"{_FORMS}, or none for the journal of one host", "write it so"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        raise StorageError(
            f"--storage {masked(url)}: SQLite has one writer at a time, and workers would fail with 'database is locked'",
            f"{_FORMS}; without --storage the journal of one host, for any number of workers",
            "leave it out on one host",
        )
    if parsed.get_backend_name() != "postgresql":
        raise StorageError(f"--storage {masked(url)}", f"{_FORMS}, or none for the journal of one host", "write it so")
    if given and parsed.password:
        raise StorageError(
            f"--storage {masked(url)}: with a password, which everybody on this machine could read",
            f"a URL without one, or the variable {ENVIRONMENT}",
            f"leave the password to ~/.pgpass, or give the URL in {ENVIRONMENT}",
        )
    return parsed.set(drivername=_DRIVER).render_as_string(hide_password=False)


def masked(url: str) -> str:
    """Returns ``url`` without its password, for people."""
    try:
        parsed: URL = make_url(url)
    except (ArgumentError, ValueError):
        return "(no URL)"
    return parsed.render_as_string(hide_password=True)


def open_store(ledger: Ledger, url: str | None, again: Again) -> BaseStorage:
    """Opens the store. ``again`` is called for trials whose process has been silent for too long, which a server finds out.

    StorageError if it cannot be reached within 5 seconds, or belongs to another version of Optuna; no password is in it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    if url is None:
        return JournalStorage(_Journal(ledger.journal))
    try:
        return _server_storage(ledger, url, again)
    except ImportError as error:
        raise StorageError(
            f"--storage {masked(url)} needs psycopg: {error}", "the extra study", "pip install 'stagewright[study]'"
        ) from None
    except RuntimeError as error:
        raise StorageError(
            f"{masked(url)} was made by another version of Optuna: {str(error).splitlines()[0]}",
            f"a database that Optuna {optuna.__version__} has made, or an empty one",
            "take an empty database",
        ) from None
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        reason, password = str(error.__cause__ or error).splitlines()[0], make_url(url).password
        reason = reason.replace(password, "***") if password else reason
        raise StorageError(
            f"{masked(url)} cannot be reached: {reason}",
            "a server that answers within 5 seconds",
            "start it, correct the URL, or leave --storage out on one host",
        ) from None


def _server_storage(ledger: Ledger, url: str, again: Again) -> RDBStorage:
    for left in (2, 1, 0):
        try:
            return _PatientStorage(
                ledger,
                url,
                heartbeat_interval=_HEARTBEAT_SECONDS,
                grace_period=_GRACE_SECONDS,
                heartbeat_stale_trial_callback=again,
                engine_kwargs={"pool_pre_ping": True, "connect_args": _CONNECTING},
            )
        except (
            IntegrityError,
            ProgrammingError,
        ):  # another worker makes the tables of an empty database at the same time
            if left == 0:
                raise
            time.sleep(1.0)
    raise AssertionError("the last attempt returns or raises")


def queue_name(study: Study, phase: Phase) -> str:
    """Returns Optuna's name of the study, or of its confirmation, the same on every host."""
    name = f"{study.name}-{identity(study)}"
    return name if phase == "study" else f"{name}-confirmation"


def job_of(trial: FrozenTrial) -> str:
    """Returns the name of the job at which ``trial`` is an attempt: of a new point of a search, by the first trial's number."""
    named = trial.user_attrs.get(JOB)
    if isinstance(named, str):
        return named
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return f"trial-{trial.number if first is None else first:04d}"


def queue_again(study: optuna.Study, trial: FrozenTrial, **attributes: Any) -> None:
    """Queues another trial at the job of ``trial``, which has failed, with what it had reported and with ``attributes``;
    unless another process has done so."""
    open_states = (TrialState.WAITING, TrialState.RUNNING)
    for other in study.get_trials(deepcopy=False, states=open_states):
        if other.number != trial.number and job_of(other) == job_of(trial):
            return
    one = copy.deepcopy(trial)
    one.user_attrs = {name: value for name, value in one.user_attrs.items() if name != PROCESS}
    one.user_attrs.update({JOB: job_of(trial), **attributes})
    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, one)


class AfterDeath:
    """Called for a trial whose process is gone: queues another one, unless three in a row have died without a new checkpoint."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        job = job_of(trial)
        if self.ledger.state(job) == "failed":
            return
        step = saved_step(RunDir(self.ledger.run(job)))
        before, deaths = trial.user_attrs.get(DIED_AT), int(trial.user_attrs.get(DEATHS, 0))
        deaths = deaths + 1 if before is not None and step <= int(before) else 1
        if deaths >= _MOST_DEATHS:
            self.ledger.fail(job, f"its process ended {deaths} times at step {step:,} without a new checkpoint")
            return
        queue_again(study, trial, **{DEATHS: deaths, DIED_AT: step})


class OwnProcess:
    """The lock by which others see that this process lives; a trial has its name."""

    def __init__(self, ledger: Ledger) -> None:
        folder = ledger.root / "processes"
        folder.mkdir(exist_ok=True)
        self._lock = KernelLock(folder / f"{os.getpid()}-{os.urandom(4).hex()}")
        self._lock.acquire()

    @property
    def name(self) -> dict[str, str]:
        return {"host": socket.gethostname(), "lock": self._lock.path.name}

    def close(self) -> None:
        """Ends it: the process has told what it had to tell."""
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()


def is_alive(ledger: Ledger, process: object) -> bool | None:
    """Returns whether the process of a trial lives; None if that cannot be known, as it is on another host. A study on one host
    has no other, whatever this one is called now (a container has another name after each start)."""
    if not isinstance(process, dict) or not (ledger.one_host or process.get("host") == socket.gethostname()):
        return None
    place = ledger.root / "processes" / os.path.basename(str(process.get("lock")))
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
