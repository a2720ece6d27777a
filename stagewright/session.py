"""A run under way: the plan, its data, its state and its directory, and the deeds the loop calls by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright import checkpoint
from stagewright.augment.mixing import draw_mix
from stagewright.clock import Clock
from stagewright.data.decode import Images
from stagewright.data.loader import Batch, BatchSpec, load_batches
from stagewright.data.manifest import Manifest
from stagewright.data.resident import Resident, reside
from stagewright.data.stream import eval_specs, recalibration_specs, train_specs
from stagewright.data.times import LoadTimes
from stagewright.evaluate import Evaluation, evaluate
from stagewright.machine import cores
from stagewright.model.average import WeightAverage, has_batch_norm, recalibrate
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.optim import reset_state
from stagewright.plan import Plan, StagePlan
from stagewright.record import Recorder, verdict
from stagewright.rng import Stream, torch_seed
from stagewright.rundir import RunDir
from stagewright.state import TrainState
from stagewright.step import Numerics, train_step
from stagewright.stop import StopSignal

_SWA_RECALIBRATION = 4096
_SMALL_PIXELS = 100


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and how a plan happens to run: free to change between a stop and a resume, without effect on the result."""

    device: str = "auto"
    workers: int | None = None
    """Threads that read and decode; 0 does it between the steps; None goes by the cores and the pictures' size."""
    prefetch: int = 4
    """Batches read ahead."""
    keep_decoded: bool = True
    """Whether a set that is small enough stays decoded in memory after its first use (:mod:`stagewright.data.kept`)."""
    save_minutes: float = 10.0
    """Beside the plan's saves, one at least this often."""
    pages: bool = True
    """Whether plots and report.html are rewritten while the run lives."""
    quiet: bool = False


@dataclass
class Session:
    """What the loop holds. Every method is one deed; the loop alone decides when."""

    plan: Plan
    manifest: Manifest
    images: Images
    run: RunDir
    execution: Execution
    numerics: Numerics
    state: TrainState
    recorder: Recorder
    clock: Clock
    stop: StopSignal
    load_times: LoadTimes = field(default_factory=LoadTimes)
    """Of the training batches, since this process began."""
    resident: Resident | None = field(init=False)
    trained_before: float = field(init=False)
    """Seconds of training that processes before this one had spent."""

    def __post_init__(self) -> None:
        self.resident = reside(self.images, self.state.device) if self.execution.keep_decoded else None
        self.trained_before = self.state.seconds["train"]

    def batches(self, first_step: int) -> AbstractContextManager[Iterator[Batch]]:
        """The training batches from ``first_step`` to the end of the plan, to be used in a ``with``."""
        return self._loading(train_specs(self.plan, self.manifest, first_step), self.load_times)

    def enter(self, stage: StagePlan) -> tuple[int, int]:
        """Puts the model into the stage's shape, alike whether arriving or resuming; (trainable, frozen) parameters."""
        counts = apply_trainable(self.state.model, stage.train)
        set_train_mode(self.state.model)
        return counts

    def begin(self, stage: StagePlan, counts: tuple[int, int]) -> None:
        """Deeds done once, at the stage's first step: optimizer state at the seam, a fresh average, the log."""
        before = self.plan.stages[stage.index - 1] if stage.index else None
        if before is not None and stage.at_seam == "reset":
            reset_state(self.state.optimizer)
        if before is not None and before.average.kind != stage.average.kind:
            self.state.average = WeightAverage()
        trainable, frozen = counts
        self.recorder.log.emit(
            "stage", stage.first_step, stage=stage.index, name=stage.name, trainable=trainable, frozen=frozen
        )

    def update(self, stage: StagePlan, batch: Batch) -> None:
        """Carries out the update that ``batch`` belongs to."""
        hyper = stage.hyper(batch.step)
        seed = self.plan.recipe.seed
        stats = train_step(
            self.state,
            on_device(batch, self.state.device),
            hyper,
            draw_mix(stage.mix, seed, batch.step, stage.batch_size, stage.image_size),
            seed=torch_seed(seed, Stream.MODEL, batch.step, 0),
            micro_batch_size=stage.micro_batch_size,
            numerics=self.numerics,
        )
        self.state.step = batch.step + 1
        self.recorder.step(batch.step, hyper, stats, batch.bad_rows)

    def evaluate(self) -> None:
        """Evaluates raw and averaged weights on the validation split; ``Interrupted`` leaves everything as it was."""
        self.recorder.fetch()
        state, stage = self.state, self.plan.stage_before(self.state.step)
        before = state.seconds["eval"]
        self.enter(stage)  # a resumed run may owe the evaluation of a stage it is already past
        with self.clock.phase("eval"):
            results = {"raw": self.evaluate_split("val", stage)}
            if stage.average.kind != "none" and state.average.tensors:
                with state.average.swapped_in(state.model):
                    self.recalibrate(stage)
                    results[stage.average.kind] = self.evaluate_split("val", stage)
        state.latest = verdict(state.step, results)
        if state.best is None or state.latest.top1 > state.best.top1:
            state.best = state.latest
        state.evaluated_step = state.step
        self.recorder.evaluated(state, stage, results, state.seconds["eval"] - before)

    def evaluate_split(self, split: str, stage: StagePlan) -> Evaluation:
        """How the model's present weights answer a split, seen as evaluations in ``stage`` see it."""
        total = len(self.manifest.rows(split))
        with self._loading(eval_specs(self.plan, self.manifest, stage, split)) as batches:
            return evaluate(
                self.state.model,
                self.state.forward,
                batches,
                self.numerics,
                stop=lambda: self.stop.requested,
                progress=lambda done: self.recorder.log.emit("evaluating", self.state.step, done=done, total=total),
            )

    def recalibrate(self, stage: StagePlan) -> None:
        """Re-estimates the batch-norm statistics of the averaged weights in the model, where the recipe wants it."""
        asked = stage.average.recalibrate
        count = asked if asked is not None else (_SWA_RECALIBRATION if stage.average.kind == "swa" else 0)
        if not count or not has_batch_norm(self.state.model):
            return
        with self._loading(recalibration_specs(self.plan, self.manifest, stage, count)) as batches:
            recalibrate(self.state.model, self._normalised(batches))

    def save(self) -> None:
        """Writes the whole state; what the files beside it say of it is on disk before."""
        with self.clock.phase("checkpoint"):
            self.recorder.sync()
            state = self.state
            path = checkpoint.save(
                self.run.checkpoints,
                state.step,
                state.content(),
                {"plan_digest": self.plan.digest},
                keep=self.plan.recipe.checkpoints.keep,
                protect=[state.best.step] if state.best else [],
            )
            checkpoint.link(self.run.checkpoints, "last", state.step)
            if state.best is not None and state.best.step == state.step:
                checkpoint.link(self.run.checkpoints, "best", state.step)
        self.recorder.log.emit("saved", state.step, checkpoint=path.name)

    @contextmanager
    def _loading(self, specs: Iterable[BatchSpec], times: LoadTimes | None = None) -> Iterator[Iterator[Batch]]:
        """Batches on the host; on CUDA page-locked, and on their way to the device while the one before is worked on."""
        pinned = self.state.device.type == "cuda"
        workers = auto_workers(self.manifest) if self.execution.workers is None else self.execution.workers
        prefetch = self.execution.prefetch
        batches = load_batches(
            self.images,
            specs,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pinned,
            times=times,
            on_slow=self._name_slow,
            resident=self.resident,
        )
        with closing(batches):
            yield copied_ahead(batches, self.state.device) if pinned else batches

    def _normalised(self, batches: Iterator[Batch]) -> Iterator[Tensor]:
        device = self.state.device
        for batch in batches:
            there = on_device(batch, device)
            with self.numerics.autocast(device):
                yield self.numerics.network_input(there)[there.valid]

    def _name_slow(self, rows: NDArray[np.int64], seconds: float) -> None:
        """Says which pictures the loader has been waiting for."""
        names = [self.manifest.paths[int(row)].as_py() for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        text = f"waiting for {', '.join(names)}{more} for {seconds:.0f} s now: is the storage in order?"
        self.recorder.log.emit("notice", self.state.step, text=text)


def auto_workers(manifest: Manifest) -> int:
    """A thread for each core, 8 at most; one where pictures are so small that threads wait for each other (docs/log.md)."""
    small = len(manifest) == 0 or float(np.median(manifest.widths)) < _SMALL_PIXELS
    return 1 if small else min(8, cores())


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if batch.images.device == device or device.type == "cpu":
        return batch
    return replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        valid=batch.valid.to(device, non_blocking=True),
    )


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` on the CUDA ``device``, each copied on a stream of its own while the one before is worked on."""
    copies = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        arrived = torch.cuda.Event()
        with torch.cuda.stream(copies):
            moved = on_device(batch, device)
            arrived.record(copies)
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = moved, arrived
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Batch, arrived: torch.cuda.Event, device: torch.device) -> Batch:
    """``batch``, safe to use on the device's current stream, which keeps its memory until it is done with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(arrived)
    for tensor in (batch.images, batch.labels, batch.valid):
        tensor.record_stream(stream)
    return batch
