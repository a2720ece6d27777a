"""A run under way: the plan, its data, its state and its directory, and the deeds the loop calls by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stagewright import checkpoint
from stagewright.augment.mixing import draw_mix
from stagewright.clock import Clock
from stagewright.data.decode import Images
from stagewright.data.loader import Batch, BatchSpec, load_batches
from stagewright.data.manifest import Manifest
from stagewright.data.resident import Resident, reside
from stagewright.data.stream import eval_specs, recalibration_specs, sees_pictures_alike, train_specs, whole_specs
from stagewright.data.times import LoadTimes
from stagewright.data.verify import images_gone
from stagewright.errors import NotFinite
from stagewright.evaluate import Evaluation, evaluate
from stagewright.execution import Execution
from stagewright.features import MOST_BYTES, Cut, Features, Kept, find_cut
from stagewright.guard import Guard
from stagewright.machine import cores
from stagewright.memory import begin_peak, memory_in_use, peak_gb
from stagewright.model.average import WeightAverage, has_batch_norm, recalibrate
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.optim import reset_state
from stagewright.plan import Plan, StagePlan
from stagewright.readwatch import ReadWatch
from stagewright.recipe import Stop
from stagewright.record import Recorder, verdict
from stagewright.recovery import Recovery, masked, out_of_memory
from stagewright.rng import Stream, torch_seed
from stagewright.rundir import RunDir
from stagewright.runlogs import carried
from stagewright.state import TrainState, Watch
from stagewright.step import Numerics, train_step
from stagewright.stop import StopSignal
from stagewright.transfer import copied_ahead, on_device
from stagewright.wording import number_text

_SWA_RECALIBRATION = 4096
_SMALL_PIXELS = 100


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
    recovery: Recovery = field(init=False)
    features: Features | None = field(init=False, default=None)
    """Of the stage the model is in, where its head trains on features of a frozen body."""
    reading: ReadWatch = field(init=False)
    _entered: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.resident = reside(self.images, self.state.device) if self.execution.keep_decoded else None
        self.trained_before = self.state.seconds["train"]
        self.recovery = Recovery(Guard(self.plan))
        self.reading = ReadWatch.of(self.plan)

    @property
    def over(self) -> bool:
        """Whether no update is left: all are done, or the evaluations no longer improve."""
        patience = self.plan.recipe.stop.patience
        ended = patience is not None and self.state.watch.stale >= patience
        return ended or self.state.step >= self.plan.total_steps

    @cached_property
    def cuts(self) -> dict[int, Cut]:
        """By stage index: where the network is cut in stages that train a head on features of a frozen body."""
        found: dict[int, Cut] = {}
        for stage in self.plan.stages:
            if sees_pictures_alike(stage) and stage.num_steps * stage.batch_size >= stage.num_images:
                apply_trainable(self.state.model, stage.train)
                set_train_mode(self.state.model)
                blank = torch.zeros(2, 3, stage.image_size, stage.image_size, device=self.state.device)
                cut = find_cut(self.state.model, blank)
                pictures = max(stage.num_images, self.plan.dataset.num_val)
                if cut is not None and cut.bytes_each * pictures <= MOST_BYTES:
                    found[stage.index] = cut
        return found

    @property
    def unread(self) -> frozenset[int]:
        """Stages whose pictures the training need not read, since features stand in their place."""
        return frozenset(self.cuts)

    def batches(self, first_step: int) -> AbstractContextManager[Iterator[Batch]]:
        """The training batches from ``first_step`` to the end of the plan, to be used in a ``with``."""
        return self.loading(train_specs(self.plan, self.manifest, first_step, self.unread), self.load_times)

    def enter(self, stage: StagePlan) -> tuple[int, int]:
        """Puts the model into the stage's shape, alike whether arriving or resuming; (trainable, frozen) parameters."""
        cut = self.cuts.get(stage.index)
        counts = apply_trainable(self.state.model, stage.train)
        set_train_mode(self.state.model)
        if self._entered != stage.index:
            self._entered = stage.index
            begin_peak(self.state.device)
            self.features = None if cut is None else Features(self.state.model, cut)
            self.recorder.rate.on_features = cut is not None
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

    def update(self, stage: StagePlan, batch: Batch) -> bool:
        """Carries out the update that ``batch`` belongs to; False where memory did not suffice and it has gone back.

        ``Interrupted`` where a stop was asked for while features were computed.
        """
        record, seed = self.state.guard, self.plan.recipe.seed
        batch = self.filled(batch)
        self.recovery.arrive(self, batch.step)
        if (gone := self.reading.look(batch.step, len(batch.bad_rows), len(batch.rows))) is not None:
            self.recovery.before_data_was_gone(self, gone)
            raise images_gone(self.manifest, batch.bad_rows, *self.reading.said())
        hyper = stage.hyper(batch.step)
        hyper = replace(hyper, lr=hyper.lr * record.lr_factor(batch.step))
        micro_batch_size = self.micro_batch_size(stage)
        batch = self.masked(batch)
        if batch.step in record.left_out:
            stats = torch.full((3,), torch.nan, device=self.state.device)
        else:
            try:
                stats = train_step(
                    self.state,
                    batch,
                    hyper,
                    draw_mix(stage.mix, seed, batch.step, stage.batch_size, stage.image_size),
                    seed=torch_seed(seed, Stream.MODEL, batch.step, 0),
                    micro_batch_size=micro_batch_size,
                    numerics=self.numerics,
                    forward=self.forward,
                )
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                stats = None
            if stats is None:  # out here, where the error no longer holds on to what it was computed from
                self.recovery.shrink(self, batch.step, micro_batch_size)
                return False
        self.state.step = batch.step + 1
        self.recorder.step(batch.step, hyper, stats, batch.bad_rows)
        return True

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """The part of the network that takes a batch in the present stage."""
        return self.state.forward if self.features is None else self.features.head

    def micro_batch_size(self, stage: StagePlan) -> int:
        """Pictures that go through the network at a time: as planned, or fewer where those did not fit."""
        return min(stage.micro_batch_size, self.state.guard.micro_batch_size or stage.micro_batch_size)

    def masked(self, batch: Batch) -> Batch:
        """``batch`` on the device, without the pictures that the guard leaves out."""
        batch = on_device(batch, self.state.device)
        return masked(batch, self.state.guard.masked) if self.state.guard.masked else batch

    def filled(self, batch: Batch) -> Batch:
        """``batch`` with features in the place of its pictures, in a stage that trains on them."""
        return batch if self.features is None else self.kept_features("train").put_into(batch)

    def kept_features(self, split: str) -> Kept:
        """The features of a split in the present stage, computed at the first call; ``Interrupted`` where that is stopped."""
        features, stage = self.features, self.plan.stages[self._entered]
        assert features is not None
        if split not in features.kept:
            total = stage.num_images if split == "train" else len(self.manifest.rows(split))
            self.recorder.log.emit(
                "notice",
                self.state.step,
                text=f"stage {stage.name!r}: the body is frozen and sees pictures alike, so its features of {total:,} "
                f"{split} pictures are computed once",
            )
            specs = whole_specs(self.plan, self.manifest, stage, split)
            with self.loading(specs) as batches, self.numerics.autocast(self.state.device):
                features.kept[split] = features.compute(
                    batches,
                    lambda batch: self.numerics.network_input(on_device(batch, self.state.device)),
                    stop=lambda: self.stop.requested,
                    progress=lambda done: self.recorder.log.emit(
                        "computing", self.state.step, done=done, total=total, what=f"features of {split} pictures"
                    ),
                )
            bad = list(features.kept[split].bad.items())
            if self.reading.is_gone(len(bad), total):
                del features.kept[split]
                raise images_gone(self.manifest, bad, len(bad), total, f"the {split} part")
        return features.kept[split]

    def evaluate(self) -> None:
        """Evaluates raw and averaged weights on the validation split. ``Interrupted`` leaves everything as it was, and so does
        ``NotFinite``, where the last update has spoilt the weights."""
        self.recorder.fetch()
        state, stage = self.state, self.plan.stage_before(self.state.step)
        before, points = state.seconds["eval"], {"at the end of the epoch": memory_in_use(state.device)}
        self.enter(stage)  # a resumed run may owe the evaluation of a stage it is already past
        with self.clock.phase("eval"):
            results = {"raw": self.evaluate_split("val", stage, self.features)}
            if stage.average.kind != "none" and state.average.tensors:
                # Where the frozen body is the averaged one too, its features serve both.
                features = self.features if self._averages_the_head_alone() else None
                with state.average.swapped_in(state.model):
                    self.recalibrate(stage)
                    results[stage.average.kind] = self.evaluate_split("val", stage, features)
        state.latest = verdict(state.step, results)
        if state.best is None or state.latest.top1 > state.best.top1:
            state.best = state.latest
        state.evaluated_step = state.step
        state.watch = watched(self.plan.recipe.stop, state.watch, results[state.latest.weights])
        self.recorder.evaluated(state, stage, results, state.seconds["eval"] - before)
        points["after its evaluation"] = memory_in_use(state.device)
        self.recorder.log.emit("memory", state.step, clock={**self.peak(), "points": points, "told": True})
        if self.over and state.step < self.plan.total_steps:
            stop = self.plan.recipe.stop
            best = number_text(state.watch.best, ".4g")
            reason = f"{stop.metric} has not improved on {best} in {state.watch.stale} evaluations"
            self.recorder.log.emit("ended_early", state.step, reason=reason)

    def _averages_the_head_alone(self) -> bool:
        """Whether the averaged tensors that features hang on are those of the model, bit for bit."""
        model, features = self.state.model, self.features
        if features is None:
            return False
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        averaged = self.state.average.tensors
        return all(features.inside(name) or torch.equal(averaged[name], tensor) for name, tensor in own.items())

    def evaluate_split(self, split: str, stage: StagePlan, features: Features | None = None) -> Evaluation:
        """How the model's present weights answer a split, seen as evaluations in ``stage`` see it; ``features`` are those of
        its present body."""
        total = len(self.manifest.rows(split))
        kept = None if features is None else self.kept_features(split)
        while True:
            most = self.micro_batch_size(stage)
            specs = eval_specs(self.plan, self.manifest, stage, split, most=most, unread=kept is not None)
            try:
                with self.loading(specs) as batches:
                    result = evaluate(
                        self.state.model,
                        self.state.forward if features is None else features.head,
                        batches if kept is None else map(kept.put_into, batches),
                        self.numerics,
                        inputs=None if kept is None else self.numerics.network_input,
                        stop=lambda: self.stop.requested,
                        progress=lambda done: self.recorder.log.emit(
                            "evaluating", self.state.step, done=done, total=total
                        ),
                    )
                if self.reading.is_gone(result.unreadable, total):
                    rows = self.manifest.rows(split)[~result.predictions.readable]
                    bad = [(int(row), "unreadable") for row in rows]
                    raise images_gone(self.manifest, bad, len(bad), total, f"the {split} part")
                return result
            except NotFinite as error:
                names = [self.manifest.paths[row].as_py() for row in error.rows]
                raise NotFinite(error.rows, error.total, names) from None
            except RuntimeError as error:
                if not out_of_memory(error) or most == 1:
                    raise
            self.state.guard.micro_batch_size = most // 2
            text = f"out of memory in the evaluation with {most} pictures at a time: {most // 2} from here on"
            self.recorder.log.emit("notice", self.state.step, text=text)

    def recalibrate(self, stage: StagePlan) -> None:
        """Re-estimates the batch-norm statistics of the averaged weights in the model, where the recipe wants it."""
        count = recalibrated_images(stage, self.state.model)
        if not count:
            return
        with self.loading(recalibration_specs(self.plan, self.manifest, stage, count)) as batches:
            recalibrate(self.state.model, self._normalised(batches))

    def peak(self) -> dict[str, Any]:
        """The stage the model is in and the highest use of memory in it so far, for the ``clock`` of events."""
        stage = self.plan.stages[max(self._entered, 0)]
        return {"stage": stage.name, "peak_gb": round(peak_gb(self.state.device), 3)}

    def save(self) -> None:
        """Writes the whole state; what the files beside it say of it is on disk before."""
        with self.clock.phase("checkpoint"):
            self.run.check_held()
            self.recorder.sync()
            state = self.state
            said, logs = carried(self.recorder.seals(), self._env)
            # What a rollback may go back to, and the best weights as they were there, live as long as the state.
            horizon = self.recovery.guard.horizon(state.step)
            before = [step for step in checkpoint.steps(self.run.checkpoints) if step <= horizon]
            bests = [kept["best"]["step"] for kept in self.recovery.kept if kept["best"]]
            path = checkpoint.save(
                self.run.checkpoints,
                state.step,
                {**state.content(), "logs": logs},
                {"plan_digest": self.plan.digest, "logs": said},
                keep=self.plan.recipe.checkpoints.keep,
                protect=sorted({*before[-1:], *bests, *([state.best.step] if state.best else [])}),
            )
            checkpoint.point(self.run.checkpoints, "last", state.step)
            if state.best is not None and state.best.step == state.step:
                checkpoint.point(self.run.checkpoints, "best", state.step)
        self.recorder.log.emit("saved", state.step, checkpoint=path.name, clock=self.peak())

    @cached_property
    def _env(self) -> bytes:
        """env.json, which a checkpoint carries; it does not change while a process has the run."""
        return json.dumps(self.run.read_env(), indent=1, ensure_ascii=False).encode()

    @contextmanager
    def loading(self, specs: Iterable[BatchSpec], times: LoadTimes | None = None) -> Iterator[Iterator[Batch]]:
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
            stop=lambda: self.stop.requested,
        )
        with closing(batches):
            yield copied_ahead(batches, self.state.device) if pinned else batches

    def _normalised(self, batches: Iterator[Batch]) -> Iterator[Tensor]:
        for batch in batches:
            there = self.masked(batch)
            with self.numerics.autocast(self.state.device):
                yield self.numerics.network_input(there)[there.valid]

    def _name_slow(self, rows: NDArray[np.int64], seconds: float) -> None:
        """Says which pictures the loader has been waiting for."""
        names = [self.manifest.paths[int(row)].as_py() for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        text = f"waiting for {', '.join(names)}{more} for {seconds:.0f} s now: is the storage in order?"
        self.recorder.log.emit("notice", self.state.step, text=text)


def watched(stop: Stop, watch: Watch, result: Evaluation) -> Watch:
    """What early stopping has seen after one more evaluation, of which ``result`` is the better one."""
    rises = stop.metric == "val_top1"
    value, best = result.top1 if rises else result.loss, watch.best
    better = best is None or (value > best + stop.min_delta if rises else value < best - stop.min_delta)
    if better and math.isfinite(result.loss):
        return Watch(value, 0)
    return Watch(best, watch.stale + 1)


def recalibrated_images(stage: StagePlan, model: nn.Module) -> int:
    """How many training pictures re-estimate the batch-norm statistics of averaged weights before they are evaluated."""
    asked = stage.average.recalibrate
    count = asked if asked is not None else (_SWA_RECALIBRATION if stage.average.kind == "swa" else 0)
    return count if has_batch_norm(model) else 0


def auto_workers(manifest: Manifest) -> int:
    """A thread for each core, 8 at most; one where pictures are so small that threads wait for each other (docs/log.md)."""
    small = len(manifest) == 0 or float(np.median(manifest.widths)) < _SMALL_PIXELS
    return 1 if small else min(8, cores())
