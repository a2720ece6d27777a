"""The session of a run in this process: plan, data, state and directory; carries out updates and saves the state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stagewright.data.batches.batch import Batch, masked
from stagewright.data.batches.specs import train_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.remote.cache import cache_of
from stagewright.data.remote.needs import Needs
from stagewright.engine.folding import folds_evaluations
from stagewright.engine.lanes import Lanes, sums_in_order
from stagewright.engine.numerics import Numerics
from stagewright.engine.optim import reset_state
from stagewright.engine.state import TrainState
from stagewright.engine.step import update
from stagewright.errors import ModelError, StorageError
from stagewright.model.average import WeightAverage
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.execution import Execution
from stagewright.plan.lanes import num_lanes
from stagewright.plan.plan import Hyper, Plan, StagePlan
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Evaluated, Notice, Saved, StageBegun
from stagewright.rundir.logs import pack_logs
from stagewright.system.memory import out_of_memory, peak_gb, reset_peak
from stagewright.system.notices import slow_save
from stagewright.system.signals import StopSignal
from stagewright.training.batches import Batches
from stagewright.training.clock import Clock
from stagewright.training.early_stopping import reason_to_end
from stagewright.training.feature_cache import FeatureCache
from stagewright.training.fed_record import record_fed
from stagewright.training.optimum import OptimumUpdate
from stagewright.training.ranks import Ranks
from stagewright.training.read_watch import ReadWatch
from stagewright.training.recorder import Recorder
from stagewright.training.streaming import host_ranks, told_ahead

if TYPE_CHECKING:  # it needs the library for object stores
    from stagewright.mirror.thread import Mirror

Decide = Callable[[Evaluated], object]
"""Called with the event of each evaluation, once the state is saved; False pauses the run: the process ends, a resume goes
on."""


@dataclass
class Session:
    """The objects of a run, and the actions that the training loop calls."""

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
    ranks: Ranks
    """The processes that carry out the run together."""
    decide: Decide | None = None
    mirror: Mirror | None = None
    """The run's copy in an object store; None without one, and in all processes but the first."""
    is_paused: bool = field(init=False, default=False)
    """Whether ``decide`` has said no."""
    notice_seconds: float = field(init=False, default=math.inf)
    """How long before this machine is taken away that is known; infinity where nobody says so."""
    batches: Batches = field(init=False)
    features: FeatureCache = field(init=False)
    reading: ReadWatch = field(init=False)
    trained_before: float = field(init=False)
    """Training seconds of earlier processes of this run."""
    _entered: int = field(init=False, default=-1)
    _begins: bool = field(init=False, default=True)
    _lanes: Lanes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.batches = Batches(self.images, self.manifest, self.execution, self.state, self.recorder, self.ranks)
        self.trained_before = self.state.seconds["train"]
        self.reading = ReadWatch.for_plan(self.plan)
        self.features = FeatureCache(self.plan, self.state, self.numerics, self.batches, self.recorder, self.reading)

    @property
    def is_finished(self) -> bool:
        """Whether no update is left: all are done, or early stopping has ended the run."""
        return self.state.step >= self.plan.total_steps or reason_to_end(self.plan, self.state) is not None

    def train_batches(self, first_step: int) -> AbstractContextManager[Iterator[Batch]]:
        """Returns a context that yields the training batches from ``first_step`` to the end of the plan."""
        specs = train_specs(self.plan, self.manifest, first_step, self.features.stored)
        if (cache := cache_of(self.images)) is not None:
            needs = Needs(
                self.plan, self.manifest, cache.table, host_ranks(self.ranks.world), frozenset(self.features.stored)
            )
            specs = told_ahead(cache, needs, specs, self.execution.prefetch)
        return self.batches.load(self.ranks.own_part(self.plan, specs, self.num_lanes), self.batches.train_times)

    def enter(self, stage: StagePlan) -> tuple[int, int]:
        """Sets trainable parameters and training modes of ``stage``, at its start as well as on a resume within it.

        Returns the numbers of trainable and frozen parameters.
        """
        cached = stage.index in self.features.cuts
        counts = apply_trainable(self.state.model, stage.train)
        set_train_mode(self.state.model, stage.norm)
        if self._entered != stage.index:
            self._entered = stage.index
            self._begins = True
            self._close_lanes()  # they hold what trains
            reset_peak(self.state.device)
            self.features.enter(stage)
            self.recorder.estimator.on_features = cached
            if self.execution.pages:
                # A full disk must not end the run here: the next checkpoint says so.
                with self.clock.phase("checkpoint"), suppress(StorageError):
                    record_fed(self.run, self.plan, self.manifest, self.images, stage)
        return counts

    def begin(self, stage: StagePlan, counts: tuple[int, int]) -> None:
        """Called once, at the stage's first step: resets the optimizer's state if requested, starts a new average if its kind
        changes, and writes the event."""
        before = self.plan.stages[stage.index - 1] if stage.index else None
        if before is not None and stage.on_enter == "reset_optimizer":
            reset_state(self.state.optimizer)
        if before is not None and before.average.kind != stage.average.kind:
            self.state.average = WeightAverage()
        trainable, frozen = counts
        self.recorder.log.emit(
            StageBegun(step=stage.first_step, stage=stage.index, name=stage.name, trainable=trainable, frozen=frozen)
        )

    def with_cached_features(self, batch: Batch) -> Batch:
        """Returns ``batch`` with features instead of images if the stage trains on cached features, else ``batch``.

        Raises ``Interrupted`` if a stop was requested while they were computed.
        """
        return self.features.replace_images(batch, self.plan.stages[self._entered], self.manifest)

    def update(self, stage: StagePlan, batch: Batch) -> bool:
        """Carries out the update of ``batch``, a result of :meth:`with_cached_features`; returns False if memory was too small.

        In that case the state may be partly updated, and the caller must restore an earlier one.
        """
        guard = self.state.guard
        hyper = stage.hyper(batch.step)
        hyper = replace(hyper, lr=hyper.lr * guard.lr_factor(batch.step))
        batch = self.masked(batch)
        if batch.step in guard.left_out:
            stats = torch.full((3,), torch.nan, device=self.state.device)
        else:
            carry_out = {"updates": self._gradient_update, "optimum": self._optimum_update}[stage.fit]
            begins, self._begins = self._begins, False
            try:
                with (
                    self.ranks.busy() if begins else nullcontext()
                ):  # the first update of a stage may compile for minutes
                    stats = carry_out(stage, batch, hyper)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.ranks.several:  # the others cannot go back with this process
                    raise self._memory_error(stage) from error
                stats = None
            if stats is None:  # returns outside of the handler, where the error no longer keeps tensors alive
                return False
        self.state.step = batch.step + 1
        self.recorder.step(batch.step, hyper, stats, batch.bad_rows)
        return True

    def _close_lanes(self) -> None:
        if self._lanes is not None:
            self._lanes.close()
            self._lanes = None

    def _memory_error(self, stage: StagePlan) -> ModelError:
        world, lanes = self.ranks.world, self.num_lanes(stage)
        return ModelError(
            f"rank {world.rank} ({world.host}): {world.device} has too little memory for lanes of {stage.lane_size} pictures of "
            f"{stage.image_size} x {stage.image_size} pixels",
            "lanes that fit into the memory of every process",
            f"fork with more lanes: stagewright resume {self.run.root} --set spread={min(2 * lanes, stage.batch_size)}",
        )

    def _gradient_update(self, stage: StagePlan, batch: Batch, hyper: Hyper) -> Tensor:
        return update(
            self.state,
            self.plan,
            stage,
            batch,
            self.numerics,
            hyper=hyper,
            lanes=self.lanes(stage),
            forward=self.forward,
        )

    def _optimum_update(self, stage: StagePlan, batch: Batch, hyper: Hyper) -> Tensor:
        one = OptimumUpdate(self.plan, self.state, self.numerics, self.features, self.recorder, self.ranks)
        return one.update(stage, batch, hyper, self.manifest)

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The convolutions and norms that are folded in evaluations (:mod:`stagewright.model.fold`); empty: none."""
        return self.features.pairs if folds_evaluations(self.plan, self.state) else {}

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """The part of the network that is applied to a batch in the present stage: all of it, or the upper part on features."""
        return self.features.forward

    def micro_batch_size(self, stage: StagePlan) -> int:
        """Returns how many images are evaluated at once: as planned, or fewer after running out of memory."""
        return min(stage.micro_batch_size, self.state.guard.micro_batch_size or stage.micro_batch_size)

    def num_lanes(self, stage: StagePlan) -> int:
        """Returns the number of lanes of an update: as planned, or more after running out of memory."""
        return num_lanes(stage.batch_size, stage.lanes, self.micro_batch_size(stage))

    def lanes(self, stage: StagePlan) -> Lanes | int:
        """Returns the lanes of the present ``stage``, or their number where there is only one."""
        count = self.num_lanes(stage)
        if count == 1:
            return 1
        if self._lanes is None or self._lanes.count != count:
            self._close_lanes()
            ordered = sums_in_order(self.plan.recipe, self.state.device)
            compress = self.execution.compress and not ordered
            self._lanes = Lanes(self.state.model, count, self.ranks.world, ordered=ordered, compress=compress)
        return self._lanes

    def masked(self, batch: Batch) -> Batch:
        """Returns ``batch`` on the device, with the images that the guard excludes masked out."""
        batch = on_device(batch, self.state.device)
        return masked(batch, self.state.guard.masked) if self.state.guard.masked else batch

    @property
    def stage_name(self) -> str:
        """Name of the present stage."""
        return self.plan.stages[max(self._entered, 0)].name

    def peak_gb(self) -> float:
        """Returns the peak memory of that stage so far, in GiB."""
        return round(peak_gb(self.state.device), 3)

    def save(self, protect: Collection[int] = ()) -> None:
        """Saves a checkpoint, after all logs were flushed to disk.

        The checkpoints of the steps ``protect`` are kept as long as the new one. Of several processes, the first saves.
        """
        if not self.ranks.world.is_first:
            return
        self.ranks.at("saving", self.state.step)
        before = self.clock.read("checkpoint")
        with self.clock.phase("checkpoint"), self.ranks.busy():
            self.run.check_held()
            self.recorder.sync()
            state = self.state
            recorded, logs = pack_logs(self.recorder.seals(), self._env)
            path = checkpoint.save(
                self.run.checkpoints,
                state.step,
                {**state.content(), "logs": logs},
                {"plan_digest": self.plan.digest, "logs": recorded},
                keep=self.plan.recipe.checkpoints.keep,
                protect=sorted({*protect, *([state.best.step] if state.best else []), *self._head_steps()}),
                spare=() if self.mirror is None else self.mirror.wanted(),
            )
            checkpoint.point(self.run.checkpoints, "last", state.step)
            if state.best is not None and state.best.step == state.step:
                checkpoint.point(self.run.checkpoints, "best", state.step)
        seconds = round(self.clock.read("checkpoint") - before, 3)
        peak = self.peak_gb()
        self.recorder.log.emit(
            Saved(step=state.step, checkpoint=path.name, stage=self.stage_name, peak_gb=peak, seconds=seconds)
        )
        if seconds > self.notice_seconds:
            self.recorder.log.emit(Notice(step=state.step, text=slow_save(seconds, self.notice_seconds)))
            self.notice_seconds = math.inf  # said once
        if self.mirror is not None:
            self.mirror.saved(state.step)

    def _head_steps(self) -> list[int]:
        """The step of the head alone, whose weights the finish needs, once it is reached."""
        head = self.plan.head_stage
        return (
            [head.end_step] if head is not None and self.plan.compares_head and head.end_step <= self.state.step else []
        )

    @cached_property
    def _env(self) -> bytes:
        """Content of env.json, of which each checkpoint contains a copy; it does not change during a process."""
        return json.dumps(self.run.read_env(), indent=1, ensure_ascii=False).encode()
