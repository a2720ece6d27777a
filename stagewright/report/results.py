"""Computes the results of a run: scores with intervals, stages, confusions, groups, and sentences about them.

These are pure functions of a RunRecord, used by both the figures and the page. Shares are percentages, 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.measures.intervals import wilson
from stagewright.measures.metrics import TITLES, rises
from stagewright.report.read import RunRecord
from stagewright.report.tables import Predictions
from stagewright.rundir.event_kinds import AgainstHead, BadImages, Evaluated, Event, Result
from stagewright.rundir.event_text import against_head_sentence
from stagewright.text import count_text, done_text, percent_text

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test", "folds": "out-of-fold"}
WEIGHT_NAMES = {"raw": "raw", "ema": "EMA", "swa": "SWA"}


def weights_name(weights: str) -> str:
    """Returns a kind of weights for people: ``EMA``, or of a mixture ``0.75 EMA + 0.25 head``."""
    return " ".join(WEIGHT_NAMES.get(word, word) for word in weights.split(" "))


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy, ``correct`` of ``total`` images, with its 95 % Wilson interval, both in percent."""

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
    """The chosen weights after ``step`` updates (:class:`stagewright.rundir.event_kinds.ChosenWeights`), and the evaluation of
    that step."""

    step: int
    weights: str
    evaluation: Evaluated | None

    @property
    def result(self) -> Result | None:
        """Their validation result; None if there is no valid evaluation, as for weights that were made at the end."""
        return None if self.evaluation is None else self.evaluation.results.get(self.weights)


def chosen(record: RunRecord) -> Chosen | None:
    """Returns the chosen weights of a finished run, or the best so far of an unfinished one; None before the first
    evaluation."""
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


def stopped_text(record: RunRecord) -> str:
    """Returns how much of its plan a run had done that was finished before the end of it; empty for all others."""
    summary = record.summary
    if record.status != "finished" or summary.get("stopped_at") is None:
        return ""
    return f"stopped at {done_text(int(summary.get('step') or 0), record.total_steps)}"


def score(record: RunRecord, split: str) -> Score | None:
    """Returns the top-1 of the chosen weights from the predictions or, for ``val`` without predictions, from the best
    evaluation; None if there is neither."""
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
    """Returns the predictions for which mistakes are shown: those on the test split, which was not used to choose weights, else
    those on the validation split."""
    return record.predictions.get("test") or record.predictions.get("val")


def choice_sentence(record: RunRecord) -> str:
    """Returns sentences about which weights were chosen, and why. They are not escaped for HTML."""
    best = chosen(record)
    if best is None:
        return "Nothing has been evaluated yet."
    done = record.status == "finished"
    result = best.result
    own, finalists = weights_name(best.weights), finalist_rows(record)
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
            if other.top1 == result.top1 and other.metric == result.metric:
                words.append(" (if they are equal, the averaged weights are chosen)")
    elif (top1 := next((row.top1 for row in finalists if row.chosen), None)) is not None:
        words.append(f": {percent_text(top1)} of the validation pictures")
    words.append(". ")
    evaluations = record.evaluations
    stopped = stopped_text(record)
    words.append(f"The run was {stopped}. " if stopped else "")
    if done and not evaluations and "val" not in record.predictions:
        return f"{''.join(words)}They are the last ones: without validation pictures no others could be compared."
    candidates = sum(len(event.results) for event in evaluations)
    select = record.plan.get("recipe", {}).get("eval", {}).get("select", "best")
    if select == "last" and done:
        words.append(f"The recipe selects the last step, and of its weights those with {_better(record)}.")
    else:
        words.append(
            f"Candidates were {count_text(candidates, 'set')} of weights in {count_text(len(evaluations), 'evaluation')}"
            f"{', and those of the last checkpoint' if stopped else ''}"
        )
        words.append(f"; those with {_better(record)} are {'selected' if finalists else 'chosen'}.")
    if finalists:
        words.append(" At the end, the selected weights were compared with the head alone and with mixtures of both: ")
        words.append(
            "the lowest calibrated validation loss decides, if it is clearly lower than that of the selected weights."
        )
    return "".join(words)


def _better(record: RunRecord) -> str:
    """By what weights are chosen, such as ``the highest validation macro F1``."""
    metric = record.plan.get("recipe", {}).get("eval", {}).get("metric", "top1")
    return f"the {'highest' if rises(metric) else 'lowest'} validation {TITLES[metric]}"


@dataclass(frozen=True)
class _FinalistRow:
    """Weights that were compared at the end of the run, with their validation results; None where these are not finite."""

    weights: str
    step: int
    loss: float | None
    top1: float | None
    chosen: bool


def finalist_rows(record: RunRecord) -> list[_FinalistRow]:
    """Returns what was compared at the end of a finished run, from the head alone to the selected weights; empty if nothing
    was, as in runs of earlier versions."""
    said = record.summary.get("chosen") or {}
    if record.status != "finished":
        return []
    return [
        _FinalistRow(
            weights_name(one["weights"]), one["step"], one["loss"], one["top1"], one["weights"] == said.get("weights")
        )
        for one in record.summary.get("finalists") or []
    ]


def head_sentence(record: RunRecord) -> str:
    """Returns a sentence on how the chosen weights differ from the head alone; empty where they were not compared."""
    said, found = record.summary.get("chosen") or {}, record.summary.get("against_head") or {}
    names = AgainstHead.__dataclass_fields__
    read = {split: AgainstHead(**{name: one[name] for name in names}) for split, one in found.items()}
    sentence = against_head_sentence(str(said.get("weights")), read)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def _in_stage(record: RunRecord, step: int) -> str:
    name = stage_name_at(record, step)
    return f" (stage {name})" if name and len(record.stages) > 1 else ""


def stage_name_at(record: RunRecord, step: int) -> str:
    """Returns the name of the stage of the last of ``step`` finished updates; empty if the plan is missing."""
    names = [str(s.get("name", s.get("index", ""))) for s in record.stages if s["first_step"] < max(step, 1)]
    return names[-1] if names else ""


@dataclass(frozen=True)
class _StageRow:
    """A stage as planned, and its results."""

    plan: dict[str, Any]
    steps_done: int
    seconds: float | None
    """Training seconds of the valid updates; None before the first."""
    images_per_second: float | None
    best_top1: float | None
    """Highest validation top-1 of the stage's evaluations, each with the better of its weights."""
    best_weights: str
    memory_gb: float | None
    """Highest memory use, of the device or, on a CPU, of the process; None if it was not recorded."""


def stage_rows(record: RunRecord) -> list[_StageRow]:
    """Returns one row for each stage of the plan, in order."""
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
        rows.append(_StageRow(stage, done, seconds, speed or None, top1, weights, memory.get(stage.get("name"))))
    return rows


def _best_of(event: Evaluated) -> tuple[float, str]:
    result = event.results.get(event.chosen)
    return (result.top1 if result is not None else 0.0), event.chosen


def confusion(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """Returns the confusion matrix, int64 (classes, classes): rows are true classes, columns are predicted classes."""
    flat = predictions.labels.astype(np.int64) * num_classes + predictions.predicted
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class _Pair:
    """``count`` images of class ``true`` were predicted as ``predicted``; they are ``percent`` of class ``true``."""

    true: int
    predicted: int
    count: int
    percent: float


def confused_pairs(predictions: Predictions, limit: int) -> list[_Pair]:
    """Returns the most frequent mistakes, at most ``limit``, sorted by count, then by share of the class."""
    true, predicted, counts = _mistakes(predictions)
    totals = np.bincount(predictions.labels)
    percents = 100.0 * counts / totals[true]
    order = np.lexsort((predicted, true, -percents, -counts))[:limit]
    return [_Pair(int(true[at]), int(predicted[at]), int(counts[at]), float(percents[at])) for at in order]


def _mistakes(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the true class, the predicted class and the number of images of each kind of mistake. A matrix of 21,000 classes
    would take 3.5 GB."""
    wrong = predictions.labels != predictions.predicted
    pairs = np.stack([predictions.labels[wrong], predictions.predicted[wrong]], axis=1).astype(np.int64)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    return kinds[:, 0], kinds[:, 1], counts


@dataclass(frozen=True)
class ClassRow:
    """The results of one class."""

    label: int
    name: str
    train_count: int | None
    score: Score
    mistaken_for: int | None
    mistaken_count: int


def class_rows(record: RunRecord, predictions: Predictions) -> list[ClassRow]:
    """Returns one row for each class, in the order of the labels."""
    names = record.classes
    totals = np.bincount(predictions.labels, minlength=len(names))
    correct = np.bincount(predictions.labels[predictions.labels == predictions.predicted], minlength=len(names))
    worst = {pair.true: pair for pair in reversed(confused_pairs(predictions, len(predictions)))}
    train = record.data.counts[0] if record.data is not None else None
    rows = []
    for label, name in enumerate(names):
        known = None if train is None else int(train[label]) if label < len(train) else 0
        own, pair = Score(int(correct[label]), int(totals[label])), worst.get(label)
        rows.append(ClassRow(label, name, known, own, pair and pair.predicted, pair.count if pair else 0))
    return rows


def group_rows(predictions: Predictions) -> list[tuple[str, Score]]:
    """Returns (group, score), sorted by accuracy from the lowest, then by name; images without a group are ignored."""
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
    """Returns sentences about whether training and evaluation share groups, and what that means for the accuracy."""
    if record.data is None or record.data.groups is None:
        return (
            "The data set names no groups. If several pictures show the same site, animal, patient or scene, "
            "nearly equal pictures may be in both training and evaluation, and the accuracy on new ones will be lower."
        )
    train, val, test = record.data.groups
    sentences = []
    for split, scored in (("val", val), ("test", test)):
        shared = train & scored
        if not scored:
            continue
        if shared:
            sentences.append(
                f"{len(shared):,} of the {count_text(len(scored), 'group')} in {SPLIT_NAMES[split]} are also in "
                f"training: this accuracy says little about new groups."
            )
        else:
            sentences.append(
                f"Training and {SPLIT_NAMES[split]} share no group: the accuracy on the "
                f"{count_text(len(scored), f'{SPLIT_NAMES[split]} group')} is for groups that were not trained on."
            )
    return " ".join(sentences) or "Only training pictures have groups."


def disagreements(record: RunRecord) -> list[str]:
    """Returns sentences about accuracies that differ between two files by more than rounding (0.05 percentage points)."""
    said = record.summary.get("top1") or {}
    found = []
    for split, predictions in record.predictions.items():
        counted = Score(predictions.correct, len(predictions)).percent
        if record.status == "finished" and said.get(split) is not None and abs(said[split] - counted) > 0.05:
            found.append(
                f"summary.json reports {percent_text(said[split], 2)} top-1 for {SPLIT_NAMES[split]}, "
                f"but the predictions give {percent_text(counted, 2)}."
            )
    return found


def time_split(record: RunRecord) -> list[tuple[str, float]]:
    """Returns (activity, seconds) for training, evaluation, checkpoints and set-up, if the summary contains them."""
    parts = (("training", "train"), ("evaluation", "eval"), ("checkpoints", "checkpoint"), ("set-up", "setup"))
    seconds = ((name, record.summary.get(f"{key}_seconds")) for name, key in parts)
    return [(name, float(value)) for name, value in seconds if value is not None]


def budget_sentence(record: RunRecord) -> str | None:
    """Returns a sentence about the run's time budget and predicted time, or None if it had no budget."""
    budget = record.summary.get("budget") or record.env.get("budget")
    if not budget:
        return None
    text = f"The budget was {budget['asked']}; the run was planned to end after {budget['predicted_seconds']:,.1f} s"
    taken = budget.get("actual_seconds")
    return f"{text}; it took {taken:,.1f} s." if taken is not None else f"{text}."


def unread_files(events: Iterable[Event]) -> list[str]:
    """Returns the paths of images that became unreadable during training or evaluation, each once, in the order of events."""
    return list(dict.fromkeys(path for event in events if isinstance(event, BadImages) for path in event.paths))
