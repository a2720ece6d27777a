"""Writes the logs of a run: steps.csv, metrics.csv, timing.csv, and events, progress included.

The numbers of each step stay on the device and are fetched together, at most about twice a second, so that logging does not
synchronise with the device at every step. steps.csv and metrics.csv are functions of (recipe, seed, data) and identical to the
byte however often a run was interrupted; values that depend on time are in timing.csv and in the ``clock`` of events.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stagewright.data.batches.batch import BadRow
from stagewright.data.manifest import Manifest
from stagewright.engine.evaluate import Evaluation
from stagewright.engine.state import TrainState
from stagewright.measures.metrics import Metric
from stagewright.measures.overview import metric_value
from stagewright.plan.plan import Hyper, Plan, StagePlan
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import BadImages, Evaluated, Notice, Progress, Result, Skipped
from stagewright.rundir.events import EventLog
from stagewright.rundir.step_table import StepLog
from stagewright.storage.append_file import Seal
from stagewright.system.memory import memory_gb
from stagewright.training.clock import Clock
from stagewright.training.guard import Row
from stagewright.training.progress import ProgressEstimator

if TYPE_CHECKING:  # it needs the library for object stores
    from stagewright.mirror.thread import Mirror

STEPS = ("step", "stage", "epoch", "lr", "momentum", "loss", "top1", "grad_norm")
TIMING = ("step", "train_seconds", "images_per_second", "memory_gb")
METRICS = (
    *("step", "stage", "stage_name", "epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"),
    *("average", "average_loss", "average_top1", "chosen", "best"),
)

METRIC = ("val_metric", "average_metric")
"""Further columns of metrics.csv where ``eval.metric`` is not top-1: its values."""

_FETCH_SECONDS = 0.5
_FETCH_STEPS = 500  # limits the memory for numbers that are not fetched yet, for very short steps
_TIMING_SECONDS = 2.0


@dataclass
class Recorder:
    """Writes the logs of a run, and cuts them back to the state on a resume or rollback."""

    run: RunDir
    plan: Plan
    manifest: Manifest
    log: EventLog
    clock: Clock
    device: torch.device
    pending: list[tuple[int, Hyper, Tensor, tuple[BadRow, ...]]] = field(default_factory=list)
    since_evaluation: list[tuple[float, float]] = field(default_factory=list)
    recent: list[Row] = field(default_factory=list)
    """The updates since the beginning of the guard's present window."""
    mirror: Mirror | None = None
    """The run's copy in an object store, about which the log tells."""
    later: list[str] = field(default_factory=list)
    """Sentences of other threads, which are logged with the next progress."""

    def __post_init__(self) -> None:
        self.steps = StepLog(self.run.steps, STEPS)
        self.timing = StepLog(self.run.timing, TIMING)
        self.metrics = StepLog(self.run.metrics, METRICS if self._metric is None else (*METRICS, *METRIC))
        self.estimator = ProgressEstimator()
        self._fetched_at = time.perf_counter()
        self._timed_at = self._fetched_at

    def resume(self, state: TrainState) -> None:
        """Removes rows after the state's step, and reads the rows since its last evaluation and window from steps.csv."""
        self.pending.clear()
        self.steps.truncate_after(state.step)
        self.timing.truncate_after(state.step)
        self.metrics.truncate_after(state.evaluated_step)
        rows = self.steps.rows()
        self.since_evaluation = [
            (loss, float(row["top1"]))
            for row in rows
            if int(row["step"]) > state.evaluated_step and math.isfinite(loss := float(row["loss"]))
        ]
        since = self._window_start(state.guard.checked)
        self.recent = [
            (int(row["step"]), float(row["loss"]), float(row["grad_norm"])) for row in rows if int(row["step"]) > since
        ]

    def step(self, step: int, hyper: Hyper, stats: Tensor, bad_rows: tuple[BadRow, ...]) -> None:
        """Records update ``step`` (from 0) without waiting for the device; fetches the numbers of all updates when due."""
        self.pending.append((step, hyper, stats, bad_rows))
        if len(self.pending) >= _FETCH_STEPS or time.perf_counter() - self._fetched_at > _FETCH_SECONDS:
            self.fetch()

    def fetch(self) -> None:
        """Copies the numbers of all pending updates to the host, and writes them to steps.csv."""
        if not self.pending:
            return
        numbers: list[list[float]] = torch.stack([stats for _, _, stats, _ in self.pending]).tolist()
        rows: list[list[Any]] = []
        for (step, hyper, _, bad_rows), (loss, share, grad_norm) in zip(self.pending, numbers, strict=True):
            stage = self.plan.stage_at(step)
            done, top1 = step + 1, 100.0 * share
            if self.plan.precision == "fp16" and not (math.isfinite(grad_norm) and math.isfinite(loss)):
                self.log.emit(Skipped(step=done, reason="fp16 overflow: update left out, scale lowered"))
            rows.append([done, stage.index, stage.epoch_at(done), hyper.lr, hyper.momentum, loss, top1, grad_norm])
            if math.isfinite(loss):  # NaN if the update was left out
                self.since_evaluation.append((loss, top1))
            self.recent.append((done, loss, grad_norm))
            if bad_rows:
                self._name_bad(done, bad_rows)
            self.estimator.add_step(stage)
        self.steps.append(rows)
        self.pending.clear()
        self._tell_progress(rows[-1])

    def write_evaluation(
        self, state: TrainState, stage: StagePlan, results: dict[str, Evaluation], eval_seconds: float
    ) -> Evaluated:
        """Writes the row and the event of an evaluation, which it returns; ``state.latest`` and ``state.best`` must be updated
        before."""
        assert state.latest is not None
        losses, accuracies = zip(*self.since_evaluation, strict=True) if self.since_evaluation else ((), ())
        train_loss = math.fsum(losses) / len(losses) if losses else None
        train_top1 = math.fsum(accuracies) / len(accuracies) if accuracies else None
        self.since_evaluation = []
        self.estimator.add_evaluation(stage, eval_seconds)
        average = next((kind for kind in results if kind != "raw"), "")
        values = {kind: self._value(evaluation) for kind, evaluation in results.items()}
        raw = results["raw"]
        best = state.best == state.latest
        epoch, lr = stage.epoch_at(state.step), stage.hyper(state.step - 1).lr
        averaged = (results[average].loss, results[average].top1) if average else (None, None)
        self.metrics.append(
            [
                [
                    *(state.step, stage.index, stage.name, epoch, lr, train_loss, train_top1),
                    *(raw.loss, raw.top1, raw.top5, average, *averaged, state.latest.weights, best),
                    *(() if self._metric is None else (values["raw"], values.get(average))),
                ]
            ]
        )
        train_seconds, memory = self._train_seconds(), round(memory_gb(self.device), 3)
        epoch_seconds, images_per_second = self.estimator.end_epoch(self.clock.read("train"))
        event = Evaluated(
            step=state.step,
            stage=stage.index,
            stage_name=stage.name,
            epoch=epoch,
            split="val",
            train_loss=train_loss,
            train_top1=train_top1,
            results={kind: _result(evaluation, values[kind]) for kind, evaluation in results.items()},
            chosen=state.latest.weights,
            best=best,
            metric=self._metric,
            train_seconds=train_seconds,
            memory_gb=memory,
            epoch_seconds=epoch_seconds,
            images_per_second=images_per_second,
            eval_seconds=round(eval_seconds, 3),
            eta_seconds=self.estimator.eta_seconds(self.plan, state.step),
        )
        self.log.emit(event)
        return event

    def sync(self) -> None:
        """Flushes all logs to disk; called before each checkpoint, which records their content."""
        self.fetch()
        for log in (self.steps, self.timing, self.metrics):
            log.sync()
        self.log.sync()

    def seals(self) -> dict[str, Seal]:
        """Returns length, hash and compressed content of each log by file name; call :meth:`sync` first."""
        logs = {log.path.name: log.seal() for log in (self.steps, self.metrics, self.timing)}
        return {**logs, self.run.events.name: self.log.seal()}

    def close(self) -> None:
        """Closes files and observers."""
        for log in (self.steps, self.timing, self.metrics):
            log.close()
        self.log.close()

    def drop_checked(self, step: int) -> None:
        """Drops updates before the guard's present window, after it has checked all updates up to ``step``."""
        since = self._window_start(step)
        self.recent = [row for row in self.recent if row[0] > since]

    def _window_start(self, step: int) -> int:
        window = self.plan.recipe.guard.window
        return step // window * window

    def _name_bad(self, done: int, bad_rows: tuple[BadRow, ...]) -> None:
        paths = [self.manifest.paths[row].as_py() for row, _ in bad_rows]
        reasons = [reason for _, reason in bad_rows]
        rows = tuple(row for row, _ in bad_rows)
        self.log.emit(BadImages(step=done, rows=rows, paths=tuple(paths), reasons=tuple(reasons)))

    def _tell_progress(self, row: list[Any]) -> None:
        now = time.perf_counter()
        train_seconds = self.clock.read("train")
        speed = self.estimator.update_speed(train_seconds)
        self._fetched_at = now
        memory = memory_gb(self.device)
        if now - self._timed_at > _TIMING_SECONDS:
            self._timed_at = now
            self.timing.append([[row[0], round(train_seconds, 3), round(speed, 2), round(memory, 3)]])
        self.log.emit(
            Progress(
                step=row[0],
                stage=row[1],
                loss=row[5],
                top1=row[6],
                lr=row[3],
                images_per_second=speed,
                memory_gb=memory,
                eta_seconds=self.estimator.eta_seconds(self.plan, row[0]),
                train_seconds=self._train_seconds(),
                mirror=None if self.mirror is None else self.mirror.progress(),
            )
        )
        self.write_notes(row[0])

    def write_notes(self, step: int) -> None:
        """Writes into the log what other threads have to say, that of the mirror among them."""
        said = [self.later.pop(0) for _ in range(len(self.later))]
        for text in [*said, *([] if self.mirror is None else self.mirror.notes())]:
            self.log.emit(Notice(step=step, text=text))

    @property
    def _metric(self) -> Metric | None:
        """``eval.metric`` where it is not top-1."""
        metric = self.plan.recipe.eval.metric
        return None if metric == "top1" else metric

    def _value(self, evaluation: Evaluation) -> float | None:
        value = math.nan if self._metric is None else metric_value(self._metric, evaluation.answers())
        return value if math.isfinite(value) else None

    def _train_seconds(self) -> float:
        return round(self.clock.read("train"), 3)


def _result(evaluation: Evaluation, metric: float | None) -> Result:
    return Result(
        loss=evaluation.loss,
        top1=evaluation.top1,
        top5=evaluation.top5,
        images=evaluation.images,
        unreadable=evaluation.unreadable,
        metric=metric,
    )
