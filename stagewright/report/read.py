"""Reads a run directory into a RunRecord, whether the run is finished, active or was killed.

Some events are superseded: those that a killed process wrote after the checkpoint from which the run was resumed. Missing,
incomplete or damaged files are skipped and listed in ``problems``. Errors are raised only if the path is not a run, or if a
file exists but cannot be read now. This module only reads; :mod:`stagewright.report.results` computes results.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from stagewright.errors import CheckpointError, RangeTestError
from stagewright.plan import lr_curve
from stagewright.plan.lr_curve import RangeTest, Suggestions
from stagewright.rundir.event_kinds import Evaluated, Event, Finished, Resumed
from stagewright.rundir.events import LoggedEvent, read_events
from stagewright.storage.files import read_own, read_parsed, user_path
from stagewright.storage.lock import is_held
from stagewright.text import nearest

Columns = dict[str, NDArray[np.float64]]

STEP_COLUMNS = ("step", "stage", "epoch", "lr", "momentum", "loss", "top1", "grad_norm")
TIMING_COLUMNS = ("step", "train_seconds", "images_per_second", "memory_gb")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of the chosen weights for the N readable images of one split, in the manifest's order."""

    split: str
    labels: NDArray[np.int32]
    """(N,) true class of each image."""
    predicted: NDArray[np.int32]
    """(N,) predicted class of each image."""
    groups: NDArray[np.object_] | None
    """(N,) group names, with None for an image without a group; None if the data set has no groups."""
    unreadable: int
    """Number of images of the split that could not be read; they are not among the N."""

    @property
    def correct(self) -> int:
        return int(np.count_nonzero(self.labels == self.predicted))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class _DataSummary:
    """Facts about the data set, from the manifest."""

    source: str
    counts: NDArray[np.int64]
    """(3, classes): number of images of each split and class."""
    groups: tuple[frozenset[str], frozenset[str], frozenset[str]] | None
    """Names of the groups in each split; None if the data set has no groups."""
    excluded: tuple[tuple[str, str], ...]
    """(path, reason) of files that were excluded when the data set was scanned, from excluded.csv."""


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
    data: _DataSummary | None
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
        said = str(self.summary.get("status", "running"))
        return "interrupted" if said == "running" and self.held is False else said

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels; ``class 3`` etc. if the plan is missing."""
        known = [str(name) for name in self.plan.get("dataset", {}).get("classes", ())]
        largest = max((int(p.labels.max(initial=-1)) for p in self.predictions.values()), default=-1)
        largest = max([largest, *(int(p.predicted.max(initial=-1)) for p in self.predictions.values())])
        return known + [f"class {at}" for at in range(len(known), largest + 1)]

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


def read_run(path: str | Path) -> RunRecord:
    """Reads the run directory at ``path``; CheckpointError if it is not one."""
    folder = user_path(path)
    if not any((folder / name).is_file() for name in ("plan.json", "events.jsonl", "summary.json")):
        raise _not_a_run(folder)
    problems: list[str] = []
    return RunRecord(
        path=folder,
        summary=_json(folder / "summary.json", problems),
        plan=_json(folder / "plan.json", problems),
        env=_json(folder / "env.json", problems),
        log=_log(folder / "events.jsonl", problems),
        steps=_numbers(folder / "steps.csv", STEP_COLUMNS, problems),
        timing=_numbers(folder / "timing.csv", TIMING_COLUMNS, problems),
        predictions=dict(_all_predictions(folder / "evaluations", problems)),
        data=_data_summary(folder / "manifest.parquet", problems),
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


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = read_parsed(path, json.loads)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _log(path: Path, problems: list[str]) -> tuple[LoggedEvent, ...]:
    return tuple(read_events(path, left_out=problems.append)) if path.is_file() else ()


def _numbers(path: Path, columns: tuple[str, ...], problems: list[str]) -> Columns:
    """Reads ``columns`` of a CSV file as float64; an incomplete last line is skipped, a missing column is NaN."""
    empty = {name: np.empty(0) for name in columns}
    try:
        content = read_own(path)
    except FileNotFoundError:
        return empty
    content = content[: content.rfind(b"\n") + 1]
    header = content[: content.find(b"\n")].decode("utf-8", "replace").strip().split(",")
    present = [name for name in columns if name in header]
    if "step" not in present:
        return empty
    try:
        table = _parse(content, dict.fromkeys(present, pa.float64()))
        found = {name: _array(table.column(name)) for name in present}
    except pa.ArrowInvalid:
        problems.append(f"{path.name} has damaged lines; they are skipped")
        table = _parse(content, dict.fromkeys(present, pa.string()))
        found = {name: np.array([_number(text) for text in table.column(name).to_pylist()]) for name in present}
    missing = np.full(len(found["step"]), np.nan)
    # Lines whose step is not larger than an earlier one remain from an incomplete write; a resume removes them from the file.
    highest = np.maximum.accumulate(np.concatenate([[-np.inf], np.nan_to_num(found["step"], nan=-np.inf)]))
    rising = found["step"] > highest[:-1]
    return {name: found.get(name, missing)[rising] for name in columns}


def _parse(content: bytes, types: dict[str, pa.DataType]) -> pa.Table:
    return pacsv.read_csv(
        io.BytesIO(content),
        parse_options=pacsv.ParseOptions(invalid_row_handler=lambda row: "skip"),
        convert_options=pacsv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True),
    )


def _array(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.to_numpy().astype(np.float64)


def _number(text: str | None) -> float:
    try:
        return float(text) if text else np.nan
    except ValueError:
        return np.nan


def _all_predictions(folder: Path, problems: list[str]) -> Iterator[tuple[str, Predictions]]:
    for split in ("val", "test"):
        table = _parquet(folder / f"{split}.parquet", ("label", "predicted", "group", "readable"), problems)
        if table is None or not {"label", "predicted"} <= set(table.column_names):
            continue
        readable = np.ones(len(table), dtype=bool)
        if "readable" in table.column_names:
            readable = table.column("readable").to_numpy().astype(bool)
        groups = None
        if "group" in table.column_names and table.column("group").null_count < len(table):
            groups = table.column("group").cast(pa.string()).to_numpy()[readable]
        labels = table.column("label").to_numpy().astype(np.int32)[readable]
        predicted = table.column("predicted").to_numpy().astype(np.int32)[readable]
        yield split, Predictions(split, labels, predicted, groups, unreadable=int(np.count_nonzero(~readable)))


def _parquet(path: Path, columns: tuple[str, ...], problems: list[str]) -> pa.Table | None:
    try:
        return read_parsed(path, lambda data: _columns(data, columns))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError for some damage; the bytes are in memory
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return None


def _columns(data: bytes, columns: tuple[str, ...]) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read([name for name in columns if name in file.schema_arrow.names])


def _range_test(folder: Path, problems: list[str]) -> tuple[RangeTest, Suggestions, str] | None:
    content = _json(folder / f"{lr_curve.NAME}.json", problems)
    table = _numbers(folder / f"{lr_curve.NAME}.csv", ("step", "lr", "loss"), problems)
    if not content or not len(table["lr"]):
        return None
    try:
        return (
            RangeTest.from_table(table, int(content["planned"])),
            Suggestions.from_dict(content),
            str(content["caption"]),
        )
    except (KeyError, TypeError, ValueError, RangeTestError) as error:
        problems.append(f"{folder.name}/{lr_curve.NAME}.json cannot be used: {error}")
        return None


def _data_summary(path: Path, problems: list[str]) -> _DataSummary | None:
    table = _parquet(path, ("label", "split", "group"), problems)
    if table is None or not {"label", "split"} <= set(table.column_names):
        return None
    metadata = json.loads((table.schema.metadata or {}).get(b"stagewright.manifest", b"{}"))
    source = str(metadata.get("source", ""))
    splits = table.column("split")
    if pa.types.is_integer(splits.type):
        split_at = splits.to_numpy().astype(np.int64)
    else:
        split_at = np.array([SPLITS.index(name) for name in splits.to_pylist()], dtype=np.int64)
    labels = table.column("label").to_numpy().astype(np.int64)
    num_classes = int(labels.max(initial=-1)) + 1
    counts = np.bincount(split_at * num_classes + labels, minlength=3 * num_classes).reshape(3, num_classes)
    groups = None
    if "group" in table.column_names and table.column("group").null_count < len(table):
        column = table.column("group").cast(pa.string())
        named = (column.filter(pa.array(split_at == at)).drop_null().unique().to_pylist() for at in range(3))
        first, second, third = (frozenset(str(name) for name in names) for names in named)
        groups = (first, second, third)
    return _DataSummary(source, counts, groups, _excluded(path.with_name("excluded.csv")))


def _excluded(path: Path) -> tuple[tuple[str, str], ...]:
    """Returns (path, reason) of the files that were excluded when the data set was scanned."""
    try:
        text = read_own(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    return tuple(
        (row.get("path") or "", row.get("reason") or "") for row in csv.DictReader(io.StringIO(text, newline=""))
    )


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
