"""From the plan to batch specifications: which pictures, which crops, for every step; pure, in order, endless seams.

Nothing here depends on workers, prefetch or where a run was interrupted: the specification of step s is the same
whichever step the stream begins at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stagewright.augment.draw import draw
from stagewright.augment.params import Geometry, eval_geometry, train_geometry
from stagewright.data.loader import BatchSpec
from stagewright.data.manifest import Manifest
from stagewright.data.order import batch_places, subset
from stagewright.plan import Plan, StagePlan
from stagewright.rng import Stream, key, permutation

# Re-estimating batch-norm statistics draws crops of a pass that no training reaches, and so do augmented copies.
_RECALIBRATION_PASS = 2**62
_COPY_PASS = 2**61
# In the place of a pass: the picture is seen as the evaluation sees it.
_AS_IT_IS = -1


def stage_rows(plan: Plan, manifest: Manifest, stage: StagePlan) -> NDArray[np.int64]:
    """Manifest rows that a stage trains on: its data fraction of the training split, nested and stratified."""
    train = manifest.rows("train")
    return train[subset(plan.recipe.seed, manifest.labels[train], stage.data_fraction)]


def train_specs(plan: Plan, manifest: Manifest, first_step: int) -> Iterator[BatchSpec]:
    """One specification for each step from ``first_step`` to the end of the plan, across stage seams."""
    for stage in plan.stages:
        if stage.end_step <= first_step:
            continue
        rows = stage_rows(plan, manifest, stage)
        count = len(rows) * (1 + stage.augment.copies)
        for step in range(max(first_step, stage.first_step), stage.end_step):
            places, passes = batch_places(
                plan.recipe.seed, count, stage.first_pass, stage.batch_size, step - stage.first_step
            )
            copies, within = np.divmod(places, len(rows))
            if stage.augment.copies:
                passes = np.where(copies > 0, _COPY_PASS + copies, _AS_IT_IS)
            yield _train_spec(plan, manifest, stage, step, rows[within], passes)


def recalibration_specs(plan: Plan, manifest: Manifest, stage: StagePlan, num_images: int) -> Iterator[BatchSpec]:
    """Training views of ``num_images`` (or all) of a stage's pictures in full batches, to re-estimate statistics from."""
    rows = stage_rows(plan, manifest, stage)
    order = permutation(key(plan.recipe.seed, Stream.RECALIBRATE), len(rows))
    size = min(stage.micro_batch_size, len(rows))
    count = max(1, min(num_images, len(rows)) // size)
    for at in range(count):
        chosen = rows[order[at * size : (at + 1) * size]]
        yield _train_spec(plan, manifest, stage, at, chosen, np.full(size, _RECALIBRATION_PASS))


def eval_specs(plan: Plan, manifest: Manifest, stage: StagePlan, split: str) -> Iterator[BatchSpec]:
    """Every picture of ``split`` exactly once, in the manifest's order, as the evaluation sees it in ``stage``."""
    rows = manifest.rows(split)
    size = eval_image_size(plan, stage)
    for at in range(0, len(rows), stage.micro_batch_size):
        chosen = rows[at : at + stage.micro_batch_size]
        geometry = eval_geometry(plan.recipe.eval, manifest.widths[chosen], manifest.heights[chosen])
        yield _spec(plan, manifest, at // stage.micro_batch_size, chosen, geometry, size, exact=True)


def eval_image_size(plan: Plan, stage: StagePlan) -> int:
    """Side in pixels of evaluated pictures: the recipe's own, else the stage's."""
    return plan.recipe.eval.image_size or stage.image_size


def _train_spec(
    plan: Plan, manifest: Manifest, stage: StagePlan, step: int, rows: NDArray[np.int64], passes: NDArray[np.int64]
) -> BatchSpec:
    geometry = train_geometry(
        stage.augment,
        plan.recipe.seed,
        rows,
        passes,
        manifest.widths[rows],
        manifest.heights[rows],
        stage.image_size,
        plan.recipe.eval,
    )
    drawn_for, changed = None, slice(None)
    if (passes == _AS_IT_IS).any():
        same = np.flatnonzero(passes == _AS_IT_IS)
        geometry.put(same, eval_geometry(plan.recipe.eval, manifest.widths[rows[same]], manifest.heights[rows[same]]))
        changed = drawn_for = np.flatnonzero(passes != _AS_IT_IS)
    draws = draw(stage.augment, plan.recipe.seed, rows[changed], passes[changed], stage.image_size)
    spec = _spec(plan, manifest, step, rows, geometry, stage.image_size, exact=plan.recipe.decode == "exact")
    return replace(spec, draws=draws, drawn_for=drawn_for) if draws is not None else spec


def _spec(
    plan: Plan,
    manifest: Manifest,
    step: int,
    rows: NDArray[np.int64],
    geometry: Geometry,
    image_size: int,
    *,
    exact: bool,
) -> BatchSpec:
    labels = manifest.labels[rows].astype(np.int64)
    return BatchSpec(step, rows, labels, geometry, image_size, plan.recipe.interpolation, exact)
