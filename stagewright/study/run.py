"""Carries out a study: begins its folder or joins those who work at it, trains its runs, and confirms the best of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stagewright.api.run import Say
from stagewright.errors import CheckpointError, RecipeError, StorageError
from stagewright.plan.budget import Budget
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.recipe.differences import differing, value_text
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path
from stagewright.study.changes import refuse_changed
from stagewright.study.checks import Checked, check_disk, check_study
from stagewright.study.definition import Study, job_name
from stagewright.study.expected import expected
from stagewright.study.folder import opened
from stagewright.study.ledger import FILE, Ledger, Phase, StudyJob, jobs_of
from stagewright.study.status import ranked
from stagewright.system.machine import cores
from stagewright.system.signals import keeps
from stagewright.text import counted, shortened, some
from stagewright.trackers.names import usable


@dataclass(frozen=True)
class Manner:
    """How a worker carries out a study."""

    execution: Execution = field(default_factory=Execution)
    processes: int = 1
    """How many runs at the same time."""
    devices: Sequence[str] = ()
    """Where they compute, in turn; empty: as ``execution`` says."""
    storage: str | None = None
    """URL of a PostgreSQL server for workers on several hosts; None: the environment's, or the journal of one host."""
    budget: Budget | None = None
    """No run begins that is not forecast to end within it."""
    more: int = 0
    """Paused runs of a search that go on to their end."""
    tiny: bool = False
    say: Say = print


def study_folder(study: Study, out: Path | None) -> Path:
    """Returns where a study is carried out: ``out``, or ``runs/NAME``, so that the same command joins it."""
    return Path("runs") / study.name if out is None else user_path(out)


def run_study(study: Study, out: Path | None, manner: Manner) -> Ledger:
    """Works at ``study`` until all its runs have ended, here or elsewhere; returns its folder's ledger.

    The same call anywhere joins as another worker. A signal stops the runs of this worker with their state saved; the same call
    goes on. StagewrightError for what the caller can fix, before the first run.
    """
    url = _storage_url(manner.storage)
    ledger = Ledger(study_folder(study, out), one_host=url is None)
    if study.equal.budget is not None and manner.processes > 1:
        raise RecipeError(
            f"-j {manner.processes} with equal: {{time: {study.equal.value}}}",
            "runs one at a time, as they would take each other's time",
            "leave -j out; workers on other machines of the same kind may join",
        )
    with keeps(lambda: _kept(ledger), resumable=True):
        manner = replace(manner, execution=_execution(study, ledger, manner))
        checked = check_study(study, manner.execution, manner.say, tiny=manner.tiny)
        begin(ledger, checked, manner)
        done = [job.name for job in jobs_of(study) if ledger.state(job.name) == "done"]
        check_disk(checked, ledger.root, done)
        longest = _longest(checked, manner, ledger)
        from stagewright.study.worker import Worker  # Optuna comes with it

        def work(phase: Phase, jobs: Sequence[StudyJob], execution: Execution) -> None:
            Worker(
                ledger,
                study,
                phase,
                jobs,
                url,
                execution,
                manner.processes,
                devices=manner.devices,
                tiny=manner.tiny,
                deadline=None if manner.budget is None else _deadline(manner.budget),
                longest=longest,
                more=manner.more if phase == "study" else 0,
                say=manner.say,
            ).work()

        confirmed = ledger.confirmation() is not None
        if not confirmed:
            work("study", jobs_of(study), replace(manner.execution, hold_test=held_by(study)))
        if study.confirm is not None and (confirmed or _all_ended(ledger, study)):
            work("confirmation", _confirmation_jobs(ledger, study, manner), manner.execution)
    return ledger


def held_by(study: Study) -> bool | str:
    """Returns who holds the test part of the runs of a study: the study, until its confirmation."""
    if study.no_test:
        return False
    return f"the study {shortened(study.name, 60)} opens it in its confirmation" if study.confirm is not None else True


def begin(ledger: Ledger, checked: Checked, manner: Manner) -> None:
    """Writes the folder of a study, or joins the one that is there.

    CheckpointError if the folder holds something else, or if this worker would make other plans than the one that began it.
    """
    study, threads = checked.study, manner.execution.threads
    fixed = {
        "threads": threads,
        "tiny": checked.tiny,
        "precision": checked.jobs[0].plan.precision,
        "plans": {} if study.equal.budget is not None else {job.name: job.plan.digest for job in checked.jobs},
        "datasets": sorted({job.plan.dataset.digest for job in checked.jobs}),
    }
    if not ledger.begun:
        with opened(ledger.root, FILE, ()):
            pass  # refuses a folder with other content
    with ledger.alone():
        if ledger.begun:
            content = ledger.read()
            refuse_changed(content["content"], study.content)
            _refuse_other_plans(ledger, content["fixed"], fixed, checked)
            fixed = {**content["fixed"], "plans": {**fixed["plans"], **content["fixed"]["plans"]}}
            if study.content != content["content"] and ledger.confirmation() is not None:
                raise RecipeError(
                    f"the study in {ledger.root} is confirmed: its test part was opened",
                    "the study as it was",
                    "begin a new one with --out; its test part must be another one to count",
                )
        ledger.write(study, fixed)
        for job in jobs_of(study):
            ledger.record(job, ledger.command(study, job, threads))


def _execution(study: Study, ledger: Ledger, manner: Manner) -> Execution:
    """Returns the execution with the number of threads that all runs of the study have."""
    asked = manner.execution.threads
    if ledger.begun:
        threads = int(ledger.read()["fixed"]["threads"])
        if asked not in (None, threads):
            raise CheckpointError(
                f"--threads {asked}, but the runs of {ledger.root} compute with {threads}",
                "the same number for all runs of a study, since sums depend on it",
                f"leave it out, or write --threads {threads}",
            )
    else:
        threads = asked or max(1, cores() // manner.processes)
    several = manner.processes > 1  # read the same pictures
    return replace(usable(manner.execution), threads=threads, pages=False, quiet=True, shared_pictures=several)


def _refuse_other_plans(ledger: Ledger, old: Mapping[str, Any], new: Mapping[str, Any], checked: Checked) -> None:
    for name, what in (("tiny", "--tiny"), ("precision", "the precision"), ("datasets", "the pictures")):
        if old[name] != new[name]:
            said = "" if name == "datasets" else f" ({value_text(old[name])}, here {value_text(new[name])})"
            raise CheckpointError(
                f"{what} of the study in {ledger.root} was another one at its beginning{said}",
                "the same for all runs of a study",
                "run it on machines and pictures of the same kind, or begin in another folder with --out",
            )
    for job in checked.jobs:
        if job.name in old["plans"] and old["plans"][job.name] != job.plan.digest:
            raise CheckpointError(
                f"the plan of {job.name} would be another one here{_what_differs(ledger, job.name, job.plan)}",
                "workers that make the same plans",
                "use the version of stagewright and the kind of machine with which the study began",
            )


def _what_differs(ledger: Ledger, job: str, plan: Plan) -> str:
    """Returns in which fields ``plan`` differs from that of the job's run, if that has begun."""
    run = RunDir(ledger.run(job))
    if not run.plan.is_file():
        return ""
    found = differing(run.read_plan().to_json(), plan.to_json())
    named = (f"{path} ({value_text(was)}, here {value_text(now)})" for path, was, now in found if path != "digest")
    return f": {some(named, 4)}"


def _longest(checked: Checked, manner: Manner, ledger: Ledger) -> float:
    """Returns the forecast seconds of the longest run, which only a budget needs."""
    if manner.budget is None:
        return 0.0
    times = expected(checked, manner.execution, ledger.root, manner.say)
    return max(times.seconds.values()) * manner.processes**0.5


def _deadline(budget: Budget) -> float:
    return time.monotonic() + budget.seconds - budget.spent_seconds


def _all_ended(ledger: Ledger, study: Study) -> bool:
    jobs = jobs_of(study) or [job for job in ledger.jobs() if job.phase == "study"]
    states = [ledger.state(job.name) for job in jobs]
    whole = study.search is None or len(jobs) >= study.search.trials
    return whole and all(state in ("done", "failed", "paused") for state in states)


def _confirmation_jobs(ledger: Ledger, study: Study, manner: Manner) -> list[StudyJob]:
    """Chooses the variants to confirm, once for all workers, and returns their jobs."""
    assert study.confirm is not None
    with ledger.alone():
        if ledger.confirmation() is None:
            best = ranked(ledger, study)[: study.confirm.top]
            if not best:
                raise StorageError(
                    f"no variant of the study in {ledger.root} has finished all its runs",
                    "a variant that can be confirmed",
                    f"stagewright study show {ledger.root} says why they failed",
                )
            jobs = [
                StudyJob(job_name(variant, seed), "confirmation", variant, seed)
                for seed in study.confirmation_seeds
                for variant, _, _ in best
            ]
            for job in jobs:
                ledger.record(job, ledger.command(study, job, manner.execution.threads))
            names, scores = [variant.name for variant, _, _ in best], [score for _, score, _ in best]
            ledger.confirm(names, scores, [job.name for job in jobs])
            manner.say(f"Confirming {some(names, 5)} with {counted(study.confirm.seeds, 'fresh seed')} each.")
        chosen = ledger.confirmation()
        assert chosen is not None
        return [job for job in ledger.jobs() if job.name in set(chosen["jobs"])]


def _storage_url(given: str | None) -> str | None:
    try:
        from stagewright.study.store import storage_url
    except ImportError as error:
        raise StorageError(
            f"study run needs Optuna, which is not installed ({error})",
            "the extra study",
            "pip install 'stagewright[study]'",
        ) from None
    return storage_url(given)


def _kept(ledger: Ledger) -> str:
    if ledger.begun:
        return "all runs are saved; the same command goes on, here or on another machine"
    return "nothing had been trained; the same command begins again"
