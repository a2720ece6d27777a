"""Brings the store in line with the directories of the runs: what they say is done is done, whatever the store knows.

Called by each worker at its start, and whenever an attempt has ended. It may be called by several at once on one host (they take
turns), and on several hosts, where each judges its own processes; those of others are found out by their silence.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from stagewright.study.definition import Study
from stagewright.study.ledger import Ledger, Phase, StudyJob
from stagewright.study.queue import distributions
from stagewright.study.scores import score_of
from stagewright.study.store import CONTINUES, JOB, PROCESS, AfterDeath, is_alive, job_of

_SETTING_OUT_SECONDS = 60.0
"""So long after its beginning, a trial need not have said yet which process is at it."""
_OPEN = (TrialState.WAITING, TrialState.RUNNING)


def reconcile(queue: optuna.Study, ledger: Ledger, study: Study, phase: Phase, jobs: Iterable[StudyJob]) -> None:
    """Tells the store finished runs that it does not know, queues each job that has no trial, and queues again those whose
    process is gone. ``jobs`` are all of a grid, a list or a confirmation; of a search those that have begun."""
    with ledger.alone():
        by_job: dict[str, list[FrozenTrial]] = {}
        for trial in queue.get_trials(deepcopy=False):
            by_job.setdefault(job_of(trial), []).append(trial)
        for job in jobs:
            _settle(queue, ledger, study, phase, job, by_job.pop(job.name, []))
        for trials in by_job.values():  # of a search: chosen, and not begun
            for trial in trials:
                if trial.state == TrialState.RUNNING and _is_gone(ledger, trial):
                    _again(queue, ledger, trial)


def _settle(
    queue: optuna.Study, ledger: Ledger, study: Study, phase: Phase, job: StudyJob, trials: list[FrozenTrial]
) -> None:
    state, states = ledger.state(job.name), {trial.state for trial in trials}
    if state == "done":
        if TrialState.COMPLETE not in states:
            _tell_done(queue, ledger, study, job, [trial for trial in trials if trial.state in _OPEN])
        return
    if state == "failed":
        _close(queue, trials)
        return
    for trial in trials:
        if trial.state == TrialState.RUNNING and _is_gone(ledger, trial):
            _again(queue, ledger, trial)
            return
    if study.search is not None and phase == "study":
        if state in ("waiting", "interrupted") and not states & {*_OPEN, TrialState.PRUNED}:
            queue.add_trial(_queued(study, job, trials[-1] if trials else None))
        return
    known = _OPEN if ledger.one_host else (*_OPEN, TrialState.COMPLETE)  # elsewhere, its run may be in another folder
    if not states & {*known}:
        queue.add_trial(_queued(study, job, trials[-1] if trials else None))


def continue_paused(queue: optuna.Study, ledger: Ledger, study: Study, count: int) -> list[str]:
    """Queues the ``count`` best paused runs, by their last evaluation, to go on to their end; returns their jobs in order."""
    with ledger.alone():
        trials = queue.get_trials(deepcopy=False)
        going = {job_of(trial) for trial in trials if trial.state in _OPEN}
        paused = {
            job_of(trial): trial
            for trial in trials
            if trial.state == TrialState.PRUNED and trial.value is not None and ledger.state(job_of(trial)) == "paused"
        }
        sign = -1.0 if queue.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0

        def order(name: str) -> tuple[float, float]:
            """Those that came furthest first: a score after a tenth of a run is no rival of one after a third."""
            trial = paused[name]
            return -float(trial.last_step or 0), sign * float(trial.value or 0.0)

        chosen = [name for name in sorted(paused, key=order) if name not in going][:count]
        for name in chosen:
            queue.add_trial(_copy(paused[name], {JOB: name, CONTINUES: True}))
        return chosen


def _copy(trial: FrozenTrial, attributes: Mapping[str, Any]) -> FrozenTrial:
    kept = {name: value for name, value in trial.user_attrs.items() if name != PROCESS}
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**kept, **attributes},
        system_attrs={"fixed_params": trial.params},
        intermediate_values=trial.intermediate_values,
    )


def _is_gone(ledger: Ledger, trial: FrozenTrial) -> bool:
    """Returns whether the process of a running trial is known to have ended."""
    process = trial.user_attrs.get(PROCESS)
    if process is None:
        began = trial.datetime_start
        return began is not None and (datetime.datetime.now() - began).total_seconds() > _SETTING_OUT_SECONDS
    return is_alive(ledger, process) is False


def _again(queue: optuna.Study, ledger: Ledger, trial: FrozenTrial) -> None:
    try:
        queue.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # another host was faster
        return
    AfterDeath(ledger)(queue, trial)


def _close(queue: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
    """Ends the open trials of a job that has failed by itself."""
    for trial in trials:
        if trial.state in _OPEN:
            _end(queue, trial, TrialState.FAIL, None)


def _tell_done(queue: optuna.Study, ledger: Ledger, study: Study, job: StudyJob, trials: list[FrozenTrial]) -> None:
    """Tells the score of a finished run."""
    score = score_of(study, ledger.summary(job.name))
    for trial in trials:
        if trial.state == TrialState.RUNNING and not _is_gone(ledger, trial):
            return  # it tells itself
    if trials:
        _end(queue, trials[0], TrialState.FAIL if score is None else TrialState.COMPLETE, score)
        return  # where that was not possible, its process has told it since the store was read: the next look sees it
    if score is not None:
        params = _params(study, job)
        queue.add_trial(
            create_trial(value=score, params=params, distributions=distributions(study), user_attrs={JOB: job.name})
        )


def _end(queue: optuna.Study, trial: FrozenTrial, state: TrialState, score: float | None) -> bool:
    """Ends a trial of the store that waits, or whose process is gone; returns whether that was possible."""
    try:
        if trial.state == TrialState.WAITING:
            popped = queue._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # pyright: ignore[reportPrivateUsage]
            if not popped:
                return False
        queue.tell(trial.number, score, state=state)
    except (ValueError, UpdateFinishedTrialError):
        return False
    return True


def _queued(study: Study, job: StudyJob, before: FrozenTrial | None) -> FrozenTrial:
    """Returns a waiting trial at ``job``."""
    if before is not None:
        return _copy(before, {JOB: job.name})
    params = _params(study, job)
    return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params}, user_attrs={JOB: job.name})


def _params(study: Study, job: StudyJob) -> dict[str, Any]:
    """Returns the place of a job along the dimensions of the store's table."""
    found: dict[str, Any] = {}
    for name, one in distributions(study).items():
        if name == "seed" and study.search is None:
            found[name] = job.seed
        else:
            found[name] = _value(one, job.variant.labels[name])  # each of the axes that all variants have
    return found


def _value(one: BaseDistribution, label: str) -> Any:
    if isinstance(one, CategoricalDistribution):
        return label
    return one.to_external_repr(float(label))
