"""One update: numerics only, no clock, no files.

The order inside an update is fixed: for each lane seed, augment, normalise, mix, forward and backward; then add the lanes,
unscale, clip, step, average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stagewright.augment.mixing import MixDraw, MixedBatch
from stagewright.data.batches.batch import Batch, lane_of
from stagewright.engine.compile import Compiled
from stagewright.engine.fed import mixing_at, network_batch
from stagewright.engine.lanes import Lanes, single_image_error
from stagewright.engine.loss import mixed_losses
from stagewright.engine.numerics import Numerics
from stagewright.engine.optim import set_hyper
from stagewright.engine.state import TrainState
from stagewright.plan.lanes import lane_starts
from stagewright.plan.plan import Hyper, Plan, StagePlan
from stagewright.rng import Stream, torch_seed

Network = Callable[[Tensor], Tensor]


def update(
    state: TrainState,
    plan: Plan,
    stage: StagePlan,
    batch: Batch,
    numerics: Numerics,
    *,
    hyper: Hyper | None = None,
    lanes: int | Lanes | None = None,
    forward: Network | None = None,
) -> Tensor:
    """Carries out update ``batch.step`` of ``plan``, which is in ``stage``; returns what :func:`train_step` returns.

    Mixing and seeds follow from the plan and the step. ``hyper`` and ``lanes`` replace the plan's own; ``forward`` as for
    :func:`train_step`. RecipeError where batch norm is given a single value per channel.
    """
    step, lanes = batch.step, lanes or stage.lanes
    count = lanes if isinstance(lanes, int) else lanes.count
    made = Lanes(state.model, count) if count > 1 and isinstance(lanes, int) else None
    try:
        return train_step(
            state,
            batch,
            hyper or stage.hyper(step),
            mixing_at(plan, stage, step, count),
            seeds=[torch_seed(plan.recipe.seed, Stream.MODEL, step, lane) for lane in range(count)],
            lanes=made if isinstance(lanes, int) else lanes,
            numerics=numerics,
            forward=forward,
        )
    except ValueError as error:
        if (explained := single_image_error(error, stage, count)) is None:
            raise
        raise explained from error
    finally:
        if made is not None:
            made.close()


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    draw: MixDraw,
    *,
    seeds: Sequence[int],
    numerics: Numerics,
    lanes: Lanes | None = None,
    forward: Network | None = None,
) -> Tensor:
    """Carries out one update and returns (loss, top-1 share, gradient norm), float32 of shape (3,), on the device.

    ``batch`` is on the model's device; ``forward`` is the part of the network that takes it, None for all of it. ``seeds`` make
    dropout and drop-path functions of (seed, step, lane); there is one for each lane of the update. With more than one,
    ``lanes`` says which of them this process carries out, and ``batch`` has the images of these; ``draw`` is that of the whole
    update. The loss is the mean over all readable images of the update. Nothing is copied to the host (but by fp16's scaler).
    """
    set_hyper(state.optimizer, lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay)
    network = state.forward if forward is None else forward
    if lanes is None:
        torch.manual_seed(seeds[0])
        mixed = network_batch(batch, draw, numerics)
        sums = _backward(state, network, mixed, hyper, numerics, mixed.weight.sum().clamp(min=1.0))
    else:
        sums = _in_lanes(state, network, batch, hyper, draw, seeds, numerics, lanes)
    grad_norm = _clip(state, hyper.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.average.update(state.model, hyper.average_weight)
    return torch.stack([*sums, grad_norm.to(sums[0].dtype)])


def _backward(
    state: TrainState, network: Network, mixed: MixedBatch, hyper: Hyper, numerics: Numerics, divisor: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of the loss of ``mixed``; returns (loss, top-1 share), the sums over its images over ``divisor``."""
    with numerics.autocast(mixed.images.device):
        logits = network(mixed.images)
    losses = mixed_losses(logits.float(), mixed, numerics.loss, hyper.label_smoothing, numerics.class_weights)
    loss = (losses * mixed.weight).sum() / divisor
    state.scaler.scale(loss).backward()
    return loss.detach(), _mixed_correct(logits.detach(), mixed) / divisor


def _in_lanes(
    state: TrainState,
    network: Network,
    batch: Batch,
    hyper: Hyper,
    draw: MixDraw,
    seeds: Sequence[int],
    numerics: Numerics,
    lanes: Lanes,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of all lanes of an update; returns (loss, top-1 share) over its readable images."""
    planned = len(draw.partner)
    starts = lane_starts(planned, len(seeds))
    first = starts[lanes.own.start]
    with lanes.update():
        for lane in lanes.own:
            start, end = starts[lane], starts[lane + 1]
            with lanes.lane() as numbers:
                torch.manual_seed(seeds[lane])
                # Each lane has tensors of its own: what it computes must not depend on which others are beside it.
                mixed = network_batch(lane_of(batch, start - first, end - first), draw.of(start, end), numerics)
                sums = _backward(state, network, mixed, hyper, numerics, float(planned))
                if isinstance(network, Compiled):
                    network.keep_gradients()
                numbers.append(torch.stack([*sums, mixed.weight.sum()]).float())
    loss, correct, readable = lanes.finish(3).unbind()
    # Lanes do not know how many images of the others could be read, so each divides by the planned number.
    factor = planned / readable.clamp(min=1.0)
    if factor.device.type != "cpu" or float(factor) != 1.0:  # on a GPU, to look would cost more than to multiply by 1
        gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
    return loss * factor, correct * factor


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
