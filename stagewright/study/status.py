"""How far a study is, read from its files while others work at it. Needs neither torch nor Optuna."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stagewright.report.runs import runs
from stagewright.study.definition import Study
from stagewright.study.ledger import Ledger, State, StudyJob
from stagewright.study.scores import direction, score_of
from stagewright.study.variants import Variant

_OPEN = ("waiting", "running", "interrupted")
STATES: tuple[State, ...] = ("done", "running", "interrupted", "paused", "failed", "waiting")


@dataclass(frozen=True)
class JobStatus:
    """A job, as its files say."""

    job: StudyJob
    state: State
    done: float
    """Share of its run's updates, 0 to 1."""
    score: float | None
    """By the study's metric on validation images; of a run that goes on its best top-1 so far, if that is the metric."""
    test_top1: float | None
    """In percent; only of confirmation runs, and of runs whose test part was opened."""
    seconds: float
    """Of its run so far, over all processes."""
    reason: str | None
    """Why it has failed."""


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment."""

    ledger: Ledger
    study: Study
    jobs: tuple[JobStatus, ...]

    def count(self, state: State) -> int:
        """Returns the number of jobs in a state."""
        return sum(one.state == state for one in self.jobs)

    @cached_property
    def expected_jobs(self) -> int:
        """How many jobs there will be before the confirmation, and of it as soon as it is decided."""
        known = sum(one.job.phase == "study" for one in self.jobs)
        trials = known if self.study.search is None else max(known, self.study.search.trials)
        return trials + len(self.jobs) - known

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until all known jobs have ended, with as many processes as are at it now; None before one has finished."""
        took = [one.seconds for one in self.jobs if one.state == "done" and one.seconds > 0]
        if not took:
            return None
        left = sum(1.0 - one.done for one in self.jobs if one.state in _OPEN) + self.expected_jobs - len(self.jobs)
        return left * float(np.mean(took)) / max(1, self.count("running"))

    @cached_property
    def ranking(self) -> list[tuple[Variant, float, int]]:
        """Variants with their mean validation score and number of runs, the best first; those that have finished all runs."""
        return ranked(self.ledger, self.study)

    def to_dict(self) -> dict[str, object]:
        """Returns all of it as plain data for JSON; top-1 in percent."""
        return {
            "name": self.study.name,
            "metric": self.study.metric,
            "counts": {state: self.count(state) for state in STATES},
            "expected_jobs": self.expected_jobs,
            "eta_seconds": self.eta_seconds,
            "jobs": [
                {
                    "name": one.job.name,
                    "phase": one.job.phase,
                    "variant": one.job.variant.name,
                    "labels": dict(one.job.variant.labels),
                    "seed": one.job.seed,
                    "state": one.state,
                    "done": one.done,
                    "val_score": one.score,
                    "test_top1": one.test_top1,
                    "seconds": one.seconds,
                    "reason": one.reason,
                }
                for one in self.jobs
            ],
            "ranking": [
                {"variant": variant.name, "labels": dict(variant.labels), "val_score": score, "runs": count}
                for variant, score, count in self.ranking
            ],
            "confirmation": self.ledger.confirmation(),
        }


def study_status(ledger: Ledger) -> StudyStatus:
    """Returns how far the study in a folder is; CheckpointError if there is none. Changes nothing."""
    study = ledger.study()
    return StudyStatus(ledger, study, tuple(_status(ledger, study, job) for job in ledger.jobs()))


def _status(ledger: Ledger, study: Study, job: StudyJob) -> JobStatus:
    state, place = ledger.state(job.name), ledger.run(job.name)
    row = next(iter(runs(place)), None) if place.is_dir() else None
    summary = ledger.summary(job.name)
    score = score_of(study, summary) if state == "done" else None
    if state != "done" and study.metric == "top1" and row is not None and row.split == "val" and row.score is not None:
        score = row.score.percent
    return JobStatus(
        job,
        state,
        0.0 if row is None or row.done is None else row.done,
        score,
        (summary.get("top1") or {}).get("test"),
        float(summary.get("wall_seconds") or 0.0),
        ledger.failure(job.name) if state == "failed" else None,
    )


def ranked(ledger: Ledger, study: Study) -> list[tuple[Variant, float, int]]:
    """Returns the variants with their mean validation score and their number of finished runs, the best first. A variant counts
    once all its runs have finished."""
    found: dict[str, tuple[Variant, list[float]]] = {}
    missing: set[str] = set()
    for job in ledger.jobs():
        if job.phase != "study":
            continue
        score = score_of(study, ledger.summary(job.name)) if ledger.state(job.name) == "done" else None
        found.setdefault(job.variant.name, (job.variant, []))
        if score is None or not math.isfinite(score):
            missing.add(job.variant.name)
        else:
            found[job.variant.name][1].append(score)
    sign = -1.0 if direction(study) == "maximize" else 1.0
    rows = [(one, float(np.mean(scores)), len(scores)) for name, (one, scores) in found.items() if name not in missing]
    return sorted(rows, key=lambda row: (sign * row[1], row[0].name))
