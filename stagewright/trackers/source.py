"""What a run's files allow to be sent: updates and evaluations that no rollback takes back, notes, settings, and the result.

A resumed run makes the updates after its checkpoint again, and a rollback others in their place. An update is **settled** once
the guard can no longer go back to before it: five of its windows later, or when the run has finished. A resume writes settled
updates again with the same bits, so that "sent up to step N" stays true whatever happens to the run.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stagewright.plan.plan import Plan
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import EndedEarly, Event, OpenedTest, Resumed, RolledBack, StageBegun
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import read_events
from stagewright.rundir.held_test import is_closed
from stagewright.rundir.step_table import read_rows
from stagewright.rundir.summary import Summary, read_summary

WINDOWS_BACK = 5
"""The guard goes back four of its windows at most, from a check that is up to one window after the newest update."""
_OVERFLOWS = 50
"""As many updates may be left out in fp16 before the guard calls it a fault."""

_STEP_TAGS = {
    "epoch": "epoch",
    "stage": "stage",
    "lr": "train/lr",
    "momentum": "train/momentum",
    "loss": "train/loss",
    "top1": "train/top1",
    "grad_norm": "train/grad_norm",
}
_EVALUATION_TAGS = {
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "val_metric": "val/metric",
    "average_loss": "val_average/loss",
    "average_top1": "val_average/top1",
    "average_metric": "val_average/metric",
    "train_loss": "since_evaluation/loss",
    "train_top1": "since_evaluation/top1",
}
TAGS = (*_STEP_TAGS.values(), *_EVALUATION_TAGS.values())


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one step: numbers of steps.csv and of metrics.csv, to the bit, by tag."""

    step: int
    """Number of finished updates."""
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened in the run, in words."""

    step: int
    kind: str
    """As in events.jsonl."""
    text: str
    time_ms: int
    """Milliseconds since 1970."""


class Changed(Exception):
    """Rows that were taken before are not in steps.csv any more, or differ there."""


def horizon(plan: Plan, last: int, *, over: bool) -> int:
    """Returns the last settled step of a run whose newest update is ``last``; ``over``: whether it has finished."""
    guard = plan.recipe.guard
    if over:
        return last
    if guard.rollbacks == 0:
        return last - 1  # the evaluation after the newest update may be under way
    overflows = -(-_OVERFLOWS // guard.window) if plan.precision == "fp16" else 0
    return max(0, (last // guard.window - WINDOWS_BACK - overflows) * guard.window)


class Source:
    """Reads the settled part of one run's files, once and in order. Changes nothing."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.plan = run.read_plan()
        self.env = run.read_env()
        self.taken = 0
        """The step up to which points were taken."""
        self._events: list[Event] = []
        self._events_at: tuple[int, int] | None = None
        self._rewind()

    def _rewind(self) -> None:
        self.taken, self._at, self._last_line = 0, 0, b""
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the lines of steps.csv that were taken."""
        return self._digest.hexdigest()

    def start_after(self, step: int, digest: str | None) -> bool:
        """Goes to the first row after ``step``; returns False if steps.csv does not yet reach it again.

        Changed if the rows up to it have another ``digest`` than those that were taken then; None compares nothing.
        """
        self._rewind()
        if step and self.last_step() < step:
            return False
        for _ in self._lines(step):
            pass
        self.taken = step
        if digest is not None and digest != self.digest:
            raise Changed
        return True

    def take(self, most: int, upto: int | None = None) -> list[Point]:
        """Returns the next settled points, at most about ``most``, or none; ``upto``: exactly those up to this step, once
        steps.csv has them. Changed if the rows taken last were replaced by others."""
        end = horizon(self.plan, self.last_step(), over=self.is_over()) if upto is None else upto
        if end <= self.taken or (upto is not None and self.last_step() < upto):
            return []
        # Read before the steps: an evaluation of a settled step is complete.
        evaluations = {step: values for step, values in self._evaluations() if self.taken < step <= end}
        place = (self._at, self._last_line, self._digest.copy())
        steps = {
            int(row["step"]): _numbers(row, _STEP_TAGS) for row in self._lines(end, most if upto is None else None)
        }
        last = max(steps, default=self.taken)
        if upto is not None and last < upto:  # cut back by a resume at this very moment
            self._at, self._last_line, self._digest = place
            return []
        self.taken = last
        return [
            Point(step, {**steps.get(step, {}), **evaluations.get(step, {})})
            for step in sorted({*steps, *(step for step in evaluations if step <= last)})
        ]

    def last_step(self) -> int:
        """Returns the step of the last complete row of steps.csv; 0 if there is none."""
        try:
            with open(self.run.steps, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        first = lines[-1].partition(b",")[0] if lines else b""
        return int(first) if first.isdigit() else 0

    def is_over(self) -> bool:
        """Returns whether the run has finished: nothing of it is taken back any more."""
        return self.summary().get("status") == "finished"

    def summary(self) -> Summary:
        """Returns the content of summary.json, {} where there is none."""
        return read_summary(self.run)

    def result(self) -> dict[str, float]:
        """Returns the numbers of a finished run by tag: scores of the model, times, size. Of a closed test part: nothing."""
        summary = self.summary()
        if summary.get("status") != "finished":
            return {}
        found: dict[str, float | None] = {}
        for name in ("top1", "top5", "loss"):
            found |= {f"final/{split}_{name}": value for split, value in dict(summary.get(name) or {}).items()}
        for split, measures in dict(summary.get("measures") or {}).items():
            found |= {f"final/{split}_{name}": dict(one).get("value") for name, one in measures.items()}  # type: ignore[misc]
        for name in ("train_seconds", "wall_seconds", "images_per_second", "parameters", "restarts"):
            found[f"final/{name}"] = summary.get(name)  # type: ignore[assignment]
        if (chosen := summary.get("chosen")) is not None:
            found["final/step"] = chosen["step"]
        closed = is_closed(self.run)
        return {
            tag: float(value)
            for tag, value in found.items()
            if isinstance(value, int | float) and not (closed and tag.startswith("final/test_"))
        }

    def settings(self) -> dict[str, str]:
        """Returns what was decided, flat: the recipe's fields, and what the plan made of data and stages."""
        plan = self.plan
        found = dict(_flat("", plan.recipe.model_dump(mode="json")))
        found |= {
            "plan.digest": plan.digest,
            "plan.total_steps": str(plan.total_steps),
            "plan.precision": plan.precision,
            "data.digest": plan.dataset.digest,
            "data.classes": str(len(plan.dataset.classes)),
        }
        return {name: found[name] for name in sorted(found)}

    def notes(self) -> list[Note]:
        """Returns what is worth an annotation, in the order of the log: stages, rollbacks, restarts, rejected checkpoints.

        The list only grows; what a resumed run writes again is in it once.
        """
        found, seen = list[Note](), set[tuple[str, int, str]]()
        for event in self._all_events():
            if not isinstance(event, StageBegun | RolledBack | Resumed | EndedEarly | OpenedTest):
                continue
            text = sentence(event) or event.kind
            key = (event.kind, event.step, text)
            if isinstance(event, Resumed) or key not in seen:
                seen.add(key)
                found.append(Note(event.step, event.kind, text, _milliseconds(event)))
        return found

    def time_at(self, step: int) -> int:
        """Returns about when ``step`` was made, in milliseconds since 1970, from the times of events and of steps.csv."""
        known = [(0, _parsed(self.env.get("created")))]
        known += [(event.step, _milliseconds(event)) for event in self._all_events()]
        if self.run.steps.is_file():
            known.append((self.last_step(), int(self.run.steps.stat().st_mtime * 1000)))
        known = [(at, time) for at, time in known if time > 0]
        before = max((one for one in known if one[0] <= step), default=None)
        after = min((one for one in known if one[0] > step), default=None)
        if before is None or after is None or after[1] <= before[1]:
            return (before or after or (0, 1))[1]
        share = (step - before[0]) / (after[0] - before[0])
        return int(before[1] + share * (after[1] - before[1]))

    def _all_events(self) -> list[Event]:
        """Returns the events of the log, which is read again only where it has changed: long runs have many of them."""
        try:
            about = self.run.events.stat()
        except FileNotFoundError:
            return []
        if self._events_at != (at := (about.st_size, about.st_mtime_ns)):
            self._events = [one.event for one in read_events(self.run.events, lambda _: None)]
            self._events_at = at
        return self._events

    def _lines(self, end: int, most: int | None = None) -> Iterator[dict[str, str]]:
        """Yields the rows of steps.csv from the present place up to step ``end``, at most ``most``, and moves the place."""
        if not self.run.steps.exists():
            return
        with open(self.run.steps, "rb") as file:
            header = file.readline()
            columns = next(csv.reader([header.decode(errors="replace").rstrip("\n")]), [])
            if self._at == 0:
                self._at = len(header)
            if self._last_line:
                file.seek(self._at - len(self._last_line))
                if (found := file.read(len(self._last_line))) != self._last_line:
                    if len(found) == len(self._last_line):
                        raise Changed
                    return  # cut back by a resume, which writes the rows again
            file.seek(self._at)
            taken = 0
            while (most is None or taken < most) and (line := file.readline()).endswith(b"\n"):
                cells = next(csv.reader([line.decode(errors="replace").rstrip("\n")]), [])
                if len(cells) == len(columns) and cells[0].isdigit():
                    if int(cells[0]) > end:
                        return
                    yield dict(zip(columns, cells, strict=True))
                self._at += len(line)
                self._last_line = line
                self._digest.update(line)
                taken += 1

    def _evaluations(self) -> Iterator[tuple[int, dict[str, float]]]:
        try:
            rows = read_rows(self.run.metrics)
        except FileNotFoundError:
            return
        for row in rows:
            if row["step"].isdigit():
                yield int(row["step"]), _numbers(row, _EVALUATION_TAGS)


def _numbers(row: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for column, tag in tags.items():
        try:
            found[tag] = float(row.get(column, ""))
        except ValueError:  # an empty cell
            continue
    return found


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), one)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield from _flat(f"{prefix}.{number}", one)
    elif value is not None and value != "":
        yield prefix, str(value)


def _milliseconds(event: Event) -> int:
    return _parsed(event.time)


def _parsed(text: object) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except ValueError:
        return 0


def study_of(run: Path) -> Path | None:
    """Returns the folder of the study or of the folds that the run in ``run`` belongs to, or None."""
    for folder in run.resolve().parents[:2]:
        if (folder / "study.json").is_file() or (folder / "folds.json").is_file():
            return folder
    return None
