"""The cost probe: measures on this machine the time and memory of each stage of a plan, by running a short part of it.

It runs the same code as a training, in a separate session with a temporary state and folder on the same disk: the training
loop with loader, steps and guard, evaluations, checkpoints, the finished model, the report. It does not affect the run; random
states are restored. Since machines are noisy, the time of a step is the median over blocks of steps. The extra time of the
first steps is counted as part of the stage's beginning.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stagewright.data.batches.specs import has_fixed_views
from stagewright.data.dataset import Dataset
from stagewright.data.images.memory_cache import CachedImages
from stagewright.data.manifest import SPLITS
from stagewright.data.sample import spread
from stagewright.engine.state import Score
from stagewright.errors import BundleError, NotFinite
from stagewright.observers.report_pages import Pages
from stagewright.plan.cost import Costs, GradientCost, StageCost
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, StagePlan
from stagewright.plan.probe_plan import ProbePlan, probe_plan
from stagewright.preflight.gradient_profile import gradient_profile
from stagewright.preflight.optimum_time import optimum_seconds
from stagewright.preflight.probe_folder import own_folder, remove_leftovers
from stagewright.preflight.step_timer import MIN_BLOCKS, StepTimer
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.system.device import device_name
from stagewright.system.isolation import preserve_global_state
from stagewright.system.machine import OtherProcessLoad, cores
from stagewright.system.memory import peak_gb, reset_peak
from stagewright.system.signals import StopSignal
from stagewright.training.evaluator import Evaluator, recalibrated_images
from stagewright.training.feature_cache import MOST_IN_MEMORY
from stagewright.training.finish import bundle_spec, write_bundle
from stagewright.training.loop import run_plan
from stagewright.training.session import Session
from stagewright.training.setup import RunInputs, open_session

Rows = NDArray[np.int64]

_CACHED_SAMPLE = 1024
"""Number of images used to measure a data set that is cached in memory."""
_EQUAL_SHARE = 0.2
"""Share of the measuring time that is divided equally among the stages; the rest is divided by their work."""
_TRAIN, _EVAL, _ALONE = 0.6, 0.2, 0.1
"""Shares of a stage's measuring time: training, evaluation, and loading and computing separately."""


def probe(
    plan: Plan,
    dataset: Dataset,
    execution: Execution,
    folder: Path,
    *,
    seconds: float = 10.0,
    startup_seconds: float = 0.0,
) -> Costs:
    """Returns the costs of ``plan`` on ``execution.device``, measured for about ``seconds``, longer if single steps take long.

    ``folder`` is the run's directory or its parent; files written there are removed again. ``startup_seconds`` is the time that
    the process has used so far. Errors are those of opening a run: missing weights, invalid sizes, too little disk space for
    checkpoints.
    """
    began, others = time.perf_counter(), OtherProcessLoad()
    rehearsal = probe_plan(plan, has_fixed_views)
    quiet = replace(execution, quiet=True, pages=False, save_minutes=1e9)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    remove_leftovers(there)
    with preserve_global_state(), own_folder(there) as temporary:

        def opened(name: str) -> Session:
            run = RunDir.create(Path(temporary) / name)
            run.write_start(rehearsal.plan, dataset.manifest, environment("probe", [], quiet.device, ""))
            return open_session(RunInputs(run, rehearsal.plan, dataset.manifest, dataset.images, quiet, StopSignal()))

        # Opened twice: the first time also loads libraries, which a run after the probe in the same process need not do.
        opened("first").recorder.close()
        gc.collect()
        again = time.perf_counter()
        session = opened("second")
        setup_seconds = time.perf_counter() - again
        try:
            costs = _measured(_Bench(session), rehearsal, plan, seconds, execution.pages)
        finally:
            session.recorder.close()
        device = session.state.device
        del session
        gc.collect()
    return replace(
        costs,
        startup_seconds=startup_seconds,
        setup_seconds=setup_seconds,
        probe_seconds=time.perf_counter() - began,
        device=device_name(device),
        others_cores=others.cores,
    )


def _measured(bench: _Bench, rehearsal: ProbePlan, plan: Plan, seconds: float, pages: bool) -> Costs:
    """Returns all costs except those of start and set-up, which are 0 in the result."""
    cuts, rehearsed = bench.session.features.cuts, rehearsal.plan.stages
    first_image_seconds = bench.cache_sample()
    pairs = list(zip(rehearsal.long, rehearsal.short, strict=True))
    needed = sorted({short for _, short in pairs} | {long for long, _ in pairs if long in cuts})
    # The measuring time is divided in proportion to the pixels that a run processes; every stage gets a share.
    work = dict.fromkeys(needed, 0.0)
    for stage, (long, short) in zip(plan.stages, pairs, strict=True):
        shown = stage.num_steps * stage.batch_size
        # With cached features, each image is processed once.
        once = long in cuts and (stage.cache_views > 0 or shown >= stage.num_images)
        work[long if once else short] += (stage.num_images if once else shown) * stage.image_size**2
    total = sum(work.values())
    measured = {
        at: bench.measure(rehearsed[at], seconds * (_EQUAL_SHARE / len(needed) + (1 - _EQUAL_SHARE) * work[at] / total))
        for at in needed
    }
    stages = [
        replace(measured[long], short=measured[short]) if long in cuts and short != long else measured[short]
        for long, short in pairs
    ]
    finish_seconds, page_seconds = bench.finish(rehearsed[pairs[-1][1]], pages)
    return Costs(
        stages=tuple(stages),
        startup_seconds=0.0,
        setup_seconds=0.0,
        first_image_seconds=first_image_seconds,
        checkpoint_bytes=bench.checkpoint_bytes,
        finish_seconds=finish_seconds,
        page_seconds=page_seconds,
        # The process that draws plots has low priority, but on a CPU it still takes time from the training.
        page_drag_seconds=page_seconds / cores() if bench.session.state.device.type == "cpu" else 0.0,
        probe_seconds=0.0,
        device="",
    )


@dataclass
class _Bench:
    """A session in which costs are measured."""

    session: Session
    save_seconds: float = 0.0
    """Time of the newest checkpoint."""
    checkpoint_bytes: int = 0

    def __post_init__(self) -> None:
        self.whole = self.session.manifest
        self.train_rows = self.whole.rows("train")
        held_out = [rows for split in ("val", "test") if len(rows := self.whole.rows(split))]
        self.eval_rows = held_out[0] if held_out else np.empty(0, np.int64)

    def cache_sample(self) -> float:
        """Decodes a sample of a data set that is cached in memory and returns the seconds for one image; 0.0 for other data
        sets. From now on only this sample is used: it is in the cache, as all images of a run are after the first epoch."""
        images = self.session.images
        if not isinstance(images, CachedImages):
            return 0.0
        self.train_rows = spread(self.train_rows, self.whole.labels, _CACHED_SAMPLE)
        self.eval_rows = self.eval_rows[:_CACHED_SAMPLE]
        began = time.perf_counter()
        images.ensure(self.train_rows)
        seconds = (time.perf_counter() - began) / len(self.train_rows) / cores()
        images.ensure(self.eval_rows)
        return seconds

    def measure(self, stage: StagePlan, limit: float) -> StageCost:
        """Returns the costs of ``stage``, measured for about ``limit`` seconds."""
        session, device = self.session, self.session.state.device
        session.state.step = stage.first_step
        self.select_rows(self.train_rows, self.eval_rows[:1])
        gc.collect()
        reset_peak(device)
        cut = session.features.cuts.get(stage.index)
        views = stage.num_images * stage.num_views
        once = self.features_seconds(stage, _EVAL * limit) * views if cut is not None else 0.0
        if stage.fit == "optimum":
            step = compute = optimum_seconds(session, stage, self.synchronize)
            lead, load, parts = 0.0, 0.0, None
            before = session.state.seconds["checkpoint"]
            session.save()
            self.remember_save(before)
            train_gb = peak_gb(device)
        else:
            timer = self.train(stage, _TRAIN * limit)
            step, lead = timer.step_seconds, timer.lead_seconds
            train_gb = peak_gb(device)
            load, compute = self.separate_times(stage, timer, _ALONE * limit)
            parts = self.parts(stage, timer) if stage.lanes > 1 else None
        reset_peak(device)
        fixed, each, first, recalibrating = self.evaluations(stage, _EVAL * limit)
        if cut is not None:
            once += first * session.plan.dataset.num_val
            stored = min(cut.bytes_each * views, MOST_IN_MEMORY)
            train_gb += (stored + min(cut.bytes_each * session.plan.dataset.num_val, MOST_IN_MEMORY)) / 2**30
        return StageCost(
            step_seconds=step,
            load_seconds=load,
            compute_seconds=compute,
            entry_seconds=lead + once,
            eval_fixed_seconds=fixed,
            eval_image_seconds=each,
            recalibrate_seconds=recalibrating,
            save_seconds=self.save_seconds,
            train_gb=train_gb,
            eval_gb=peak_gb(device),
            shared_entry_seconds=once,
            gradients=parts,
        )

    def select_rows(self, train: Rows, evaluated: Rows) -> None:
        """From now on the session trains only on the rows ``train`` and validates on the rows ``evaluated``."""
        splits = np.maximum(self.whole.splits, SPLITS.index("test"))  # a test part that is closed stays so
        splits[train], splits[evaluated] = SPLITS.index("train"), SPLITS.index("val")
        self.session.manifest = replace(self.whole, splits=splits)

    def features_seconds(self, stage: StagePlan, limit: float) -> float:
        """Returns the seconds per view of an image to compute the features on which the stage trains. Some features stay in the
        cache for the measurement of training."""
        session, labels = self.session, self.whole.labels
        count, seconds = 2 * min(stage.batch_size, 4 * stage.micro_batch_size), 0.0
        for _ in range(2):
            rows = spread(self.train_rows, labels, count)
            self.select_rows(rows, self.eval_rows[:1])
            session.enter(stage)
            assert session.features.current is not None
            session.features.current.kept.clear()
            began = time.perf_counter()
            found = session.features.of("train", stage, session.manifest)
            pictures = count if found is None else len(found.values)
            self.synchronize()
            seconds = (time.perf_counter() - began) / pictures
            count = max(count, int(limit / seconds))
        return seconds

    def remember_save(self, before: float) -> None:
        """Remembers time and size of the checkpoint just saved; ``before`` is the time of all checkpoints before it."""
        session = self.session
        self.save_seconds = session.state.seconds["checkpoint"] - before
        saved = session.run.checkpoints / checkpoint.name_of(session.state.step) / checkpoint.STATE
        self.checkpoint_bytes = max(self.checkpoint_bytes, saved.stat().st_size)

    def train(self, stage: StagePlan, limit: float) -> StepTimer:
        """Trains from the stage's first step until the time of a step is known, ends with a checkpoint, and returns the
        timer."""
        session = self.session
        before = session.state.seconds["checkpoint"]
        timer = StepTimer(session.stop, limit, self.synchronize)
        try:
            run_plan(session, timer.after_update)
        finally:
            session.stop.requested = False
        self.remember_save(before)
        return timer

    def separate_times(self, stage: StagePlan, timer: StepTimer, limit: float) -> tuple[float | None, float | None]:
        """Returns the seconds of loading one batch without training, and of one step without loading; None for both if that
        takes longer than ``limit`` seconds. With several lanes it may: a forecast for several devices needs both."""
        session, batch = self.session, timer.batch
        if batch is None or (stage.lanes == 1 and 2 * timer.step_seconds > limit):
            return None, None
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < limit or done < MIN_BLOCKS:
            session.update(stage, replace(batch, step=session.state.step))
            done += 1
        self.synchronize()
        compute = (time.perf_counter() - began) / done if spent else None
        ahead = session.execution.prefetch + 1
        with session.train_batches(session.state.step) as batches:
            for _ in range(ahead):
                next(batches)
            began, done = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < limit:
                next(batches)
                done += 1
        return spent / done, compute

    def parts(self, stage: StagePlan, timer: StepTimer) -> GradientCost | None:
        """Returns the parts of an update with images that are already loaded."""
        session, batch = self.session, timer.batch
        assert batch is not None

        def update() -> None:
            session.update(stage, replace(batch, step=session.state.step))
            self.synchronize()

        return gradient_profile(update, session.state.model, session.num_lanes(stage), session.state.device)

    def evaluations(self, stage: StagePlan, limit: float) -> tuple[float, float, float, float]:
        """Returns (fixed, per image, additionally per image the first time, recalibration): seconds of one evaluation of the
        validation images with all sets of weights of the stage, estimated from evaluations of parts of them."""
        session, rows = self.session, self.eval_rows
        if not len(rows):
            return 0.0, 0.0, 0.0, 0.0
        few = min(len(rows), stage.micro_batch_size)
        again = spread(self.train_rows, self.whole.labels, 2 * stage.micro_batch_size)
        recalibrating, of_part = self.recalibration(stage, again)

        def seconds(count: int) -> float:
            self.select_rows(again, rows[:count])
            began = time.perf_counter()
            self.evaluate()
            self.synchronize()
            return time.perf_counter() - began - of_part

        first = seconds(few)  # compiles, computes features
        short = seconds(few)
        first = max(0.0, first - short) / few
        many = min(len(rows), max(2 * few, few * int(limit / max(short, 1e-9))))
        if session.features.current is not None:
            session.features.current.kept.pop("val", None)
            first = max(0.0, seconds(many) - short) / many
        long = seconds(many)
        each = (long - short) / (many - few) if many > few else short / few
        if many > few and not 0 < each * few <= short:
            each = long / many
        return max(0.0, short - each * few), each, first, recalibrating

    def recalibration(self, stage: StagePlan, rows: Rows) -> tuple[float, float]:
        """Returns the seconds to re-estimate batch-norm statistics as in the stage, and to do so with the images ``rows``."""
        session = self.session
        count = min(recalibrated_images(stage, session.state.model), stage.num_images)
        if not count or stage.average.kind == "none":
            return 0.0, 0.0
        self.select_rows(rows, self.eval_rows[:1])
        began = time.perf_counter()
        Evaluator(session).recalibrate(stage)
        self.synchronize()
        part = time.perf_counter() - began
        return part * count / min(count, len(rows)), part

    def finish(self, stage: StagePlan, pages: bool) -> tuple[float, float]:
        """Returns the seconds for reading the best weights and writing the finished model, and those for plots and report."""
        session = self.session
        session.manifest = self.whole
        began = time.perf_counter()
        if (last := checkpoint.pointed(session.run.checkpoints, "last")) is not None:
            checkpoint.load(last)
        score = Score(session.state.step, "raw", float("nan"))
        try:
            write_bundle(session, bundle_spec(session, score, stage, {}))
        except BundleError:
            self.zero_weights()
            write_bundle(session, bundle_spec(session, score, stage, {}))
        session.recorder.sync()
        written = time.perf_counter()
        if pages:
            Pages(session.run.root).close()
        return written - began, time.perf_counter() - written if pages else 0.0

    def evaluate(self) -> None:
        """Runs one evaluation. If the temporary weights have diverged, it is repeated with zeros as weights; the run itself is
        not affected by such a divergence."""
        try:
            Evaluator(self.session).evaluate()
        except NotFinite:
            self.zero_weights()
            Evaluator(self.session).evaluate()

    def zero_weights(self) -> None:
        """Sets all weights to 0, which does not change the time of an evaluation."""
        state = self.session.state
        with torch.no_grad():
            for tensor in (*state.model.state_dict().values(), *state.average.tensors.values()):
                tensor.zero_()

    def synchronize(self) -> None:
        """Waits until the device has finished its work."""
        if self.session.state.device.type == "cuda":
            torch.cuda.synchronize(self.session.state.device)
