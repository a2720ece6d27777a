"""Builds the training state of a plan: model on the device, initial weights, optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from stagewright.engine.compile import Compiled
from stagewright.engine.cut import linear_cut
from stagewright.engine.initial_weights import InitialWeights, initial_weights
from stagewright.engine.lane_check import check_buffers
from stagewright.engine.lanes import single_image_error
from stagewright.engine.numerics import takes_channels_last
from stagewright.engine.optim import make_optimizer
from stagewright.engine.own_loss import check_loss
from stagewright.engine.state import TrainState
from stagewright.errors import ModelError
from stagewright.model.catalog import find_model
from stagewright.model.groups import apply_trainable, parameter_groups, set_train_mode, trainable_names
from stagewright.model.own import check_own
from stagewright.model.weights import WeightsReport, load_weights
from stagewright.model.zoo import check_image_sizes, create_outline, create_with_report
from stagewright.plan.plan import Plan, StagePlan, eval_image_size
from stagewright.rng import Stream, torch_seed
from stagewright.system.memory import num_bytes
from stagewright.system.named_functions import is_named


def build_model(plan: Plan, *, pretrained: bool) -> tuple[nn.Module, WeightsReport | None]:
    """Builds the recipe's network on the CPU and returns it with the report on the ``pretrained`` weights.

    The initial weights are a function of the recipe's seed. Raises ModelError if the network does not accept one of the
    plan's image sizes, so that this is known before training.
    """
    spec = plan.recipe.model
    torch.manual_seed(torch_seed(plan.recipe.seed, Stream.INIT))
    model, report = create_with_report(
        spec.name,
        len(plan.dataset.classes),
        image_size=max(stage.image_size for stage in plan.stages),
        drop_path=spec.drop_path,
        options=spec.options,
        pretrained=pretrained,
    )
    if is_named(spec.name):
        check_own(spec.name, model, len(plan.dataset.classes), plan.stages[0].image_size, memory_format(plan, model))
    sizes = {size for stage in plan.stages for size in (stage.image_size, eval_image_size(plan, stage))}
    check_image_sizes(model, sizes, len(plan.dataset.classes))
    for stage in plan.stages:
        if stage.fit == "updates" and stage.batch_size // stage.lanes == 1:
            _check_single_image(model, stage)
    return model, report


def _check_single_image(model: nn.Module, stage: StagePlan) -> None:
    """RecipeError where ``model`` cannot train on one image at a time in ``stage``."""
    trial = copy.deepcopy(model)
    apply_trainable(trial, stage.train)
    set_train_mode(trial, stage.norm)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            trial(torch.zeros(1, 3, stage.image_size, stage.image_size))
    except ValueError as error:
        if (explained := single_image_error(error, stage, stage.lanes)) is None:
            raise
        raise explained from error


def check_trained(plan: Plan) -> None:
    """Raises ModelError if ``train`` of a stage of ``plan`` does not fit the network: a pattern without a match, or more blocks
    than it has. The network is built without memory; one that a user's function makes is checked when the run begins."""
    spec = plan.recipe.model
    patterns = {stage.train: stage.name for stage in plan.stages if stage.train not in ("all", "head")}
    if not patterns or is_named(spec.name):
        return
    size = max(stage.image_size for stage in plan.stages)
    model = create_outline(spec.name, len(plan.dataset.classes), image_size=size, options=spec.options)
    for train, name in patterns.items():
        try:
            trainable_names(model, train)
        except ModelError as error:
            raise ModelError(f"stage {name!r}: {error.given}", error.allowed, error.remedy) from None


def build_state(
    plan: Plan,
    device: torch.device,
    content: dict[str, Any] | None = None,
    *,
    finished: Mapping[str, Tensor] | None = None,
) -> tuple[TrainState, InitialWeights | None]:
    """Returns the training state on ``device``, and the facts about its initial weights.

    The state is that before the plan's first step, or, with ``content`` (:meth:`TrainState.content`, from a checkpoint), the
    restored one, without such facts. With ``finished``, the tensors of a finished model, it is good for evaluations alone.
    """
    spec, classes = plan.recipe.model, plan.dataset.classes
    fresh = content is None and finished is None
    model, report = build_model(plan, pretrained=fresh and spec.weights == "default")
    if fresh and spec.weights not in (None, "default"):
        report = load_weights(model, Path(spec.weights), len(classes), classes=classes)
    if finished is not None:
        model.load_state_dict(finished)
    # This raises for any stage whose ``train`` does not fit the model.
    facts = initial_weights(plan, model, report, find_model(spec.name).note)
    for stage in plan.stages:
        if stage.fit == "optimum":
            _check_linear_head(model, stage)
    check_buffers(model, plan)
    model = model.to(device)
    model = model.to(memory_format=memory_format(plan, model))  # pyright: ignore[reportCallIssue]
    chosen, hyper = plan.recipe.optimizer, plan.hyper(0)
    optimizer = make_optimizer(
        parameter_groups(model, chosen.weight_decay, chosen.decay_norm_and_bias, chosen.layer_decay),
        chosen.name,
        lr=hyper.lr,
        momentum=hyper.momentum,
        nesterov=chosen.nesterov,
        options=chosen.options,
    )
    if is_named(plan.recipe.loss):
        check_loss(plan.recipe.loss, len(plan.dataset.classes), device)
    forward = Compiled(model, plan, device) if plan.recipe.compile else model
    state = TrainState(model, forward, optimizer, GradScaler(device.type, enabled=plan.precision == "fp16"))
    if content is not None:
        state.restore(content)
    return state, facts if fresh else None


def _check_linear_head(model: nn.Module, stage: StagePlan) -> None:
    """ModelError unless the head of ``model`` is one linear layer, so that ``stage`` can find its optimum."""
    with torch.random.fork_rng(devices=[]):
        linear_cut(model, torch.zeros(2, 3, stage.image_size, stage.image_size))


def memory_format(plan: Plan, model: nn.Module) -> torch.memory_format:
    """How images and weights of ``model`` lie in memory while it trains on its device."""
    channels_last = plan.recipe.channels_last and takes_channels_last(model)
    return torch.channels_last if channels_last else torch.contiguous_format


def checkpoint_bytes(state: TrainState, plan: Plan) -> int:
    """Returns an upper bound of the bytes that a run's checkpoints take on disk.

    Each checkpoint holds the model's tensors, the optimizer's state and, if a stage averages weights, the average.
    """
    own = num_bytes(state.model.state_dict())
    slots = 2 if "betas" in state.optimizer.defaults else 1
    averaged = any(stage.average.kind != "none" for stage in plan.stages)
    one = own * (1 + slots + averaged)
    # The number that the recipe keeps, the best one, that of the head alone, and a new one, which is verified before an old
    # one is deleted.
    return one * (plan.recipe.checkpoints.keep + 2 + plan.compares_head)
