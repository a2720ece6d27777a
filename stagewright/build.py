"""From a plan to a state ready for its first step: device, model, weights, optimizer."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from stagewright import checkpoint
from stagewright.compiled import Compiled
from stagewright.data.manifest import Manifest
from stagewright.data.stream import eval_image_size
from stagewright.errors import RecipeError
from stagewright.loss import class_weights
from stagewright.machine import keep_memory
from stagewright.memory import num_bytes
from stagewright.model.catalog import find_model
from stagewright.model.groups import parameter_groups, trainable_names
from stagewright.model.weights import load_weights
from stagewright.model.zoo import check_image_sizes, create_with_report, model_normalisation
from stagewright.optim import make_optimizer
from stagewright.plan import Plan, Precision
from stagewright.recipe import Recipe
from stagewright.rng import Stream, torch_seed
from stagewright.state import TrainState
from stagewright.step import Numerics

_REGISTER = 16
"""Floats in the widest vector register of a CPU."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def choose_device(asked: str) -> torch.device:
    """The device named, or for ``auto`` CUDA where there is some; RecipeError for a device that is not there."""
    available = ["cpu"] + [f"cuda:{at}" for at in range(torch.cuda.device_count())]
    if asked == "auto":
        return torch.device("cuda" if len(available) > 1 else "cpu")
    if asked not in available and not (asked == "cuda" and len(available) > 1):
        raise RecipeError(f"--device {asked}", f"auto, {', '.join(available)} on this machine", "choose one of them")
    return torch.device(asked)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it; for a CPU the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def auto_precision(device: torch.device) -> Precision:
    """What ``precision: auto`` means: bf16 on CUDA that has it in hardware, fp16 on older, fp32 on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def prepare_torch(recipe: Recipe, device: torch.device) -> None:
    """Switches of the process: TF32 and kernel search where speed is wanted, deterministic kernels where bits are."""
    if device.type != "cuda":
        keep_memory()
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def numerics_of(plan: Plan, model: nn.Module, manifest: Manifest | None = None) -> Numerics:
    """Normalisation, precision, memory format and loss of a plan whose ``model`` is on its device.

    Class weights hang on how many pictures each class has: without ``manifest`` there are none, as where speed or memory alone
    is asked for.
    """
    recipe = plan.recipe
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if recipe.model.weights is not None:
        mean, std = model_normalisation(recipe.model.name)
    channels_last = recipe.channels_last and takes_channels_last(model)
    weights = None if manifest is None else class_weights(recipe, manifest)
    if weights is not None:
        weights = weights.to(next(model.parameters()).device)
    return Numerics(recipe.mean or mean, recipe.std or std, plan.precision, channels_last, recipe.loss, weights)


def takes_channels_last(model: nn.Module) -> bool:
    """Whether ``model`` may lie in memory with the channels last on its device.

    On a CPU not where a strided 1x1 convolution has fewer channels than a vector register: in that layout oneDNN's gradient
    of its weights writes past its workspace, which ends the process or, worse, only spoils the gradient
    (github.com/uxlfoundation/oneDNN, issue 6035; seen here with 4 and 8 channels, torch 2.15).
    """
    if next(model.parameters()).device.type != "cpu":
        return True
    return not any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and max(part.stride) > 1
        and part.in_channels // part.groups < _REGISTER
        for part in model.modules()
    )


def build_model(plan: Plan, *, pretrained: bool) -> tuple[nn.Module, list[str]]:
    """The recipe's network on the CPU, its initial weights a function of the seed, and what to say of it.

    ModelError for sizes that it cannot take, before anything is trained.
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
    sizes = {size for stage in plan.stages for size in (stage.image_size, eval_image_size(plan, stage))}
    check_image_sizes(model, sizes, len(plan.dataset.classes))
    note = find_model(spec.name).note
    return model, [*([note] if note else []), *(report.lines() if report else [])]


def build_state(
    plan: Plan, device: torch.device, restored: checkpoint.Checkpoint | None
) -> tuple[TrainState, list[str]]:
    """The state before the plan's first step, or that of the checkpoint; and what there is to say of the weights."""
    weights = plan.recipe.model.weights
    fresh = restored is None
    model, lines = build_model(plan, pretrained=fresh and weights == "default")
    if not fresh:
        lines = []
    elif weights not in (None, "default"):
        classes = plan.dataset.classes
        lines.extend(load_weights(model, Path(weights), len(classes), classes=classes).lines())
    for stage in plan.stages:
        trainable_names(model, stage.train)  # what a later stage cannot mean is told of now
    model = model.to(device)
    channels_last = plan.recipe.channels_last and takes_channels_last(model)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    chosen, hyper = plan.recipe.optimizer, plan.hyper(0)
    optimizer = make_optimizer(
        parameter_groups(model, chosen.weight_decay, chosen.decay_norm_and_bias, chosen.layer_decay),
        chosen.name,
        lr=hyper.lr,
        momentum=hyper.momentum,
        nesterov=chosen.nesterov,
        options=chosen.options,
    )
    forward = Compiled(model, plan, device) if plan.recipe.compile else model
    state = TrainState(model, forward, optimizer, GradScaler(device.type, enabled=plan.precision == "fp16"))
    if restored is not None:
        state.restore(restored.tensors)
    return state, lines


def checkpoint_bytes(state: TrainState, plan: Plan) -> int:
    """Bytes that a run's checkpoints will take on disk at most: parameters, optimizer state and average, each kept."""
    own = num_bytes(state.model.state_dict())
    slots = 2 if "betas" in state.optimizer.defaults else 1
    averaged = any(stage.average.kind != "none" for stage in plan.stages)
    one = own * (1 + slots + averaged)
    # the kept ones, the best, and the new one that stands beside them while it is verified
    return one * (plan.recipe.checkpoints.keep + 2)
