"""The learning-rate range test (Smith, arXiv:1506.01186, section 3.3): a short training in which the learning rate rises.

It is a function of recipe, seed and data: it begins with the same weights, images, augmentation and mixing as the first stage
of the run, and has no side effects in the process or on disk. :mod:`stagewright.plan.lr_curve` evaluates its curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from stagewright.augment.custom import load_custom
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import train_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.batches.workers import auto_workers
from stagewright.data.images.decode import Images
from stagewright.data.images.memory_cache import cache_for_plan
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.engine.build import build_state
from stagewright.engine.numerics import Numerics, auto_precision, numerics_of, prepare_torch
from stagewright.engine.state import TrainState
from stagewright.engine.step import update
from stagewright.errors import RangeTestError
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.lr_curve import RangeTest, blown_up, lr_grid, smooth
from stagewright.plan.plan import Hyper, Measured, Plan, StagePlan
from stagewright.plan.resolve import resolve
from stagewright.recipe.recipe import Recipe
from stagewright.system.isolation import preserve_global_state

_MOST_SKIPPED = 30
"""Largest number of consecutive updates that fp16's gradient scaler may skip. Its scale begins at 2**16 and is halved at every
skipped update, so after this many the scale cannot be the cause."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The range of learning rates, and the number of updates."""

    lr_min: float = 1e-7
    lr_max: float = 10.0
    steps: int = 100


_DEFAULT = Sweep()


def range_test(
    recipe: Recipe,
    manifest: Manifest,
    images: Images,
    device: torch.device,
    *,
    sweep: Sweep = _DEFAULT,
    micro_batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> RangeTest:
    """Trains the recipe's first stage with rising learning rates until the loss diverges, and returns the losses.

    Stages that find an optimum, which have no learning rate, are left out; RangeTestError if there are no others.

    Momentum is that at the schedule's peak, since the found learning rate will be the peak. ``micro_batch_size`` is the value
    of ``auto`` (None: whole batches), ``workers`` as in :class:`stagewright.plan.execution.Execution`. If fp16's scaler skips
    an update, its learning rate is tried again with the next batch; many skipped updates in a row end the sweep.
    ``progress(done, total)`` counts the learning rates. RangeTestError for an invalid sweep; errors of weights, sizes and
    optimizer are those of a run.
    """
    lrs = lr_grid(sweep.lr_min, sweep.lr_max, sweep.steps)
    plan = _lengthened(recipe, manifest, device, 2 * sweep.steps + _MOST_SKIPPED, micro_batch_size)
    images = cache_for_plan(plan, manifest, images)
    specs = islice(train_specs(plan, manifest, 0), plan.stages[0].num_steps)
    threads = auto_workers(manifest) if workers is None else workers
    with preserve_global_state(), closing(load_batches(images, specs, workers=threads)) as batches:
        return _swept(plan, *_built(plan, manifest, device), batches, lrs, progress)


def _lengthened(
    recipe: Recipe, manifest: Manifest, device: torch.device, steps: int, micro_batch_size: int | None
) -> Plan:
    """Returns the plan of the recipe's stages of updates with a first stage of ``steps`` steps; its initial weights and batches
    do not change."""
    timed = recipe.without_optima()
    if timed is None:
        raise RangeTestError(
            "a range test of a recipe whose stages all have fit: optimum",
            "a recipe with a stage that has a learning rate",
            "such a recipe needs no learning rate: leave the range test, and lr: auto, out",
        )
    longer = timed.with_stage(0, epochs=f"{steps}st").changed(compile=False)
    # Any learning rate will do, since the sweep replaces it in every update.
    measured = Measured(lr=1.0, micro_batch_size=micro_batch_size)
    return resolve(longer, manifest.info(), precision=auto_precision(device), measured=measured)


def _built(plan: Plan, manifest: Manifest, device: torch.device) -> tuple[TrainState, Numerics]:
    """Returns the initial state of the run, prepared for its first stage, and its numerics."""
    stage = plan.stages[0]
    prepare_torch(plan.recipe, device)
    if stage.augment.custom:
        load_custom(stage.augment.custom)
    state, _ = build_state(plan, device)
    apply_trainable(state.model, stage.train)
    set_train_mode(state.model, stage.norm)
    return state, numerics_of(plan, state.model, manifest)


def _swept(
    plan: Plan,
    state: TrainState,
    numerics: Numerics,
    batches: Iterator[Batch],
    lrs: np.ndarray,
    progress: Progress,
) -> RangeTest:
    stage = plan.stages[0]
    losses: list[float] = []
    skipped = in_a_row = 0
    for batch in batches:
        hyper = _hyper(stage, float(lrs[len(losses)]))
        before = state.scaler.get_scale()
        batch = on_device(batch, state.device)
        loss = float(update(state, plan, plan.stages[0], batch, numerics, hyper=hyper)[0])
        left_out = state.scaler.get_scale() < before
        if left_out and math.isfinite(loss):
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row < _MOST_SKIPPED:
                continue
        in_a_row = 0
        losses.append(loss)
        progress(len(losses), len(lrs))
        smoothed = smooth(np.array(losses), len(lrs))
        if left_out or len(losses) == len(lrs) or blown_up(smoothed, len(lrs)):
            break
    return RangeTest(lrs[: len(losses)], np.array(losses), len(lrs), skipped)


def _hyper(stage: StagePlan, lr: float) -> Hyper:
    momentum = stage.momentum if stage.momentum_range is None else stage.momentum_range[0]
    return replace(stage.hyper(stage.first_step), lr=lr, momentum=momentum, average_weight=0.0)
