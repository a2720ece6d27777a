"""A worker of a study: starts attempts, one process each, until nothing is left to do; any number of workers may be at it."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import optuna
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from stagewright.api.run import Say
from stagewright.errors import StorageError
from stagewright.plan.execution import Execution
from stagewright.study.attempt import STOPPED, AttemptInputs, attempt
from stagewright.study.definition import Study
from stagewright.study.ledger import Ledger, Phase, StudyJob
from stagewright.study.queue import STORE_ERRORS, open_queue, originals
from stagewright.study.reconcile import continue_paused, reconcile
from stagewright.study.scores import score_of
from stagewright.study.store import CONTINUES, AfterDeath, open_store
from stagewright.system.children import safe_path_for_children
from stagewright.text import seconds_text

_LOOK_SECONDS = 5.0
"""Time between two looks at the store while all processes are busy."""
_IDLE_SECONDS = 1.0
_JOB_SECONDS = 0.005
"""Pause for each job, whose files are read at each look."""
_STOP_SECONDS = 600.0
"""Longest time for a run to save its state."""
_MOST_FAULTS = 5
"""So many attempts in a row may end without having begun, as for want of a store."""


@dataclass
class Worker:
    """Carries out one phase of a study on this machine."""

    ledger: Ledger
    study: Study
    phase: Phase
    jobs: Sequence[StudyJob]
    """All jobs of the phase; empty for a search, whose points are not known before."""
    url: str | None
    execution: Execution
    processes: int
    """How many attempts at the same time."""
    devices: Sequence[str] = ()
    """Where they compute, in turn; empty: as ``execution`` says."""
    tiny: bool = False
    deadline: float | None = None
    """``time.monotonic()`` by which the last run must end; None: no limit."""
    longest: float = 0.0
    """Seconds that a run is forecast to take; what finished runs took counts where it is more."""
    more: int = 0
    """Paused runs that are to go on to their end."""
    say: Say = print
    running: list[tuple[BaseProcess, str]] = field(default_factory=list[tuple[BaseProcess, str]])
    """Processes with their devices."""
    stopped: bool = False
    """Whether an attempt was stopped by a signal."""

    def work(self) -> None:
        """Works until all jobs of the phase have ended, here or elsewhere, or the deadline forbids to begin another one.

        Raises StorageError if the store cannot be reached at the start. A signal stops all attempts of this worker with their
        state saved.
        """
        context = _server()
        queue, faults, told = self._opened(), 0, set[str]()
        self._reconcile(queue)
        if self.more:
            for job in continue_paused(queue, self.ledger, self.study, self.more):
                self.say(f"{job} goes on to its end.")
        try:
            while not self.stopped:
                faults = 0 if self._collect() == 0 else faults + 1
                if faults > _MOST_FAULTS:
                    raise StorageError(
                        f"{faults} attempts in a row ended before they had begun",
                        "a store that can be reached, and a study folder that can be written",
                        "look at what they have printed; the same command goes on",
                    )
                with contextlib.suppress(*STORE_ERRORS):
                    self._reconcile(queue)
                    self._tell(told)
                    trials = queue.get_trials(deepcopy=False)
                    if self._is_over(trials):
                        break
                    self._begin(context, queue, trials)
                self._wait()
        finally:
            self._stop()
        with contextlib.suppress(*STORE_ERRORS):
            self._reconcile(queue)
        self._tell(told)

    def _opened(self) -> optuna.Study:
        storage = open_store(self.ledger, self.url, AfterDeath(self.ledger))
        return open_queue(self.study, self.phase, storage)

    def _reconcile(self, queue: optuna.Study) -> None:
        if self.url is not None:  # those of hosts that are gone; Optuna itself looks only when another trial begins
            fail_stale_trials(queue)
        reconcile(queue, self.ledger, self.study, self.phase, self._known())

    def _known(self) -> Sequence[StudyJob]:
        return self.jobs or [job for job in self.ledger.jobs() if job.phase == self.phase]

    def _is_over(self, trials: Sequence[FrozenTrial]) -> bool:
        if self.running or any(trial.state == TrialState.RUNNING for trial in trials):
            return False
        return not self._may_begin(trials)

    def _may_begin(self, trials: Sequence[FrozenTrial]) -> bool:
        """Returns whether there is something to begin, and time for it."""
        if self.deadline is not None and time.monotonic() + self._forecast() > self.deadline:
            return False
        return any(trial.state == TrialState.WAITING for trial in trials) or self._chooses(trials)

    def _chooses(self, trials: Sequence[FrozenTrial]) -> bool:
        search = self.study.search if self.phase == "study" else None
        return search is not None and originals(trials) < search.trials

    def _begin(self, context: ForkServerContext, queue: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Starts attempts while there is room, and something to do."""
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        left = math.inf if self._chooses(trials) else waiting
        if left == 0 and self._has_rungs and self._others_choose(trials) and len(self.running) < self.processes:
            left = len(continue_paused(queue, self.ledger, self.study, 1))
        while len(self.running) < self.processes and left > 0 and self._may_begin(trials):
            self._start(context)
            left -= 1
            if left == math.inf:
                break  # one at a time: the next one sees the choice of this one

    @property
    def _has_rungs(self) -> bool:
        return self.phase == "study" and self.study.search is not None and self.study.search.rungs is not None

    def _others_choose(self, trials: Sequence[FrozenTrial]) -> bool:
        """Returns whether points of the search are still under way, so that a free process may go on with a paused one."""
        return any(trial.state == TrialState.RUNNING and CONTINUES not in trial.user_attrs for trial in trials)

    def _start(self, context: ForkServerContext) -> None:
        device = self.execution.device
        if self.devices:
            busy = [used for _, used in self.running]
            device = min(self.devices, key=busy.count)
        inputs = AttemptInputs(
            self.ledger.root,
            self.study.name,
            self.study.content,
            self.phase,
            self.url,
            replace(self.execution, device=device),
            self.tiny,
        )
        process = context.Process(target=attempt, args=(inputs,))
        with safe_path_for_children():
            process.start()
        self.running.append((process, device))

    def _collect(self) -> int:
        """Forgets processes that have ended; returns how many of them had not begun, for a fault of the surroundings."""
        faults = 0
        for process, device in [*self.running]:
            if process.exitcode is None:
                continue
            process.join()
            self.running.remove((process, device))
            self.stopped |= process.exitcode == STOPPED
            faults += process.exitcode == 1
            process.close()
        return faults

    def _wait(self) -> None:
        """Waits until a process ends, or it is time to look at the store again."""
        sentinels = [process.sentinel for process, _ in self.running]
        if len(self.running) < self.processes:
            time.sleep(_IDLE_SECONDS if not sentinels else max(0.2, _JOB_SECONDS * len(self._known())))
        elif sentinels:
            multiprocessing.connection.wait(sentinels, _LOOK_SECONDS)

    def _stop(self) -> None:
        """Lets all attempts of this worker save their state and end."""
        for process, _ in self.running:
            if process.pid is not None and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        for process, _ in self.running:
            process.join(max(0.0, until - time.monotonic()))
        self.running.clear()

    def _forecast(self) -> float:
        """Seconds that another run takes at most, as far as that is known."""
        taken = [_seconds(self.ledger, job) for job in self._known() if self.ledger.state(job.name) == "done"]
        return max([self.longest, *taken])

    def _tell(self, told: set[str]) -> None:
        """Says what has become of jobs since the last time."""
        jobs = self._known()
        for job in jobs:
            state = self.ledger.state(job.name)
            mark = f"{job.name} {state}"
            if mark in told or state in ("waiting", "interrupted"):
                continue
            told.add(mark)
            self.say(self._sentence(job, state))

    def _sentence(self, job: StudyJob, state: str) -> str:
        if state == "done":
            score = score_of(self.study, self.ledger.summary(job.name))
            shown = "" if score is None else f", {self.study.metric} {score:.4g} on validation"
            return f"{job.name}: done in {seconds_text(_seconds(self.ledger, job))}{shown}"
        if state == "failed":
            return f"{job.name}: failed: {self.ledger.failure(job.name)}"
        if state == "paused":
            summary = self.ledger.summary(job.name)
            return f"{job.name}: paused at step {summary['step']:,} of {summary['total_steps']:,}"
        known, search = self._known(), self.study.search if self.phase == "study" else None
        count = len(known) if search is None else max(len(known), search.trials)
        done = sum(self.ledger.state(one.name) in ("done", "failed", "paused") for one in known)
        return f"{job.name}: running ({done} of {count} have ended)"


def _seconds(ledger: Ledger, job: StudyJob) -> float:
    return float(ledger.summary(job.name).get("wall_seconds") or 0.0)


def _server() -> ForkServerContext:
    """Returns the server that forks attempts: it has imported what they need, so that each begins at once."""
    context = multiprocessing.get_context("forkserver")
    # torch imports its compiler when the first optimizer is made: 4 s of each run
    context.set_forkserver_preload(["stagewright.study.attempt", "torch._dynamo"])
    return context
