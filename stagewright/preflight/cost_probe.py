"""The probe: measures on this machine what each stage of a plan takes, by carrying out a little of it.

What is measured is the run's own pipeline, in a session of its own with a throw-away state, in a temporary folder on the
disk of the run: the loop with its loader, its steps and its guard, evaluations, saves, the finished model, the report.
Nothing of the run changes by it, random states included. Machines are noisy, so a step's time is the median of blocks of
steps; what comes before the steps run evenly is charged to the beginning of the stage.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from stagewright.plan.budget import Budget, apply, fit
from stagewright.plan.cost import Costs, StageCost, noise_warning
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan, StagePlan
from stagewright.plan.probe_plan import ProbePlan, probe_plan
from stagewright.preflight.step_timer import FEW, StepTimer
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment
from stagewright.rundir.summary import recorded_choice
from stagewright.storage.lock import is_held, lock
from stagewright.system.device import device_name
from stagewright.system.isolation import preserve_global_state
from stagewright.system.machine import OtherProcessLoad, cores
from stagewright.system.memory import peak_gb, reset_peak
from stagewright.system.signals import StopSignal
from stagewright.text import span_text
from stagewright.training.evaluator import Evaluator, recalibrated_images
from stagewright.training.finish import write_bundle
from stagewright.training.loop import run_plan
from stagewright.training.session import Session
from stagewright.training.setup import RunInputs, open_session

Rows = NDArray[np.int64]

_KEPT_SAMPLE = 1024
"""Pictures that stand for a set which is kept decoded in memory."""
_EVENLY = 0.2
"""Share of the time that all stages get alike."""
_TRAIN, _EVAL, _ALONE = 0.6, 0.2, 0.1
"""Shares of a stage's time: training, evaluating, loader and step each on their own."""


def probe(
    plan: Plan,
    dataset: Dataset,
    execution: Execution,
    folder: Path,
    *,
    seconds: float = 10.0,
    startup_seconds: float = 0.0,
) -> Costs:
    """What ``plan`` takes on ``execution.device``, by about ``seconds`` of trying out, more where single steps take long.

    ``folder`` is where the run's directory will lie, or the folder that this will be made in; what is written there
    is removed. ``startup_seconds`` are what the process has spent so far. Errors are those of opening a run: weights
    that are not there, sizes that do not fit, too little room for checkpoints.
    """
    began, others = time.perf_counter(), OtherProcessLoad()
    rehearsal = probe_plan(plan, has_fixed_views)
    quiet = replace(execution, quiet=True, pages=False, save_minutes=1e9)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    _remove_leftovers(there)
    with preserve_global_state(), _own_folder(there) as temporary:

        def opened(name: str) -> Session:
            run = RunDir.create(Path(temporary) / name)
            run.write_start(rehearsal.plan, dataset.manifest, environment("probe", [], quiet.device, ""))
            return open_session(RunInputs(run, rehearsal.plan, dataset.manifest, dataset.images, quiet, StopSignal()))

        # Twice: the first brings libraries into the process, which a run that comes after it finds there.
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
    """All costs but those of beginning."""
    cuts, rehearsed = bench.session.features.cuts, rehearsal.plan.stages
    first_image_seconds = bench.hold_pictures()
    pairs = list(zip(rehearsal.long, rehearsal.short, strict=True))
    needed = sorted({short for _, short in pairs} | {long for long, _ in pairs if long in cuts})
    # Time in proportion to the pixels that a run works through, and no stage without a share.
    work = dict.fromkeys(needed, 0.0)
    for stage, (long, short) in zip(plan.stages, pairs, strict=True):
        shown = stage.num_steps * stage.batch_size
        once = long in cuts and shown >= stage.num_images  # as features, each picture is worked through once
        work[long if once else short] += (stage.num_images if once else shown) * stage.image_size**2
    total = sum(work.values())
    measured = {
        at: bench.measure(rehearsed[at], seconds * (_EVENLY / len(needed) + (1 - _EVENLY) * work[at] / total))
        for at in needed
    }
    stages = [
        replace(measured[long], short=measured[short]) if long in cuts else measured[short] for long, short in pairs
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
        # Its process is a nice one, but where the processors train it takes its time from them.
        page_drag_seconds=page_seconds / cores() if bench.session.state.device.type == "cpu" else 0.0,
        probe_seconds=0.0,
        device="",
    )


@dataclass
class _Bench:
    """A session under measurement."""

    session: Session
    save_seconds: float = 0.0
    """Of the newest save."""
    checkpoint_bytes: int = 0

    def __post_init__(self) -> None:
        self.whole = self.session.manifest
        self.train_rows = self.whole.rows("train")
        held_out = [rows for split in ("val", "test") if len(rows := self.whole.rows(split))]
        self.eval_rows = held_out[0] if held_out else np.empty(0, np.int64)

    def hold_pictures(self) -> float:
        """Where the pictures stay decoded in memory: the time that this takes for one, and from now on a part of them
        alone is used, which is in memory then, as all are in a run once each was used. 0.0 for other sets."""
        images = self.session.images
        if not isinstance(images, CachedImages):
            return 0.0
        self.train_rows = spread(self.train_rows, self.whole.labels, _KEPT_SAMPLE)
        self.eval_rows = self.eval_rows[:_KEPT_SAMPLE]
        began = time.perf_counter()
        images.ensure(self.train_rows)
        seconds = (time.perf_counter() - began) / len(self.train_rows) / cores()
        images.ensure(self.eval_rows)
        return seconds

    def measure(self, stage: StagePlan, limit: float) -> StageCost:
        """What ``stage`` costs, by about ``limit`` seconds of it."""
        session, device = self.session, self.session.state.device
        session.state.step = stage.first_step
        self.show(self.train_rows, self.eval_rows[:1])
        gc.collect()
        reset_peak(device)
        cut = session.features.cuts.get(stage.index)
        once = self.features_seconds(stage, _EVAL * limit) * stage.num_images if cut is not None else 0.0
        rhythm = self.train(stage, _TRAIN * limit)
        train_gb = peak_gb(device)
        load, compute = self.alone(stage, rhythm, _ALONE * limit)
        reset_peak(device)
        fixed, each, first, recalibrating = self.evaluations(stage, _EVAL * limit)
        if cut is not None:
            once += first * session.plan.dataset.num_val
            train_gb += cut.bytes_each * (stage.num_images + session.plan.dataset.num_val) / 2**30
        return StageCost(
            step_seconds=rhythm.step_seconds,
            load_seconds=load,
            compute_seconds=compute,
            entry_seconds=rhythm.lead_seconds + once,
            eval_fixed_seconds=fixed,
            eval_image_seconds=each,
            recalibrate_seconds=recalibrating,
            save_seconds=self.save_seconds,
            train_gb=train_gb,
            eval_gb=peak_gb(device),
        )

    def show(self, train: Rows, evaluated: Rows) -> None:
        """From now on the session trains on the rows ``train`` alone and validates on ``evaluated``."""
        splits = np.full(len(self.whole), SPLITS.index("test"), np.int8)
        splits[train], splits[evaluated] = SPLITS.index("train"), SPLITS.index("val")
        self.session.manifest = replace(self.whole, splits=splits)

    def features_seconds(self, stage: StagePlan, limit: float) -> float:
        """Seconds a picture to compute the features that the stage trains on; a part of them stays there to train on."""
        session, labels = self.session, self.whole.labels
        count, seconds = 2 * stage.batch_size, 0.0
        for _ in range(2):
            rows = spread(self.train_rows, labels, count)
            self.show(rows, self.eval_rows[:1])
            session.enter(stage)
            assert session.features.current is not None
            session.features.current.kept.clear()
            began = time.perf_counter()
            pictures = len(session.features.of("train", stage, session.manifest).rows)
            self.settle()
            seconds = (time.perf_counter() - began) / pictures
            count = max(count, int(limit / seconds))
        return seconds

    def train(self, stage: StagePlan, limit: float) -> StepTimer:
        """Carries out the plan from the stage's first step on, until its rhythm is known; a save is the end of it."""
        session = self.session
        before = session.state.seconds["checkpoint"]
        rhythm = StepTimer(session.stop, limit, self.settle)
        try:
            run_plan(session, rhythm.after_update)
        finally:
            session.stop.requested = False
        self.save_seconds = session.state.seconds["checkpoint"] - before
        saved = session.run.checkpoints / checkpoint.name_of(session.state.step) / checkpoint.STATE
        self.checkpoint_bytes = max(self.checkpoint_bytes, saved.stat().st_size)
        return rhythm

    def alone(self, stage: StagePlan, rhythm: StepTimer, limit: float) -> tuple[float | None, float | None]:
        """Seconds of a batch with the loader alone, and of a step without it; None for what takes longer than ``limit``."""
        session, batch = self.session, rhythm.batch
        if batch is None or 2 * rhythm.step_seconds > limit:
            return None, None
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < limit or done < FEW:
            session.update(stage, replace(batch, step=session.state.step))
            done += 1
        self.settle()
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

    def evaluations(self, stage: StagePlan, limit: float) -> tuple[float, float, float, float]:
        """(fixed, for each picture, for each picture the first time, recalibration): seconds of one evaluation of the
        validation pictures by all sets of weights that the stage has, from evaluations of parts of them."""
        session, rows = self.session, self.eval_rows
        if not len(rows):
            return 0.0, 0.0, 0.0, 0.0
        few = min(len(rows), stage.micro_batch_size)
        again = spread(self.train_rows, self.whole.labels, 2 * stage.micro_batch_size)
        recalibrating, of_part = self.recalibration(stage, again)

        def seconds(count: int) -> float:
            self.show(again, rows[:count])
            began = time.perf_counter()
            self.evaluate()
            self.settle()
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
        """Seconds to re-estimate batch-norm statistics as the stage asks for, and from the training pictures ``rows``."""
        session = self.session
        count = min(recalibrated_images(stage, session.state.model), stage.num_images)
        if not count or stage.average.kind == "none":
            return 0.0, 0.0
        self.show(rows, self.eval_rows[:1])
        began = time.perf_counter()
        Evaluator(session).recalibrate(stage)
        self.settle()
        part = time.perf_counter() - began
        return part * count / min(count, len(rows)), part

    def finish(self, stage: StagePlan, pages: bool) -> tuple[float, float]:
        """Seconds for reading the best weights and writing the finished model, and for plots and report."""
        session = self.session
        session.manifest = self.whole
        began = time.perf_counter()
        if (last := checkpoint.pointed(session.run.checkpoints, "last")) is not None:
            checkpoint.load(last)
        score = Score(session.state.step, "raw", float("nan"))
        try:
            write_bundle(session, score, stage, {})
        except BundleError:
            self.blank()
            write_bundle(session, score, stage, {})
        session.recorder.sync()
        written = time.perf_counter()
        if pages:
            Pages(session.run.root).close()
        return written - began, time.perf_counter() - written if pages else 0.0

    def evaluate(self) -> None:
        """One evaluation, of zeros where the throw-away weights have diverged by now, which says nothing of the run's."""
        try:
            Evaluator(self.session).evaluate()
        except NotFinite:
            self.blank()
            Evaluator(self.session).evaluate()

    def blank(self) -> None:
        """Takes zeros for weights, which cost the same time."""
        state = self.session.state
        with torch.no_grad():
            for tensor in (*state.model.state_dict().values(), *state.average.tensors.values()):
                tensor.zero_()

    def settle(self) -> None:
        """Waits for the device."""
        if self.session.state.device.type == "cuda":
            torch.cuda.synchronize(self.session.state.device)


_PREFIX = ".stagewright-probe-"
_SETTLED_SECONDS = 60.0


@contextlib.contextmanager
def _own_folder(there: Path) -> Iterator[Path]:
    """A temporary folder in ``there``, locked, so that others know it for one in use."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=there) as temporary, lock(Path(temporary)):
        yield Path(temporary)


def _remove_leftovers(there: Path) -> None:
    """Removes the folders of probes that were killed: nobody holds them."""
    for folder in there.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            settled = time.time() - folder.stat().st_mtime > _SETTLED_SECONDS  # a younger one may not be locked yet
            if settled and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def within_budget(
    plan: Plan,
    dataset: Dataset,
    execution: Execution,
    budget: Budget,
    out: Path | None,
    say: Callable[[str], None],
) -> tuple[Plan, dict[str, Any]]:
    """``plan`` in the length that ends within ``budget``, and the account of it for ``env.json``.

    Where ``out`` holds a run that was begun with this budget, the length is the one chosen then: a run that goes on must
    not become another by being measured again. Otherwise this machine is measured. RecipeError where nothing fits.
    """
    if out is not None and (choice := recorded_choice(RunDir(out), budget)) is not None:
        return apply(plan, choice), RunDir(out).read_env()["budget"]
    seconds = budget.probe_seconds(execution.probe_seconds)
    say(f"Measuring this machine for about {span_text(seconds)}.")
    folder, startup = out or Path("runs"), budget.spent_seconds
    costs = probe(plan, dataset, execution, folder, seconds=seconds, startup_seconds=startup)
    fitted = fit(plan, costs, budget, save_minutes=execution.save_minutes)
    if costs.is_noisy:
        say(noise_warning(costs))
    say(fitted.sentence()[:1].upper() + fitted.sentence()[1:])
    return fitted.plan, fitted.to_dict()
