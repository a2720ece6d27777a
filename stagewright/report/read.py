"""Reads a run directory into a RunRecord, whether the run is finished, active or was killed.

Some events are superseded: those that a killed process wrote after the checkpoint from which the run was resumed. Missing,
incomplete or damaged files are skipped and listed in ``problems``. Errors are raised only if the path is not a run, or if a
file exists but cannot be read now. This module only reads; :mod:`stagewright.report.results` computes results.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagewright.errors import CheckpointError
from stagewright.measures.overview import Overview, overview
from stagewright.plan import lr_curve
from stagewright.plan.lr_curve import RangeTest, Suggestions
from stagewright.report.tables import (
    Columns,
    DataSummary,
    Predictions,
    read_data_summary,
    read_numbers,
    read_predictions,
)
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluated, Event, Finished, Resumed
from stagewright.rundir.events import LoggedEvent, read_events
from stagewright.rundir.held_test import is_closed_by
from stagewright.rundir.initial_weights import WeightsFields, read_weights
from stagewright.rundir.json_fields import EnvFields, FedFields, PlanFields, RangeTestFields, SummaryFields
from stagewright.storage.files import read_parsed, user_path
from stagewright.storage.json_text import Fields, fitting, parse_object
from stagewright.storage.lock import is_held
from stagewright.text import nearest

STEP_COLUMNS = ("step", "stage", "epoch", "lr", "momentum", "loss", "top1", "grad_norm")
TIMING_COLUMNS = ("step", "train_seconds", "images_per_second", "memory_gb")
_MOST_FED = 100
"""Largest number of stages of which the report shows what they were fed."""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a run directory's files. Missing files give empty values."""

    path: Path
    summary: dict[str, Any]
    plan: dict[str, Any]
    env: dict[str, Any]
    log: tuple[LoggedEvent, ...]
    """All events of events.jsonl, in the order written."""
    steps: Columns
    """STEP_COLUMNS, each (S,) float64, one entry per finished update, with increasing steps."""
    timing: Columns
    """TIMING_COLUMNS, each (T,) float64, with increasing steps."""
    predictions: dict[str, Predictions]
    """Predictions by split, ``val`` and ``test``."""
    data: DataSummary | None
    weights: WeightsFields | None = None
    """Where the initial weights come from; None in runs of older versions."""
    fed: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    """What the network of a stage was fed first, by the stage's index: the content of fed/INDEX.json."""
    range_test: tuple[RangeTest, Suggestions, str] | None = None
    """The curve of ``lr: auto``, its suggestions, and a description of the sweep."""
    problems: tuple[str, ...] = ()
    """Sentences about damaged files."""
    silent_seconds: float = 0.0
    """Seconds between the run's last write to its event or step files and the reading."""
    held: bool | None = None
    """Whether a process held the run's lock at the time of reading; None if that is unknown."""

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or self.path.resolve().name)

    @property
    def status(self) -> str:
        """``running``, ``interrupted`` (no process holds it, and the last one did not record how it ended), ``stopped``,
        ``finished`` or ``failed``; a run without a summary is running or interrupted."""
        return present_status(self.summary, self.held)

    @property
    def classes(self) -> list[str]:
        """Display names of the classes in the order of the labels; ``class 3`` etc. if the plan is missing."""
        shown = self.plan.get("recipe", {}).get("data", {}).get("names")
        shown = shown if isinstance(shown, dict) else {}
        known = [str(shown.get(name, name)) for name in self.plan.get("dataset", {}).get("classes", ())]
        largest = max((int(p.labels.max(initial=-1)) for p in self.predictions.values()), default=-1)
        largest = max([largest, *(int(p.predicted.max(initial=-1)) for p in self.predictions.values())])
        return known + [f"class {at}" for at in range(len(known), largest + 1)]

    @cached_property
    def measures(self) -> dict[str, Overview]:
        """The measures of the chosen weights by split, where the predictions have what they need."""
        found = {split: one.answers(len(self.classes)) for split, one in self.predictions.items()}
        return {split: overview(answers) for split, answers in found.items() if answers is not None and len(answers)}

    @property
    def num_closed(self) -> int:
        """Number of test images that the run leaves closed; 0 where it does not, or does not any more."""
        closed = is_closed_by(self.env, self.summary)
        return int(self.plan.get("dataset", {}).get("num_test") or 0) if closed else 0

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The plan's stages in order, as in plan.json."""
        return [stage for stage in self.plan.get("stages", ()) if {"first_step", "num_steps"} <= stage.keys()]

    @property
    def step(self) -> int:
        """The largest number of finished updates that any file reports."""
        written = int(self.steps["step"][-1]) if len(self.steps["step"]) else 0
        return max([written, int(self.summary.get("step") or 0), *(event.step for event in self.evaluations[-1:])])

    @property
    def total_steps(self) -> int:
        return int(self.plan.get("total_steps") or self.summary.get("total_steps") or self.step)

    @property
    def events(self) -> list[Event]:
        """The valid events, in the order written."""
        return [one.event for one in self.log if not one.superseded]

    @property
    def superseded(self) -> list[Event]:
        """Events that a killed process wrote after the checkpoint from which the run was resumed, in the order written."""
        return [one.event for one in self.log if one.superseded]

    @cached_property
    def evaluations(self) -> list[Evaluated]:
        """The valid evaluations by increasing step; if one was repeated, only the last."""
        by_step = {event.step: event for event in self.events if isinstance(event, Evaluated)}
        return [by_step[step] for step in sorted(by_step)]

    @property
    def finish(self) -> Finished | None:
        """The event of a finished run, or None."""
        return next((event for event in self.events if isinstance(event, Finished)), None)

    @property
    def resumes(self) -> list[Resumed]:
        """The event of every resume, in the order written."""
        return [one.event for one in self.log if isinstance(one.event, Resumed)]

    @cached_property
    def clocks(self) -> Columns:
        """Known training times: ``step`` and ``train_seconds``, both increasing from 0."""
        return _clocks(self.timing, self.evaluations)

    def seconds_at(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Returns the training seconds after ``steps`` (any shape) updates, linearly interpolated between known times; NaN after
        the last known time."""
        updates = np.asarray(steps, dtype=np.float64)
        known, seconds = self.clocks["step"], self.clocks["train_seconds"]
        return np.where(updates > known[-1], np.nan, np.interp(updates, known, seconds))


def present_status(summary: Mapping[str, Any], held: bool | None) -> str:
    """Returns :attr:`RunRecord.status` of a run with this ``summary``, whose lock a process holds or not."""
    said = str(summary.get("status", "running"))
    return "interrupted" if said == "running" and held is False else said


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """Reads the run directory at ``path``; CheckpointError if it is not one."""
    folder = user_path(path)
    if not any((folder / name).is_file() for name in ("plan.json", "events.jsonl", "summary.json")):
        raise _not_a_run(folder)
    problems: list[str] = []
    summary = read_fields(folder / "summary.json", SummaryFields, problems)
    env = read_fields(folder / "env.json", EnvFields, problems)
    predictions = dict(read_predictions(folder / "evaluations", problems))
    if is_closed_by(env, summary):
        predictions.pop("test", None)  # of weights before, or of an opening that has not written all of its results yet
    return RunRecord(
        path=folder,
        summary=summary,
        plan=read_fields(folder / "plan.json", PlanFields, problems),
        env=env,
        log=_log(folder / "events.jsonl", problems),
        steps=read_numbers(folder / "steps.csv", STEP_COLUMNS, problems),
        timing=read_numbers(folder / "timing.csv", TIMING_COLUMNS, problems),
        predictions=predictions,
        data=read_data_summary(folder / "manifest.parquet", problems),
        weights=read_weights(RunDir(folder), problems.append),
        fed=_fed(folder / "fed", problems),
        range_test=_range_test(folder / lr_curve.NAME, problems),
        problems=tuple(problems),
        silent_seconds=_silent_seconds(folder),
        held=is_held(folder),
    )


def _not_a_run(folder: Path) -> CheckpointError:
    if not folder.is_dir():
        around = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = nearest(folder.name, (other.name for other in around))
        return CheckpointError(
            f"{folder}: no such directory{near}",
            "the directory of a run, such as runs/NAME",
            "check the path; ls runs lists the runs of this folder",
        )
    runs = sorted(other.parent.name for other in folder.glob("*/plan.json"))
    remedy = f"name one of the runs in it: {', '.join(runs[:8])}" if runs else "check the path"
    return CheckpointError(
        f"{folder} is not the directory of a run", "a directory with plan.json and events.jsonl", remedy
    )


def _silent_seconds(folder: Path) -> float:
    written = [path.stat().st_mtime for name in ("events.jsonl", "steps.csv") if (path := folder / name).is_file()]
    return max(0.0, time.time() - max(written, default=time.time()))


def read_fields(path: Path, kind: type[Fields], problems: list[str]) -> dict[str, Any]:
    """Returns the fields of ``kind`` in a JSON file; {} if it is missing or damaged, and appends to ``problems``
    what is wrong."""
    try:
        content = read_parsed(path, parse_object)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    found, wrong = fitting(content, kind)
    problems += [f"{path.name}: a field is left out: {one}" for one in wrong]
    return found


def _fed(folder: Path, problems: list[str]) -> dict[int, dict[str, Any]]:
    numbers = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal())
    found = {number: read_fields(folder / f"{number}.json", FedFields, problems) for number in numbers[:_MOST_FED]}
    return {number: one for number, one in found.items() if one.keys() >= FedFields.model_fields.keys()}


def _log(path: Path, problems: list[str]) -> tuple[LoggedEvent, ...]:
    return tuple(read_events(path, left_out=problems.append)) if path.is_file() else ()


def _range_test(folder: Path, problems: list[str]) -> tuple[RangeTest, Suggestions, str] | None:
    path = folder / f"{lr_curve.NAME}.json"
    content, before = read_fields(path, RangeTestFields, problems), len(problems)
    table = read_numbers(folder / f"{lr_curve.NAME}.csv", ("step", "lr", "loss"), problems)
    if not content or not len(table["lr"]):
        return None
    lrs = table["lr"]
    whole = content.keys() >= RangeTestFields.model_fields.keys() and content["chosen"] in content["suggestions"]
    rising = bool(np.isfinite(lrs).all() and lrs[0] > 0 and (np.diff(lrs) > 0).all())
    if not whole or not rising or len(lrs) > content["planned"]:
        if len(problems) == before:
            problems.append(f"{folder.name} is left out: its table and {path.name} do not belong together")
        return None
    return (RangeTest.from_table(table, content["planned"]), Suggestions.from_dict(content), content["caption"])


def _clocks(timing: Columns, evaluations: Iterable[Evaluated]) -> Columns:
    """Returns known (step, train_seconds), both increasing from (0, 0), from timing.csv and the evaluations' clocks."""
    moments = [
        (float(event.step), float(event.train_seconds)) for event in evaluations if event.train_seconds is not None
    ]
    step = np.concatenate([[0.0], timing["step"], [moment[0] for moment in moments]])
    seconds = np.concatenate([[0.0], timing["train_seconds"], [moment[1] for moment in moments]])
    step, seconds = step[np.isfinite(seconds)], seconds[np.isfinite(seconds)]
    step, first = np.unique(step, return_index=True)
    return {"step": step, "train_seconds": np.maximum.accumulate(seconds[first])}
