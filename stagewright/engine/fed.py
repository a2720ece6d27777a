"""What the network is fed at a step: the images of its batch, augmented, normalised and mixed.

The training loop makes its input with the same functions (:func:`network_batch`, :func:`mixing_at`), so what is made here for a
step are the bits that a training on the same device gives to the network at that step.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagewright.augment.mixing import MixDraw, MixedBatch, apply_mix, draw_mix
from stagewright.data.batches.batch import Batch, BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.specs import eval_view, train_specs
from stagewright.data.batches.transfer import on_device
from stagewright.data.batches.workers import auto_workers
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.engine.numerics import Numerics, normalisation
from stagewright.plan.plan import Plan, StagePlan

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """N images as the network is fed them at a step, and what they were made of."""

    stage: StagePlan
    step: int
    """Number of the update, from 0 over the run."""
    rows: Rows
    """int64 (N,): manifest row of each image."""
    partners: Rows
    """int64 (N,): manifest row of the image that is mixed into it; equal to ``rows`` if nothing is mixed."""
    mixed: MixedBatch
    """The network's input, float32 (N, 3, S, S), with labels, ``lam`` and weights."""
    draw: MixDraw
    """How the batch was mixed."""
    numerics: Numerics


def mixing_at(plan: Plan, stage: StagePlan, step: int, lanes: int | None = None) -> MixDraw:
    """Returns how the batch of update ``step``, which is in ``stage``, is mixed; ``lanes`` replaces the planned number."""
    lanes = lanes or stage.lanes
    return draw_mix(stage.mix, plan.recipe.seed, step, stage.batch_size, stage.image_size, lanes)


def network_batch(batch: Batch, draw: MixDraw, numerics: Numerics) -> MixedBatch:
    """Returns what the network is fed of ``batch``, which is on the network's device: augmented, normalised, mixed."""
    return apply_mix(numerics.network_input(batch), batch.labels, batch.valid, draw)


def fed_at(
    plan: Plan,
    manifest: Manifest,
    images: Images,
    step: int,
    *,
    first: int | None = None,
    device: torch.device | None = None,
) -> Fed:
    """Returns what the network is fed at update ``step``, from 0 over the run; ValueError outside of the plan.

    Without ``first``, it is the whole batch. With it, only the first images of the batch and their partners are read; they are
    the same, up to rounding by a user's function that depends on its batch. A stage that finds an optimum has one update, of
    all its images: of those, ``first`` (None: a micro-batch) are returned, evenly spread. ``images`` are in the order of
    ``manifest``; those that cannot be read are black and have the weight 0. ``device`` augments; None means the CPU.
    """
    stage = plan.stage_at(step)
    spec = next(train_specs(plan, manifest, step))
    if stage.fit == "optimum":
        count = min(first or stage.micro_batch_size, len(spec.rows))
        plain = replace(spec.geometry, flips=np.zeros_like(spec.geometry.flips))
        spec = replace(spec, unread=False, geometry=plain).taken(
            np.linspace(0, len(spec.rows) - 1, count).astype(np.int64)
        )
        draw = MixDraw("none", 1.0, None, np.arange(count, dtype=np.int64))
    else:
        draw = mixing_at(plan, stage, step)
        count = len(spec.rows) if first is None else min(first, len(spec.rows))
    partners = spec.rows[draw.partner[:count]]
    if count < len(spec.rows):
        places = np.arange(count)
        if draw.kind != "none":
            places = np.concatenate([places, draw.partner[:count]])
            draw = replace(draw, partner=np.tile(np.arange(count, 2 * count), 2))
        spec = spec.taken(places)
    numerics = Numerics(*normalisation(plan.recipe), "fp32", plan.recipe.channels_last)
    mixed = network_batch(on_device(_loaded(spec, manifest, images), device or torch.device("cpu")), draw, numerics)
    parts = (mixed.images[:count], mixed.labels_a[:count], mixed.labels_b[:count], mixed.lam, mixed.weight[:count])
    return Fed(stage, step, spec.rows[:count], partners, MixedBatch(*parts), draw, numerics)


def evaluation_views(plan: Plan, manifest: Manifest, images: Images, stage: StagePlan, rows: Rows) -> NDArray[np.uint8]:
    """Returns the images of ``rows`` (N,) as an evaluation after ``stage`` sees them, before normalisation: uint8 (N, E, E, 3).

    Those that cannot be read are black.
    """
    return _pixels(_loaded(eval_view(plan, manifest, stage, rows), manifest, images).images)


def levels(images: Tensor, numerics: Numerics) -> NDArray[np.uint8]:
    """Returns normalised ``images``, float (N, 3, S, S), as 8-bit pixels for people: uint8 (N, S, S, 3).

    Of images that are not mixed, these are the pixels before normalisation.
    """
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (numerics.mean, numerics.std))
    return _pixels(((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8))


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def _loaded(spec: BatchSpec, manifest: Manifest, images: Images) -> Batch:
    with closing(load_batches(images, [spec], workers=auto_workers(manifest))) as batches:
        return next(batches)
