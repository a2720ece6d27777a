"""One update: numerics only, no clock, no files.

The order inside an update is fixed: seed, augment, normalise, mix, forward and backward by micro-batches, unscale,
clip, step, average.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from stagewright.augment.mixing import MixDraw, MixedBatch
from stagewright.data.batches.batch import Batch
from stagewright.engine.compile import Compiled
from stagewright.engine.fed import mixing_at, network_batch
from stagewright.engine.loss import mixed_losses
from stagewright.engine.micro_batches import micro_batch_sizes, single_image_error
from stagewright.engine.numerics import Numerics
from stagewright.engine.optim import set_hyper
from stagewright.engine.state import TrainState
from stagewright.plan.plan import Hyper, Plan, StagePlan
from stagewright.rng import Stream, torch_seed


def update(
    state: TrainState,
    plan: Plan,
    stage: StagePlan,
    batch: Batch,
    numerics: Numerics,
    *,
    hyper: Hyper | None = None,
    micro_batch_size: int | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Carries out update ``batch.step`` of ``plan``, which is in ``stage``; returns what :func:`train_step` returns.

    Mixing and the seed follow from the plan and the step. ``hyper`` and ``micro_batch_size`` replace the plan's own;
    ``forward`` as for :func:`train_step`. RecipeError where batch norm is given a single value per channel.
    """
    step = batch.step
    micro_batch_size = micro_batch_size or stage.micro_batch_size
    try:
        return train_step(
            state,
            batch,
            hyper or stage.hyper(step),
            mixing_at(plan, stage, step),
            seed=torch_seed(plan.recipe.seed, Stream.MODEL, step, 0),
            micro_batch_size=micro_batch_size,
            numerics=numerics,
            forward=forward,
        )
    except ValueError as error:
        if (explained := single_image_error(error, stage, micro_batch_size)) is None:
            raise
        raise explained from error


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    draw: MixDraw,
    *,
    seed: int,
    micro_batch_size: int,
    numerics: Numerics,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Carries out one update and returns (loss, top-1 share, gradient norm), float32 of shape (3,), on the device.

    ``batch`` stands on the model's device; ``forward`` is the part of the network that takes it, None for all of it.
    ``seed`` makes dropout and drop-path functions of (seed, step, rank). The update is that of the whole batch whatever
    ``micro_batch_size`` is: each part's loss is divided by the weight of the whole batch, so a smaller last part counts for
    what it holds. Nothing is copied to the host (but by fp16's scaler).
    """
    torch.manual_seed(seed)
    set_hyper(state.optimizer, lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay)
    mixed = network_batch(batch, draw, numerics)
    total_weight = mixed.weight.sum().clamp(min=1.0)
    loss_sum = correct_sum = torch.zeros((), device=mixed.images.device)
    network, parts = state.forward if forward is None else forward, _parts(mixed, micro_batch_size)
    for at, part in enumerate(parts):
        with numerics.autocast(mixed.images.device):
            logits = network(part.images)
        losses = mixed_losses(logits.float(), part, numerics.loss, hyper.label_smoothing, numerics.class_weights)
        loss = (losses * part.weight).sum() / total_weight
        state.scaler.scale(loss).backward()
        if at == 0 and len(parts) > 1 and isinstance(network, Compiled):
            network.keep_gradients()
        loss_sum = loss_sum + loss.detach()
        correct_sum = correct_sum + _mixed_correct(logits.detach(), part) / total_weight
    grad_norm = _clip(state, hyper.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.average.update(state.model, hyper.average_weight)
    return torch.stack([loss_sum, correct_sum, grad_norm.to(loss_sum.dtype)])


def _mixed_correct(logits: Tensor, part: MixedBatch) -> Tensor:
    """Returns the sum over the samples of the share that the predicted class has in the mixed target."""
    top = logits.argmax(dim=1)
    share = part.lam * (top == part.labels_a) + (1.0 - part.lam) * (top == part.labels_b)
    return (share * part.weight).sum()


def _clip(state: TrainState, clip_norm: float | None) -> Tensor:
    """Unscales the gradients, clips them to ``clip_norm`` and returns their global norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _parts(mixed: MixedBatch, size: int) -> list[MixedBatch]:
    if size >= len(mixed.images):
        return [mixed]
    sizes = micro_batch_sizes(len(mixed.images), size)
    slices = [slice(end - count, end) for count, end in zip(sizes, accumulate(sizes), strict=True)]
    return [
        MixedBatch(mixed.images[at], mixed.labels_a[at], mixed.labels_b[at], mixed.lam, mixed.weight[at])
        for at in slices
    ]
