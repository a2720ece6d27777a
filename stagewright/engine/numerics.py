"""Chooses and applies precision, memory format and normalisation."""

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
from stagewright.system.machine import disable_malloc_trim, fast_bfloat16

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_Colour = tuple[float, float, float]
_VECTOR_FLOATS = 16
"""Number of float32 values in the widest vector register of a CPU (512 bits)."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Numerics:
    """Settings of the computation: normalisation, precision of the forward pass, memory format, training loss."""

    mean: tuple[float, float, float]
    """By channel, for images in [0, 1]."""
    std: tuple[float, float, float]
    """By channel, for images in [0, 1]."""
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    loss: LossName = "cross_entropy"
    """The training loss; evaluation always uses plain cross-entropy."""
    class_weights: Tensor | None = field(default=None, compare=False)
    """float32 (K,) on the model's device: weight of each class in the training loss; None: no weights."""

    def network_input(self, batch: Batch) -> Tensor:
        """Returns the augmented and normalised images of ``batch``, float32 (B, 3, S, S).

        If the batch holds features instead of images (:mod:`stagewright.engine.frozen_features`), they are returned unchanged.
        """
        images = batch.images
        if images.is_floating_point():
            return images
        if batch.draws is not None:
            images = augment_some(images, batch.draws, batch.drawn_for, fill=[255 * level for level in self.mean])
        return normalise(images, self.mean, self.std, channels_last=self.channels_last)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the autocast context of the precision; for fp32 it does nothing."""
        return torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def auto_precision(device: torch.device) -> Precision:
    """Returns the precision for ``precision: auto``: bf16 on a GPU that supports it, fp16 on older GPUs, fp32 on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def auto_eval_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Returns the precision for ``eval.precision: auto``: bf16 on a CPU that is faster in it, else fp32."""
    return "bf16" if device.type == "cpu" and fast_bfloat16() else "fp32"


def prepare_torch(recipe: Recipe, device: torch.device) -> None:
    """Sets torch's process-wide switches for the device.

    On CUDA: TF32 for matrix products, and either deterministic kernels (``recipe.deterministic``) or cuDNN's search for the
    fastest kernels. On a CPU: freed memory is not returned to the system at once.
    """
    if device.type != "cuda":
        disable_malloc_trim()
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def numerics_of(plan: Plan, model: nn.Module, manifest: Manifest | None = None) -> Numerics:
    """Returns the numerics of a plan; ``model`` must already be on its device.

    Class weights depend on the number of images of each class: without ``manifest`` (to measure speed or memory) there are none.
    """
    recipe = plan.recipe
    channels_last = recipe.channels_last and takes_channels_last(model)
    weights = None if manifest is None else class_weights(recipe, manifest)
    if weights is not None:
        weights = weights.to(next(model.parameters()).device)
    return Numerics(*normalisation(recipe), plan.precision, channels_last, recipe.loss, weights)


def normalisation(recipe: Recipe) -> tuple[_Colour, _Colour]:
    """Returns (mean, std) by channel, for images in [0, 1]: the recipe's, else those of the model's weights, else ImageNet's."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if recipe.model.weights is not None:
        mean, std = model_normalisation(recipe.model.name)
    return recipe.mean or mean, recipe.std or std


def takes_channels_last(model: nn.Module) -> bool:
    """Returns whether the channels-last memory format is safe for ``model`` on its device.

    It is unsafe on a CPU if a strided 1x1 convolution has fewer input channels than a vector register has floats: there oneDNN
    writes past its workspace when it computes the gradient of the weights. That ends the process or corrupts the gradient
    silently (github.com/uxlfoundation/oneDNN, issue 6035; observed with 4 and 8 channels, torch 2.15).
    """
    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu":
        return True
    return not any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and max(part.stride) > 1
        and part.in_channels // part.groups < _VECTOR_FLOATS
        for part in model.modules()
    )
