"""What a run's files amount to: scores with intervals, stages planned and done, confusions, groups, and plain sentences.

Pure functions of a RunRecord; the figures and the page draw from the same ones. Shares are percentages, 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.report.intervals import wilson
from stagewright.report.read import Predictions, RunRecord
from stagewright.rundir.event_kinds import BadImages, Evaluated, Event, Result
from stagewright.text import count_text, percent_text

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
WEIGHT_NAMES = {"raw": "raw", "ema": "EMA", "swa": "SWA"}


@dataclass(frozen=True)
class Score:
    """``correct`` of ``total`` pictures, in percent with its 95 % Wilson interval."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        return 100.0 * self.correct / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        low, high = wilson(self.correct, self.total)
        return 100.0 * low, 100.0 * high


@dataclass(frozen=True)
class Chosen:
    """The weights that count: ``raw``, ``ema`` or ``swa`` after ``step`` updates, and the evaluation that showed them."""

    step: int
    weights: str
    evaluation: Evaluated | None

    @property
    def result(self) -> Result | None:
        """Their validation result; None where no evaluation stands."""
        return None if self.evaluation is None else self.evaluation.results.get(self.weights)


def chosen(record: RunRecord) -> Chosen | None:
    """The chosen weights of a finished run, the best so far of another; None before the first evaluation."""
    by_step = {event.step: event for event in record.evaluations}
    said, finish = record.summary.get("chosen"), record.finish
    if record.status == "finished" and isinstance(said, dict) and said.get("step") is not None:
        step = int(said["step"])
        return Chosen(step, str(said.get("weights", "raw")), by_step.get(step))
    if record.status == "finished" and not said and finish is not None:
        return Chosen(finish.chosen.step, finish.chosen.weights, by_step.get(finish.chosen.step))
    for event in reversed(record.evaluations):
        if event.best:
            return Chosen(event.step, event.chosen, event)
    return None


def score(record: RunRecord, split: str) -> Score | None:
    """Top-1 of the chosen weights: counted from the predictions, else, for ``val``, from the best evaluation."""
    if split in record.predictions:
        predictions = record.predictions[split]
        return Score(predictions.correct, len(predictions))
    best = chosen(record)
    if split != "val" or best is None or best.result is None or not best.result.images:
        return None
    if not math.isfinite(best.result.top1):
        return None
    return Score(round(best.result.top1 / 100 * best.result.images), best.result.images)


def shown_split(record: RunRecord) -> Predictions | None:
    """The predictions that confusions and classes are shown for: test, which chose nothing, before validation."""
    return record.predictions.get("test") or record.predictions.get("val")


def choice_sentence(record: RunRecord) -> str:
    """Which weights were chosen out of which candidates, and why, in plain words; escaped by whoever prints it."""
    best = chosen(record)
    if best is None:
        return "Nothing has been evaluated yet."
    done = record.status == "finished"
    result = best.result
    own = WEIGHT_NAMES.get(best.weights, best.weights)
    others = [] if best.evaluation is None else [kind for kind in best.evaluation.results if kind != best.weights]
    verb = "were chosen" if done else "are the best so far"
    words = [
        f"The {own} weights after step {best.step:,} of {record.total_steps:,}{_in_stage(record, best.step)} {verb}"
    ]
    if result:
        words.append(f": {percent_text(result.top1)} of the validation pictures")
        if others and best.evaluation is not None:
            other = best.evaluation.results[others[0]]
            words.append(f", against {percent_text(other.top1)} with the {WEIGHT_NAMES.get(others[0], others[0])} ")
            words.append("weights of the same step")
            if other.top1 == result.top1:
                words.append(" (at a tie the averaged ones are taken)")
    words.append(". ")
    evaluations = record.evaluations
    candidates = sum(len(event.results) for event in evaluations)
    select = record.plan.get("recipe", {}).get("eval", {}).get("select", "best")
    if select == "last" and done:
        words.append("The recipe takes the last step, and there the weights that do better on the validation pictures.")
    else:
        words.append(
            f"Candidates were {count_text(candidates, 'set')} of weights in {count_text(len(evaluations), 'evaluation')}"
        )
        words.append("; the highest validation top-1 decides.")
    return "".join(words)


def _in_stage(record: RunRecord, step: int) -> str:
    name = stage_name_at(record, step)
    return f" (stage {name})" if name and len(record.stages) > 1 else ""


def stage_name_at(record: RunRecord, step: int) -> str:
    """Name of the stage of the last of ``step`` finished updates; empty where the plan is missing."""
    names = [str(s.get("name", s.get("index", ""))) for s in record.stages if s["first_step"] < max(step, 1)]
    return names[-1] if names else ""


@dataclass(frozen=True)
class StageRow:
    """A stage as planned and as it went."""

    plan: dict[str, Any]
    steps_done: int
    seconds: float | None
    """Training seconds of the updates that stand; None before the first."""
    images_per_second: float | None
    best_top1: float | None
    """Highest validation top-1 of the stage's evaluations, of the weights chosen there."""
    best_weights: str
    memory_gb: float | None
    """Highest use of memory, of the device or, on a CPU, of the process; None where that was not written down."""


def stage_rows(record: RunRecord) -> list[StageRow]:
    """One row for each stage of the plan, in order."""
    last_known = float(record.clocks["step"][-1])
    rows = []
    memory = record.summary.get("memory_gb") or {}
    for at, stage in enumerate(record.stages):
        first, count = int(stage["first_step"]), int(stage["num_steps"])
        done = min(max(record.step - first, 0), count)
        timed = min(float(first + done), last_known)
        seconds = None
        if timed > first:
            begin, end = record.seconds_at([first, timed])
            seconds = float(end - begin)
        speed = (timed - first) * stage.get("batch_size", 0) / seconds if seconds else None
        scored = [_best_of(event) for event in record.evaluations if event.stage == stage.get("index", at)]
        top1, weights = max(scored, default=(None, ""))
        rows.append(StageRow(stage, done, seconds, speed or None, top1, weights, memory.get(stage.get("name"))))
    return rows


def _best_of(event: Evaluated) -> tuple[float, str]:
    result = event.results.get(event.chosen)
    return (result.top1 if result is not None else 0.0), event.chosen


def confusion(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts: row is the true class, column what it was taken for."""
    flat = predictions.labels.astype(np.int64) * num_classes + predictions.predicted
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Pair:
    """``count`` pictures of class ``true`` were taken for ``predicted``: ``percent`` of that class."""

    true: int
    predicted: int
    count: int
    percent: float


def confused_pairs(matrix: NDArray[np.int64], limit: int) -> list[Pair]:
    """The most frequent mistakes, at most ``limit``, by count, then by share of the class."""
    wrong = matrix - np.diag(np.diag(matrix))
    totals = matrix.sum(axis=1)
    true, predicted = np.nonzero(wrong)
    pairs = [
        Pair(int(t), int(p), int(wrong[t, p]), float(100.0 * wrong[t, p] / totals[t]))
        for t, p in zip(true, predicted, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.percent, pair.true, pair.predicted))[:limit]


@dataclass(frozen=True)
class ClassRow:
    """How one class fared."""

    label: int
    name: str
    train_count: int | None
    score: Score
    mistaken_for: int | None
    mistaken_count: int


def class_rows(record: RunRecord, predictions: Predictions) -> list[ClassRow]:
    """One row for each class, in order of the labels."""
    names = record.classes
    matrix = confusion(predictions, len(names))
    train = record.pictures.counts[0] if record.pictures is not None else None
    rows = []
    for label, name in enumerate(names):
        row = matrix[label]
        wrong = row.copy()
        wrong[label] = 0
        worst = int(wrong.argmax())
        known = None if train is None else int(train[label]) if label < len(train) else 0
        own = Score(int(row[label]), int(row.sum()))
        rows.append(ClassRow(label, name, known, own, worst if wrong[worst] else None, int(wrong[worst])))
    return rows


def group_rows(predictions: Predictions) -> list[tuple[str, Score]]:
    """(group, score) by rising share, then name; pictures without a group are left out."""
    if predictions.groups is None:
        return []
    correct: dict[str, list[int]] = {}
    for name, right in zip(predictions.groups, predictions.labels == predictions.predicted, strict=True):
        if name is not None:
            counts = correct.setdefault(str(name), [0, 0])
            counts[0] += int(right)
            counts[1] += 1
    rows = [(name, Score(right, total)) for name, (right, total) in correct.items()]
    return sorted(rows, key=lambda row: (row[1].percent, row[0]))


def group_sentence(record: RunRecord) -> str:
    """Whether groups stand in train and in what is scored, and what that means for the figure."""
    if record.pictures is None or record.pictures.groups is None:
        return (
            "The data set names no groups. If several pictures show the same site, animal, patient or scene, "
            "near-copies may stand on both sides of the split, and the accuracy on new ones will be lower."
        )
    train, val, test = record.pictures.groups
    sentences = []
    for split, scored in (("val", val), ("test", test)):
        shared = train & scored
        if not scored:
            continue
        if shared:
            sentences.append(
                f"{len(shared):,} of the {count_text(len(scored), 'group')} in {SPLIT_NAMES[split]} also stand in "
                f"training: this accuracy says little about new groups."
            )
        else:
            sentences.append(
                f"Training and {SPLIT_NAMES[split]} share no group: the accuracy on the "
                f"{count_text(len(scored), f'{SPLIT_NAMES[split]} group')} is one on groups never trained on."
            )
    return " ".join(sentences) or "Only training pictures have groups."


def disagreements(record: RunRecord) -> list[str]:
    """Sentences on numbers that two files state differently by more than rounding (0.05 points)."""
    said = record.summary.get("top1") or {}
    found = []
    for split, predictions in record.predictions.items():
        counted = Score(predictions.correct, len(predictions)).percent
        if record.status == "finished" and said.get(split) is not None and abs(said[split] - counted) > 0.05:
            found.append(
                f"summary.json says {percent_text(said[split], 2)} top-1 for {SPLIT_NAMES[split]}, "
                f"the predictions count {percent_text(counted, 2)}."
            )
    return found


def time_split(record: RunRecord) -> list[tuple[str, float]]:
    """(what, seconds) for training, evaluation, checkpoints and set-up, as far as the summary tells."""
    parts = (("training", "train"), ("evaluation", "eval"), ("checkpoints", "checkpoint"), ("set-up", "setup"))
    seconds = ((name, record.summary.get(f"{key}_seconds")) for name, key in parts)
    return [(name, float(value)) for name, value in seconds if value is not None]


def budget_sentence(record: RunRecord) -> str | None:
    """What the run's time was bounded by, and what was expected of it; None where it had no budget."""
    budget = record.summary.get("budget") or record.env.get("budget")
    if not budget:
        return None
    text = f"The budget was {budget['asked']}, its length chosen to end after {budget['predicted_seconds']:,.1f} s"
    taken = budget.get("actual_seconds")
    return f"{text}; it took {taken:,.1f} s." if taken is not None else f"{text}."


def unread_files(events: Iterable[Event]) -> list[str]:
    """Paths of pictures that broke during training or evaluation, once each, in order of appearance."""
    return list(dict.fromkeys(path for event in events if isinstance(event, BadImages) for path in event.paths))
