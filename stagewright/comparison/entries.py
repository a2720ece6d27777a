"""What is compared: runs that differ by their seed alone are one entry.

Entries come from the folder of a study, whose jobs say which runs belong together, or from a list of runs, whose plans do. Only
reads; needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stagewright.errors import CheckpointError
from stagewright.recipe.differences import differing, value_text
from stagewright.report.read import RunRecord, read_run
from stagewright.study.definition import Study
from stagewright.study.ledger import FILE, Ledger, Phase, StudyJob
from stagewright.text import shortened

_COSMETIC = ("name", "description", "seed")
_LONGEST = 60
_SPENT = ("finished", "paused", "failed")
"""Of a run that has been compared with others by its validation scores, or would have been."""


@dataclass(frozen=True)
class _EntryRun:
    """A run, or a place for one of a study that has not begun or is damaged."""

    name: str
    seed: int | None
    status: str
    """As :attr:`stagewright.report.read.RunRecord.status`; ``waiting`` for one that has not begun."""
    record: RunRecord | None
    problem: str = ""
    """Why it failed, or cannot be read."""


@dataclass(frozen=True)
class Entry:
    """A recipe with its runs, which differ by the seed."""

    name: str
    runs: tuple[_EntryRun, ...]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """What a study calls it on each of its axes."""
    phase: Phase | Literal["runs"] = "runs"
    """``study``: its runs have chosen by validation scores, and leave the test part closed; ``confirmation``: fresh seeds of
    what was chosen; ``runs``: given one by one."""
    trials: int = 0
    """Number of runs among which it was chosen by validation scores; 0 where none were compared so."""

    @property
    def records(self) -> list[RunRecord]:
        """The runs that can be read, in the order of their seeds."""
        return [one.record for one in self.runs if one.record is not None]


@dataclass(frozen=True)
class Entries:
    """All that is compared, in the order in which it was given."""

    entries: tuple[Entry, ...]
    study: Study | None = None
    """The study that they are of."""
    folder: Path | None = None
    """Of the study."""
    chose: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict[str, Sequence[RunRecord]])
    """By variant the finished runs of the study whose validation scores have chosen, also of those that were confirmed."""


def entries_of(places: Sequence[Path]) -> Entries:
    """Returns what is compared: the entries of the study in one folder, or those of runs.

    CheckpointError for no place, for one that is neither, for a study beside others, and for one run alone.
    """
    studies = [place for place in places if (place / FILE).is_file()]
    if studies and len(places) > 1:
        raise CheckpointError(
            f"the study {studies[0]} beside {len(places) - 1} more",
            "one study, or runs",
            f"give the study alone, or the runs in {studies[0] / 'runs'}",
        )
    if studies:
        return _of_study(studies[0])
    if len(places) < 2:
        raise CheckpointError(
            f"{places[0]} alone" if places else "nothing to compare",
            "the folder of a study, or two or more runs",
            "stagewright report RUN shows one run by itself",
        )
    return Entries(tuple(_grouped([read_run(place) for place in places])))


def _of_study(folder: Path) -> Entries:
    ledger = Ledger(folder)
    study = ledger.study()
    jobs: dict[tuple[Phase, str], list[StudyJob]] = {}
    for job in ledger.jobs():
        jobs.setdefault((job.phase, job.variant.name), []).append(job)
    runs = {
        key: tuple(_study_run(ledger, job) for job in sorted(own, key=lambda job: job.seed))
        for key, own in jobs.items()
    }
    spent = sum(one.status in _SPENT for (phase, _), own in runs.items() if phase == "study" for one in own)
    entries = [
        Entry(name, runs[phase, name], own[0].variant.labels, phase, spent)
        for (phase, name), own in jobs.items()
        if phase == "confirmation" or ("confirmation", name) not in jobs  # its fresh runs stand for it
    ]
    chose = {
        name: [one.record for one in own if one.record is not None and one.status == "finished"]
        for (phase, name), own in runs.items()
        if phase == "study"
    }
    order = {variant.name: at for at, variant in enumerate(study.variants)}
    entries.sort(key=lambda one: (one.phase == "study", order.get(one.name, len(order)), one.name))
    return Entries(tuple(entries), study, folder, chose)


def _study_run(ledger: Ledger, job: StudyJob) -> _EntryRun:
    place, state = ledger.run(job.name), ledger.state(job.name)
    problem = ledger.failure(job.name) or "" if state == "failed" else ""
    try:
        record = read_run(place)
    except CheckpointError:
        record = None
    return _EntryRun(job.name, job.seed, "finished" if state == "done" else state, record, problem)


def _grouped(records: Sequence[RunRecord]) -> list[Entry]:
    """Returns the entries of runs, those with the same recipe and data in one; each run counts once."""
    groups: dict[str, list[RunRecord]] = {}
    for record in {record.path.resolve(): record for record in records}.values():
        groups.setdefault(_identity(record), []).append(record)
    names = _names([group[0] for group in groups.values()], [len(group) for group in groups.values()])
    found = []
    for name, group in zip(names, groups.values(), strict=True):
        runs = tuple(_run(record) for record in sorted(group, key=lambda one: (_seed(one) or 0, str(one.path))))
        seeds = [one.seed for one in runs]
        for seed in seeds:
            if seeds.count(seed) > 1:
                same = [str(one.record.path) for one in runs if one.seed == seed and one.record is not None]
                raise CheckpointError(
                    f"{' and '.join(same)} have the same recipe and the same seed {seed}",
                    "each recipe with a seed once: the second says nothing new",
                    f"leave out all but one of them; stagewright why {same[0]} {same[1]} shows what differs",
                )
        found.append(Entry(name, runs))
    return found


def _run(record: RunRecord) -> _EntryRun:
    return _EntryRun(record.name, _seed(record), record.status, record, str(record.summary.get("error") or ""))


def _seed(record: RunRecord) -> int | None:
    return record.plan.get("recipe", {}).get("seed")


def _content(record: RunRecord) -> dict[str, Any]:
    recipe = {name: value for name, value in record.plan.get("recipe", {}).items() if name not in _COSMETIC}
    return {**recipe, "updates": record.plan.get("total_steps")}


def _identity(record: RunRecord) -> str:
    """Returns the same text for runs that differ by their seed, name and place alone; a run without a plan is alone."""
    if not record.plan:
        return f"path {record.path}"
    origin = None if record.weights is None else record.weights.origin.model_dump(mode="json")
    return json.dumps([_content(record), origin], sort_keys=True, default=str)


def _names(first: Sequence[RunRecord], sizes: Sequence[int]) -> list[str]:
    """Returns a name for each group: of a run alone its own, else what sets it apart from the first group, else its first
    run's."""
    names = []
    for record, size in zip(first, sizes, strict=True):
        name = record.name
        if size > 1:
            stem = name.rpartition("-s")[0] if name.rpartition("-s")[2].isdigit() else name
            name = stem or name
        names.append(name)
    for at, record in enumerate(first):
        if names.count(names[at]) > 1:
            fields = differing(_content(first[0]), _content(record)) if at else []
            own = ", ".join(f"{path} {value_text(value)}" for path, _, value in fields)
            names[at] = shortened(own, _LONGEST) if own else str(record.path)
    return names if len(set(names)) == len(names) else [str(record.path) for record in first]
