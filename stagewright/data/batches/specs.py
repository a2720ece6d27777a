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
from stagewright.augment.geometry import Geometry, eval_geometry, train_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.order import SampledClasses, batch_places, sampled_classes, sampled_places, subset
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.rng import Stream, key, permutation

# What stands in the place of the pass in the key of a picture's augmentation, so that no two views share a key: the pass
# (below 2**40) of natural sampling; for the v-th repeat within a pass of sampled classes _REPEAT * v more (below 2**60);
# the same from _COPY_PASS on for augmented copies, which are the same in every pass; and from _RECALIBRATION_PASS on for
# re-estimating batch-norm statistics.
_REPEAT = 2**40
_MOST_REPEATS = 2**20
_COPY_PASS = 2**61
_RECALIBRATION_PASS = 2**62
# In the place of a pass: the picture is seen as the evaluation sees it.
_UNAUGMENTED = -1


def stage_rows(plan: Plan, manifest: Manifest, stage: StagePlan) -> NDArray[np.int64]:
    """Manifest rows that a stage trains on: its data fraction of the training split, nested and stratified."""
    train = manifest.rows("train")
    return train[subset(plan.recipe.seed, manifest.labels[train], stage.data_fraction)]


def train_specs(
    plan: Plan, manifest: Manifest, first_step: int, unread: frozenset[int] = frozenset()
) -> Iterator[BatchSpec]:
    """One specification for each step from ``first_step`` to the end of the plan, across stage seams.

    The pictures of the stages whose indices are in ``unread`` are not read.
    """
    for stage in plan.stages:
        if stage.end_step <= first_step:
            continue
        rows = stage_rows(plan, manifest, stage)
        count = len(rows) * (1 + stage.augment.copies)
        classes = _sampled(plan, np.tile(manifest.labels[rows], 1 + stage.augment.copies))
        seed, first, size = plan.recipe.seed, stage.first_pass, stage.batch_size
        for step in range(max(first_step, stage.first_step), stage.end_step):
            if classes is None:
                places, passes = batch_places(seed, count, first, size, step - stage.first_step)
                views = np.zeros(size, np.int64)
            else:
                places, passes, views = sampled_places(seed, classes, first, size, step - stage.first_step)
            copies, within = np.divmod(places, len(rows))
            if stage.augment.copies:
                passes = np.where((copies > 0) | (views > 0), _COPY_PASS + copies, _UNAUGMENTED)
            spec = _train_spec(plan, manifest, stage, step, rows[within], _viewed(passes, views))
            yield replace(spec, unread=True) if stage.index in unread else spec


def has_fixed_views(stage: StagePlan) -> bool:
    """Whether the stage sees a picture in every pass as in the first, and nothing of another in it."""
    augment, mix = stage.augment, stage.mix
    if augment.crop != "none" or augment.flip or augment.copies or ((mix.mixup or mix.cutmix) and mix.probability):
        return False
    return draw(augment, 0, np.zeros(1, np.int64), np.zeros(1, np.int64), stage.image_size) is None


def whole_specs(plan: Plan, manifest: Manifest, stage: StagePlan, split: str) -> Iterator[BatchSpec]:
    """Every picture of ``split`` once, in the manifest's order, as the stage sees it: where ``split`` is "train", those that
    it trains on, for a stage that sees pictures alike."""
    if split != "train":
        yield from eval_specs(plan, manifest, stage, split)
        return
    rows = stage_rows(plan, manifest, stage)
    for at in range(0, len(rows), stage.micro_batch_size):
        chosen = rows[at : at + stage.micro_batch_size]
        yield _train_spec(plan, manifest, stage, at, chosen, np.zeros(len(chosen), np.int64))


def recalibration_specs(plan: Plan, manifest: Manifest, stage: StagePlan, num_images: int) -> Iterator[BatchSpec]:
    """Training views of ``num_images`` (or all) of a stage's pictures in full batches, to re-estimate statistics from;
    classes come as often as the stage sees them."""
    rows = stage_rows(plan, manifest, stage)
    own_key, classes = key(plan.recipe.seed, Stream.RECALIBRATE), _sampled(plan, manifest.labels[rows])
    order = permutation(own_key, len(rows))
    size = min(stage.micro_batch_size, len(rows))
    count = max(1, min(num_images, len(rows)) // size)
    for at in range(count):
        places, views = order[at * size : (at + 1) * size], np.zeros(size, np.int64)
        if classes is not None:
            places, _, views = sampled_places(own_key, classes, 0, size, at)
        passes = _viewed(np.full(size, _RECALIBRATION_PASS), views)
        yield _train_spec(plan, manifest, stage, at, rows[places], passes)


def _sampled(plan: Plan, labels: NDArray[np.int32]) -> SampledClasses | None:
    """The classes of a stage's places where they are not seen as often as they come."""
    return None if plan.recipe.sampling == "natural" else sampled_classes(labels, plan.recipe.sampling)


def _viewed(passes: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
    return passes + views % _MOST_REPEATS * _REPEAT


def eval_specs(
    plan: Plan, manifest: Manifest, stage: StagePlan, split: str, *, most: int | None = None, unread: bool = False
) -> Iterator[BatchSpec]:
    """Every picture of ``split`` exactly once, in the manifest's order, as the evaluation sees it in ``stage``.

    In batches of ``most`` pictures; None: the stage's micro-batches. ``unread`` pictures are not read.
    """
    rows = manifest.rows(split)
    size, most = eval_image_size(plan, stage), most or stage.micro_batch_size
    for at in range(0, len(rows), most):
        chosen = rows[at : at + most]
        geometry = eval_geometry(plan.recipe.eval, manifest.widths[chosen], manifest.heights[chosen])
        spec = _spec(plan, manifest, at // most, chosen, geometry, size, exact=True)
        yield replace(spec, unread=unread)


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
    if (passes == _UNAUGMENTED).any():
        same = np.flatnonzero(passes == _UNAUGMENTED)
        geometry.put(same, eval_geometry(plan.recipe.eval, manifest.widths[rows[same]], manifest.heights[rows[same]]))
        changed = drawn_for = np.flatnonzero(passes != _UNAUGMENTED)
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
