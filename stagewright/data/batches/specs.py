"""Makes the batch specifications of a plan: the images, crops and augmentations of every step.

All functions are pure. Nothing depends on the number of workers, on the prefetch, or on where a run was interrupted: the
specification of step s is the same whichever step the stream starts with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stagewright.augment.draw import draw
from stagewright.augment.geometry import Geometry, eval_geometry, train_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.blocked_order import PlacesByBlock, Updates, blocked_places, places_by_block
from stagewright.data.batches.order import SampledClasses, batch_places, sampled_classes, sampled_places, subset
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.rng import Stream, key, permutation

# An image's augmentation is keyed by (seed, pass, row). These numbers are used as the pass, so that no two uses of an image
# have the same key. Natural sampling uses the number of the pass (below 2**40). Sampling by class adds _REPEAT * v for the
# v-th repeat of an image within the pass (the sum is below 2**60). Augmented copies, which are the same in every pass, count
# from _COPY_PASS. Batches that re-estimate batch-norm statistics count from _RECALIBRATION_PASS.
_REPEAT = 2**40
_MOST_REPEATS = 2**20
_COPY_PASS = 2**61
_RECALIBRATION_PASS = 2**62
# Used as the pass of an image without augmentation: it is cropped as in the evaluation.
_UNAUGMENTED = -1


def stage_rows(plan: Plan, manifest: Manifest, stage: StagePlan) -> NDArray[np.int64]:
    """Returns the manifest rows that a stage trains on: a stratified, nested subset of the training split."""
    train = manifest.rows("train")
    return train[subset(plan.recipe.seed, manifest.labels[train], stage.data_fraction)]


def train_specs(
    plan: Plan, manifest: Manifest, first_step: int, unread: frozenset[int] = frozenset()
) -> Iterator[BatchSpec]:
    """Yields one specification for each step from ``first_step`` to the end of the plan, across all stages.

    Stages whose index is in ``unread`` get specifications with ``unread=True``, for which no images are read. So does a stage
    that finds an optimum: its update uses features of all its images, in the manifest's order.
    """
    for stage in plan.stages:
        if stage.end_step <= first_step:
            continue
        rows = stage_rows(plan, manifest, stage)
        if stage.fit == "optimum":
            spec = _train_spec(plan, manifest, stage, stage.first_step, rows, np.zeros(len(rows), np.int64))
            yield replace(spec, unread=True)
            continue
        count = len(rows) * (1 + stage.augment.copies)
        classes = _sampled(plan, np.tile(manifest.labels[rows], 1 + stage.augment.copies))
        blocks = stage_blocks(plan, manifest, stage)
        seed, first, size = plan.recipe.seed, stage.first_pass, stage.batch_size
        for step in range(max(first_step, stage.first_step), stage.end_step):
            if blocks is not None:
                places, passes = blocked_places(seed, blocks, updates_of(stage), first, step - stage.first_step)
                views = np.zeros(size, np.int64)
            elif classes is None:
                places, passes = batch_places(seed, count, first, size, step - stage.first_step)
                views = np.zeros(size, np.int64)
            else:
                places, passes, views = sampled_places(seed, classes, first, size, step - stage.first_step)
            copies, within = np.divmod(places, len(rows))
            fixed = None
            if stage.augment.copies:
                passes = np.where((copies > 0) | (views > 0), _COPY_PASS + copies, _UNAUGMENTED)
            if stage.cache_views:
                fixed = (passes - first + views) % stage.cache_views
                passes, views = first + fixed, np.zeros(size, np.int64)
            spec = _train_spec(plan, manifest, stage, step, rows[within], _viewed(passes, views))
            yield replace(spec, views=fixed, unread=stage.index in unread)


def stage_blocks(plan: Plan, manifest: Manifest, stage: StagePlan) -> PlacesByBlock | None:
    """Returns the places of a stage by block, of which augmented copies are in the block of their image; None if the order is
    full. ValueError if the manifest has no blocks."""
    if plan.recipe.order == "full":
        return None
    if manifest.blocks is None:
        raise ValueError("order: blocked with a manifest that has no blocks")
    return _blocks_of_places(manifest, plan.recipe.seed, stage.data_fraction, 1 + stage.augment.copies)


@lru_cache(maxsize=2)  # whoever looks ahead asks for the same ones
def _blocks_of_places(manifest: Manifest, seed: int, fraction: float, times: int) -> PlacesByBlock:
    assert manifest.blocks is not None
    train = manifest.rows("train")
    return places_by_block(np.tile(manifest.blocks[train[subset(seed, manifest.labels[train], fraction)]], times))


def updates_of(stage: StagePlan) -> Updates:
    """Returns how a stage divides its images into updates and lanes."""
    return Updates(stage.batch_size, stage.lanes)


def has_fixed_views(stage: StagePlan) -> bool:
    """Returns True if an image is the same in every pass of the stage: no random crop or flip, augmentation, copies or mixing.

    Where ``fit`` is ``optimum``, flips are not random: they mean that the mirror image is a second view.
    """
    augment, mix = stage.augment, stage.mix
    flips = augment.flip and stage.fit == "updates"
    if augment.crop != "none" or flips or augment.copies or ((mix.mixup or mix.cutmix) and mix.probability):
        return False
    return draw(augment, 0, np.zeros(1, np.int64), np.zeros(1, np.int64), stage.image_size) is None


def whole_specs(
    plan: Plan, manifest: Manifest, stage: StagePlan, split: str, *, mirrored: bool = False
) -> Iterator[BatchSpec]:
    """Yields specifications with every image of ``split`` once, in the manifest's order, cropped as in ``stage``, and with
    ``mirrored`` flipped horizontally (only for the split "train").

    For the split "train", these are only the images that the stage trains on. If the stage has several fixed views of an image
    (``cache_views``), all images come once for each of them: view v is what pass v of the stage would have drawn. Otherwise
    :func:`has_fixed_views` must be True.
    """
    if split != "train":
        yield from eval_specs(plan, manifest, stage, split)
        return
    rows, size = stage_rows(plan, manifest, stage), stage.micro_batch_size
    for view in range(max(1, stage.cache_views)):
        for at in range(0, len(rows), size):
            chosen = rows[at : at + size]
            spec = _train_spec(plan, manifest, stage, at, chosen, np.full(len(chosen), stage.first_pass + view))
            if stage.fit == "optimum":
                spec = replace(spec, geometry=replace(spec.geometry, flips=np.full(len(chosen), mirrored)))
            yield spec


def recalibration_specs(plan: Plan, manifest: Manifest, stage: StagePlan, num_images: int) -> Iterator[BatchSpec]:
    """Yields specifications of augmented training images to re-estimate batch-norm statistics with, in full batches.

    Uses ``num_images`` images of the stage, or all if it has fewer, rounded down to full batches. Classes have the same
    frequencies as in the stage.
    """
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
    """Returns the class slots of a stage's places, or None with natural sampling."""
    return None if plan.recipe.sampling == "natural" else sampled_classes(labels, plan.recipe.sampling)


def _viewed(passes: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
    return passes + views % _MOST_REPEATS * _REPEAT


def eval_specs(
    plan: Plan, manifest: Manifest, stage: StagePlan, split: str, *, most: int | None = None, unread: bool = False
) -> Iterator[BatchSpec]:
    """Yields specifications with every image of ``split`` exactly once, in the manifest's order, cropped for evaluation.

    Batches have at most ``most`` images; None means the micro-batch size of ``stage``. With ``unread``, no images are read.
    """
    rows, most = manifest.rows(split), most or stage.micro_batch_size
    for at in range(0, len(rows), most):
        yield replace(eval_view(plan, manifest, stage, rows[at : at + most], at // most), unread=unread)


def eval_view(plan: Plan, manifest: Manifest, stage: StagePlan, rows: NDArray[np.int64], number: int = 0) -> BatchSpec:
    """Returns the specification, with the given ``number`` as its step, of the images ``rows`` as an evaluation after ``stage``
    sees them."""
    geometry = eval_geometry(plan.recipe.eval, manifest.widths[rows], manifest.heights[rows])
    return _spec(plan, manifest, number, rows, geometry, eval_image_size(plan, stage), exact=True)


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
