"""Precision, memory format and normalisation: what numbers an update is computed in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from stagewright.augment.normalise import augment_some, normalise
from stagewright.data.batches.batch import Batch
from stagewright.data.manifest import Manifest
from stagewright.engine.loss import LossName, class_weights
from stagewright.model.zoo import model_normalisation
from stagewright.plan.plan import Plan, Precision
from stagewright.recipe.recipe import Recipe
from stagewright.system.machine import disable_malloc_trim

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REGISTER = 16
"""Floats in the widest vector register of a CPU."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a batch becomes numbers: normalisation of pictures in [0, 1], precision of the forward pass, memory format, loss."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    loss: LossName = "cross_entropy"
    """What training minimises; evaluation is plain cross-entropy in any case."""
    class_weights: Tensor | None = field(default=None, compare=False)
    """float32 (K,) on the model's device: weight of each class in the training loss."""

    def network_input(self, batch: Batch) -> Tensor:
        """The pictures of ``batch`` with all that was drawn for them done to them, and normalised: float32 (B, 3, S, S).

        Features that stand in the place of pictures (:mod:`stagewright.engine.frozen_features`) are handed on.
        """
        pictures = batch.images
        if pictures.is_floating_point():
            return pictures
        if batch.draws is not None:
            pictures = augment_some(pictures, batch.draws, batch.drawn_for, fill=[255 * level for level in self.mean])
        return normalise(pictures, self.mean, self.std, channels_last=self.channels_last)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Mixed precision where it was asked for; otherwise a context that does nothing."""
        return torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def auto_precision(device: torch.device) -> Precision:
    """What ``precision: auto`` means: bf16 on CUDA that has it in hardware, fp16 on older, fp32 on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def prepare_torch(recipe: Recipe, device: torch.device) -> None:
    """Switches of the process: TF32 and kernel search where speed is wanted, deterministic kernels where bits are."""
    if device.type != "cuda":
        disable_malloc_trim()
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
