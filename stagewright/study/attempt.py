"""One attempt at a job, in a process of its own: takes a trial from the store, trains or goes on with its run, and tells.

The process is forked from a server that has torch imported but has not computed with it (OpenMP and CUDA do not survive a fork).
It lives longer than its worker if that is killed. What it cannot tell is told later, from the run's directory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from stagewright.api.pause import saved_step
from stagewright.api.run import Run
from stagewright.api.train import resume, train
from stagewright.errors import CheckpointError, StagewrightError, Stopped, StorageError
from stagewright.plan.execution import Execution
from stagewright.rundir.directory import RunDir
from stagewright.rundir.ended import keep_best_and_last
from stagewright.rundir.event_kinds import Evaluated
from stagewright.rundir.events import read_events
from stagewright.storage.lock import is_held
from stagewright.study.definition import Study, study_from_content
from stagewright.study.jobs import silent
from stagewright.study.ledger import Ledger, Phase, StudyJob
from stagewright.study.queue import STORE_ERRORS, THOUSAND, distributions, open_queue, originals, patient
from stagewright.study.scores import event_score, score_of
from stagewright.study.store import (
    CONTINUES,
    JOB,
    PROCESS,
    AfterDeath,
    KernelLock,
    OwnProcess,
    job_of,
    open_store,
    queue_again,
)
from stagewright.system.surroundings import as_storage_error

NOTHING_TO_DO, STOPPED = 3, 75
"""Exit codes of an attempt: another worker has taken the last trial; a stop was requested."""


@dataclass(frozen=True)
class AttemptInputs:
    """What an attempt is given; it is pickled."""

    root: Path
    name: str
    content: Mapping[str, Any]
    phase: Phase
    url: str | None
    execution: Execution
    tiny: bool

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root, one_host=self.url is None)


class _Failed(Exception):
    """The attempt has ended without a result; the trial becomes failed. ``again``: its job is queued once more."""

    def __init__(self, reason: str, again: Literal["no", "after death", "as it is"] = "no") -> None:
        super().__init__(reason)
        self.again = again


def attempt(inputs: AttemptInputs) -> None:
    """Carries out one trial; the function of the process. Ends with an exit code."""
    raise SystemExit(_Attempt(inputs).carry_out())


class _Attempt:
    def __init__(self, inputs: AttemptInputs) -> None:
        self.inputs = inputs
        self.ledger = inputs.ledger
        self.study = study_from_content(inputs.name, inputs.content)
        self.process = OwnProcess(self.ledger)
        self.asking = KernelLock(inputs.root / "asking.lock")
        self.trial: FrozenTrial | None = None
        self.outcome: tuple[TrialState, float | None] | None = None
        self.failed: _Failed | None = None

    def carry_out(self) -> int:
        """Returns the exit code."""
        try:
            queue = self._queue()
            if queue is None:
                return NOTHING_TO_DO
            try:
                queue.optimize(self._objective, n_trials=1)
            except _Failed as failed:
                self._again(queue, failed)
            except (
                *STORE_ERRORS,
                ValueError,
                UnboundLocalError,
                AssertionError,
            ) as error:
                # The last two are Optuna's: of a store that is away, and of a trial that was failed behind its back.
                if self.trial is None:
                    raise
                self._tell_later(error)
            return 0 if self.failed is None else {"as it is": STOPPED, "after death": 1, "no": 0}[self.failed.again]
        finally:
            self.asking.release()
            self.process.close()

    def _queue(self) -> optuna.Study | None:
        """Returns the queue, while no other process of this host asks it; None if it has nothing to do."""
        study, phase = self.study, self.inputs.phase
        self.asking.acquire()
        storage = patient(lambda: open_store(self.ledger, self.inputs.url, AfterDeath(self.ledger)))
        trials = patient(lambda: open_queue(study, phase, storage).get_trials(deepcopy=False))
        waits = any(trial.state == TrialState.WAITING for trial in trials)
        if not waits and (study.search is None or phase != "study" or originals(trials) >= study.search.trials):
            return None
        return patient(lambda: open_queue(study, phase, storage, number=len(trials), create=False))

    def _objective(self, trial: optuna.Trial) -> float:
        self.trial = _frozen(trial)
        try:
            job = self._job(trial)
            trial.set_user_attr(PROCESS, self.process.name)
        finally:
            self.asking.release()
        try:
            return self._result(job, trial)
        except _Failed as failed:
            self.failed = failed
            raise

    def _job(self, trial: optuna.Trial) -> StudyJob:
        assert self.trial is not None
        known = {name: _suggested(trial, name, one) for name, one in distributions(self.study).items()}
        name = job_of(self.trial)
        if self.trial.user_attrs.get(JOB) != name:
            trial.set_user_attr(JOB, name)
        if (known_job := self.ledger.job(name)) is not None:
            return known_job
        assert self.study.search is not None
        job = StudyJob(name, "study", self.study.at(known), self.study.seeds[0])
        self.ledger.record(job, self.ledger.command(self.study, job, self._threads))
        return job

    @property
    def _threads(self) -> int | None:
        return self.inputs.execution.threads

    def _result(self, job: StudyJob, trial: optuna.Trial) -> float:
        """Returns the score of the job's run, which is carried out unless it is done; raises TrialPruned if it was paused."""
        assert self.trial is not None
        run = RunDir(self.ledger.run(job.name))
        reports = _Reports(self.study, trial, run, to_its_end=bool(self.trial.user_attrs.get(CONTINUES)))
        while True:
            state = self.ledger.state(job.name)
            if state == "running":  # the process of an earlier trial, which was taken for gone
                time.sleep(0.5)
                continue
            if state == "failed":
                raise _Failed(self.ledger.failure(job.name) or "failed before")
            if state == "done":
                break
            if not reports.catch_up() or (state == "paused" and reports.looks):
                self._pause()
            done = self._trained(job, reports)
            if done is None:
                continue
            status = done.summary.get("status")
            if status == "paused":
                self._pause()
            if status != "finished":
                raise _Failed("stopped with its state saved", "as it is")
        keep_best_and_last(run)
        if any(one.state == TrialState.COMPLETE and job_of(one) == job.name for one in patient(trial.study.get_trials)):
            raise _Failed("another trial has told what its run has come to")
        score = score_of(self.study, self.ledger.summary(job.name))
        if score is None or not math.isfinite(score):
            raise self._failed(job, f"its {self.study.metric} on the validation pictures is not defined")
        self.outcome = (TrialState.COMPLETE, score)
        with contextlib.suppress(*STORE_ERRORS, UpdateFinishedTrialError):
            reports.catch_up()
            patient(reports.tell)  # what a store that was away at the last evaluations does not know yet
        return score

    def _pause(self) -> NoReturn:
        self.outcome = (TrialState.PRUNED, None)
        raise optuna.TrialPruned

    def _trained(self, job: StudyJob, reports: _Reports) -> Run | None:
        """Trains the run of ``job``, or goes on with it; None if another process has it."""
        place, study = self.ledger.run(job.name), self.study
        common: dict[str, Any] = {"execution": self.inputs.execution, "decide": reports.decide, "say": silent}
        common["command"] = self.ledger.command(study, job, self._threads)
        try:
            if (place / "plan.json").is_file():
                return resume(place, **common)
            request = study.request(job.variant, job.seed)
            return train(study.data, request, out=place, tiny=self.inputs.tiny, budget=study.equal.budget, **common)
        except (Stopped, KeyboardInterrupt):
            raise _Failed("stopped before it could begin", "as it is") from None
        except CheckpointError as error:
            if is_held(place):
                return None
            raise self._failed(job, str(error)) from error
        except StorageError as error:
            raise _Failed(str(error), "after death") from error
        except StagewrightError as error:
            raise self._failed(job, str(error)) from error
        except Exception as error:
            surroundings = as_storage_error(error)
            if surroundings is not None:
                raise _Failed(str(surroundings), "after death") from error
            raise self._failed(job, f"{type(error).__name__}: {error}") from error

    def _failed(self, job: StudyJob, reason: str) -> _Failed:
        self.ledger.fail(job.name, reason)
        return _Failed(reason)

    def _again(self, queue: optuna.Study, failed: _Failed) -> None:
        """Queues the job once more, if it is to be tried again. What the store does not take is queued at the next start."""
        assert self.trial is not None
        trial = self.trial
        if failed.again == "no":
            return

        def once() -> None:  # others do not wait while the store is away
            with self.ledger.alone():
                if failed.again == "after death":
                    AfterDeath(self.ledger)(queue, trial)
                else:
                    queue_again(queue, trial)

        patient(once)

    def _tell_later(self, error: Exception) -> None:
        """Tells the outcome again until the store takes it. A trial that was failed behind this process's back is left so:
        another one finds the run done. A failure that could not be told is found out by the end of this process."""
        if self.outcome is None or self.trial is None:
            if self.failed is None and isinstance(error, ValueError):
                raise error
            return
        state, score = self.outcome
        trial = self.trial

        def tell() -> None:
            storage = open_store(self.ledger, self.inputs.url, AfterDeath(self.ledger))
            queue = open_queue(self.study, self.inputs.phase, storage, create=False)
            if queue.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                queue.tell(trial.number, score, state=state, skip_if_finished=True)

        patient(tell)


class _Reports:
    """Tells the store each evaluation of a run, and asks whether the run goes on behind a rung."""

    def __init__(self, study: Study, trial: optuna.Trial, run: RunDir, *, to_its_end: bool) -> None:
        self.study, self.trial, self.run = study, trial, run
        self.looks = study.search is not None and study.search.rungs is not None and not to_its_end
        """Whether the run may be paused at a rung."""
        self.pending: dict[int, float] = {}
        self.reported = set(_frozen(trial).intermediate_values)
        self.total: int | None = None

    def catch_up(self) -> bool:
        """Tells what an earlier process of the run could not tell any more; returns whether the run goes on from where it is."""
        if not self.run.events.is_file() or not self.run.plan.is_file():
            return True
        saved = saved_step(self.run)
        events = [one.event for one in read_events(self.run.events, silent) if not one.superseded]
        evaluated = [event for event in events if isinstance(event, Evaluated) and event.step <= saved]
        for event in evaluated:
            self._note(event)
        return not evaluated or evaluated[-1].step < saved or self._goes_on(saved)

    def decide(self, event: Evaluated) -> bool:
        """Returns whether the run goes on after an evaluation; it does where the store is away."""
        self._note(event)
        return self._goes_on(event.step)

    def tell(self) -> None:
        """Tells the store the evaluations that it does not know; what it does not take stays for the next time."""
        for at in sorted(self.pending):
            self.trial.report(self.pending[at], at)
            self.reported.add(at)
            del self.pending[at]

    def _note(self, event: Evaluated) -> None:
        at = round(THOUSAND * event.step / self._total_steps())
        if at not in self.reported:
            self.pending[at] = event_score(self.study, event)

    def _goes_on(self, step: int) -> bool:
        try:
            self.tell()
            return step >= self._total_steps() or not (self.looks and self.trial.should_prune())
        except STORE_ERRORS:
            return True
        except (
            UpdateFinishedTrialError
        ):  # failed behind this process's back: another trial tells what the run has come to
            self.pending.clear()
            return True

    def _total_steps(self) -> int:
        if self.total is None:
            self.total = self.run.read_plan().total_steps
        return self.total


def _frozen(trial: optuna.Trial) -> FrozenTrial:
    """Returns what the store knows of a trial that has begun."""
    return trial.study.get_trials(deepcopy=False)[trial.number]


def _suggested(trial: optuna.Trial, name: str, one: BaseDistribution) -> Any:
    if isinstance(one, CategoricalDistribution):
        return trial.suggest_categorical(name, one.choices)
    if isinstance(one, IntDistribution):
        return trial.suggest_int(name, one.low, one.high)
    assert isinstance(one, FloatDistribution)
    return trial.suggest_float(name, one.low, one.high, log=one.log)
