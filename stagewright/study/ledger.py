"""The folder of a study: what was fixed at its beginning, a record of each job, and the directories of their runs.

    study.json          the study, and what was fixed when it began; written once
    jobs/JOB.json       what a job is; written before its run begins
    failures/JOB.json   why a job has failed by itself, and is not tried again
    runs/JOB/           its run, as train makes it: the truth about how far it is
    confirmation.json   which variants are confirmed; written before the first test part is opened
    study.journal       the queue of one host

Nothing but the directories of the runs says what is done. All else can be written again.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stagewright.errors import CheckpointError, StorageError
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import Summary, read_summary
from stagewright.storage.files import make_folders, write_json
from stagewright.storage.json_text import Fields
from stagewright.storage.lock import is_held, lock
from stagewright.study.definition import Study, job_name, study_from_content
from stagewright.study.folder import read_definition
from stagewright.study.variants import Variant

FILE = "study.json"
_CONFIRMATION = "confirmation.json"
_LOCK_SECONDS = 120.0
_GROWS = ("description", "seeds")
Phase = Literal["study", "confirmation"]
State = Literal["waiting", "running", "interrupted", "paused", "done", "failed"]
"""``interrupted``: begun, and no process is at it; ``failed``: it ended by itself, and is not tried again."""


class _FixedFields(Fields):
    """What is the same for all runs of a study, wherever a worker computes."""

    threads: Annotated[int, Field(ge=1)]
    tiny: bool
    precision: str
    plans: dict[str, str]
    """Digest of the plan of each job that was known at the beginning; none where the plan follows a measurement."""
    datasets: list[str]
    """Digests of the pictures as the jobs read them."""


class _StudyFields(Fields):
    """study.json."""

    format: Literal[1]
    name: str
    content: dict[str, Any]
    fixed: _FixedFields
    created: str


class _JobFields(Fields):
    """A file of jobs/."""

    name: str
    phase: Phase
    variant: str
    labels: dict[str, str]
    overrides: Annotated[list[str], Field(max_length=10_000)]
    seed: Annotated[int, Field(ge=0)]
    command: list[str]
    """The words of the command that trains the same."""


class _FailureFields(Fields):
    """A file of failures/."""

    reason: str
    at: str


class _ConfirmationFields(Fields):
    """confirmation.json."""

    variants: list[str]
    """Names of the variants, the best first."""
    scores: list[float]
    """What they were chosen by."""
    jobs: list[str]
    at: str


@dataclass(frozen=True)
class StudyJob:
    """An ordinary run that a study makes."""

    name: str
    """Also of its run's directory."""
    phase: Phase
    variant: Variant
    seed: int


@dataclass(frozen=True)
class Ledger:
    """The files of a study in the folder ``root``."""

    root: Path
    one_host: bool = True
    """Whether all workers are on one host, with a journal for a store."""

    @property
    def journal(self) -> Path:
        return self.root / "study.journal"

    def run(self, job: str) -> Path:
        """Returns the directory of the run of a job."""
        return self.root / "runs" / job

    @property
    def begun(self) -> bool:
        """Whether there is a study."""
        return (self.root / FILE).is_file()

    def read(self) -> dict[str, Any]:
        """Returns the content of study.json; CheckpointError if there is none, or a damaged one."""
        if not self.begun:
            raise CheckpointError(
                f"{self.root} holds no study",
                f"a folder with a {FILE}, written by study run",
                "give the folder that study run printed",
            )
        return read_definition(self.root, FILE, _StudyFields)

    def study(self) -> Study:
        """Returns the study as it was begun."""
        content = self.read()
        return study_from_content(content["name"], content["content"])

    def write(self, study: Study, fixed: Mapping[str, Any]) -> None:
        """Begins the folder, or writes a study that asks for more of the same."""
        created = self.read()["created"] if self.begun else _now()
        content = {"format": 1, "name": study.name, "content": study.content, "fixed": fixed, "created": created}
        for folder in (self.root, self.root / "jobs", self.root / "failures", self.root / "runs"):
            make_folders(folder)
        write_json(self.root / FILE, content)

    def command(self, study: Study, job: StudyJob, threads: int | None) -> list[str]:
        """Returns the words of the command that trains the run of a job to its place."""
        hold = job.phase == "study"
        return study.command(job.variant, job.seed, str(self.run(job.name)), threads, hold_test=hold)

    def record(self, job: StudyJob, command: list[str]) -> None:
        """Writes what a job is, if that is not there."""
        place = self._record(job.name)
        if place.is_file():
            return
        content = {
            "name": job.name,
            "phase": job.phase,
            "variant": job.variant.name,
            "labels": dict(job.variant.labels),
            "overrides": list(job.variant.overrides),
            "seed": job.seed,
            "command": command,
        }
        write_json(place, content)

    def jobs(self) -> list[StudyJob]:
        """Returns all jobs that have a record, sorted by name; CheckpointError for a damaged one."""
        found = (self.job(place.stem) for place in sorted((self.root / "jobs").glob("*.json")))
        return [one for one in found if one is not None]

    def job(self, name: str) -> StudyJob | None:
        """Returns the job ``name``; None if it has no record, or one of another name. CheckpointError for a damaged one."""
        place = self._record(name)
        if not place.is_file():
            return None
        one = read_definition(place.parent, place.name, _JobFields)
        variant = Variant(one["variant"], one["labels"], tuple(one["overrides"]))
        return StudyJob(name, one["phase"], variant, one["seed"]) if one["name"] == name else None

    def _record(self, job: str) -> Path:
        return self.root / "jobs" / f"{job}.json"

    def fail(self, job: str, reason: str) -> None:
        """Writes why a job has failed by itself."""
        write_json(self.root / "failures" / f"{job}.json", {"reason": reason, "at": _now()})

    def failure(self, job: str) -> str | None:
        """Returns why a job has failed; None if it has not."""
        place = self.root / "failures" / f"{job}.json"
        return read_definition(place.parent, place.name, _FailureFields)["reason"] if place.is_file() else None

    def summary(self, job: str) -> Summary:
        """Returns the summary of a job's run; {} if there is none, or a damaged one, which a resume writes again."""
        try:
            return read_summary(RunDir(self.run(job)))
        except CheckpointError:
            return {}  # pyright: ignore[reportReturnType] # as read_summary for a run without one

    def state(self, job: str) -> State:
        """Returns how far a job is, read from its files."""
        summary, place = self.summary(job), self.run(job)
        if summary.get("status") == "finished" and summary.get("stopped_at") is None:
            return "done"
        if self.failure(job) is not None:
            return "failed"
        if is_held(place):
            return "running"
        if not (place / "plan.json").is_file():
            return "waiting"
        return "paused" if summary.get("status") == "paused" else "interrupted"

    def confirmation(self) -> dict[str, Any] | None:
        """Returns the content of confirmation.json; None before the confirmation."""
        there = (self.root / _CONFIRMATION).is_file()
        return read_definition(self.root, _CONFIRMATION, _ConfirmationFields) if there else None

    def confirm(self, variants: list[str], scores: list[float], jobs: list[str]) -> None:
        """Writes which variants are confirmed: from then on their jobs may open the test part."""
        write_json(self.root / _CONFIRMATION, {"variants": variants, "scores": scores, "jobs": jobs, "at": _now()})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager: waits until no other process is in it; for reading and writing what several workers decide, and never
        while a store is waited for. StorageError after two minutes."""
        make_folders(self.root)
        until = time.monotonic() + _LOCK_SECONDS
        with contextlib.ExitStack() as holding:
            while True:
                try:
                    holding.enter_context(lock(self.root))
                    break
                except CheckpointError as error:
                    if time.monotonic() > until:
                        raise StorageError(
                            f"{error.given}, which has decided something for {_LOCK_SECONDS:g} s",
                            "workers that take turns, each for a moment",
                            "give the command again; if that stays so, stop that process",
                        ) from error
                    time.sleep(0.02)
            yield


def jobs_of(study: Study) -> list[StudyJob]:
    """Returns the jobs of a grid or list, each variant with each seed, in their order; of a search none."""
    return [
        StudyJob(job_name(variant, seed), "study", variant, seed) for seed in study.seeds for variant in study.variants
    ]


def identity(study: Study) -> str:
    """Returns 12 hexadecimal digits that are the same on every host for one study, also when it asks for more seeds or trials."""
    content = {name: value for name, value in study.content.items() if name not in _GROWS}
    if isinstance(search := content.get("search"), Mapping):
        content["search"] = {name: value for name, value in search.items() if name != "trials"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
