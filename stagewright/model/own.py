"""Users' networks (``model.name: python:module:function``): builds them and tests them once before training.

The function is called with ``num_classes`` and the recipe's ``model.options`` as keyword arguments, after torch's
generator is seeded, and returns an ``nn.Module`` from normalised images, float (N, 3, S, S), to logits (N, num_classes), in
training mode too. A class whose constructor takes ``num_classes`` is such a function. The same call builds the network again on
resume and from a bundle, before its tensors are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.errors import ModelError
from stagewright.model.catalog import ModelName
from stagewright.model.groups import modes_kept
from stagewright.system.named_functions import check_arguments, load_function, raised_at

_FIELD = "model.name"
_SIGNATURE = (
    "a function of (num_classes, **options) that returns an nn.Module: images (N, 3, S, S) to logits (N, num_classes)"
)


def build_own(
    found: ModelName, num_classes: int, options: Mapping[str, Any], drop_path: float | None = None
) -> nn.Module:
    """Calls the function of ``found`` and returns its network.

    RecipeError if the function cannot be imported or does not take the options. ModelError if it raises, if it does not return a
    network with parameters, or if ``drop_path`` is given: such a function takes it among its options.
    """
    name = str(found)
    if drop_path is not None:
        raise ModelError(
            f"model.drop_path: {drop_path} with {name}",
            "drop_path among model.options, if the function has it",
            "remove it",
        )
    if "num_classes" in options:
        raise ModelError(
            f"model.options.num_classes with {name}",
            "options other than num_classes, which follows from the data",
            "remove it",
        )
    function = load_function(name, _FIELD, _SIGNATURE)
    given = {"num_classes": num_classes, **options}
    check_arguments(function, name, _FIELD, _SIGNATURE, (), given)
    try:
        model = function(**given)
    except Exception as error:
        raise _failed(name, f"called with {given}", error) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned a {type(model).__name__}", _SIGNATURE, "return the network itself")
    if next(model.parameters(), None) is None:
        raise ModelError(
            f"{name} returned a network without parameters", _SIGNATURE, "there must be something to train"
        )
    return model


def check_own(
    name: str, model: nn.Module, num_classes: int, image_size: int, memory_format: torch.memory_format
) -> None:
    """Runs the network of the function ``name`` on two random images of ``image_size`` pixels, in evaluation and training mode.

    ModelError unless the logits are (2, num_classes), floating point and finite, and a parameter gets a gradient. Modes, buffers,
    gradients and torch's random state are restored.
    """
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), modes_kept(model):
        torch.manual_seed(0)
        images = torch.randn(2, 3, image_size, image_size).contiguous(memory_format=memory_format)
        try:
            for training in (False, True):
                _try_once(name, model.train(training), num_classes, images)
        finally:
            with torch.no_grad():
                for key, buffer in model.named_buffers():
                    buffer.copy_(buffers[key])


def _try_once(name: str, model: nn.Module, num_classes: int, images: Tensor) -> None:
    mode = "training" if model.training else "evaluation"
    last = not images.is_contiguous()
    given = f"images {tuple(images.shape)} float32{', channels last in memory,' if last else ''} in {mode} mode"
    try:
        with torch.enable_grad():
            logits = model(images)
    except Exception as error:
        remedy = "write reshape in place of view, or set channels_last: false" if last and "view" in str(error) else ""
        raise _failed(name, f"given {given}", error, remedy) from error
    wanted = f"logits ({len(images)}, {num_classes}) of floating point, finite, in both modes"
    if not isinstance(logits, Tensor) or logits.shape != (len(images), num_classes) or not logits.is_floating_point():
        what = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"{name} gave {what} for {given}", wanted, "return only the logits, num_classes for each image"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{name} gave logits that are not finite for {given}", wanted, "look at its initial weights")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = (
        torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)
        if logits.requires_grad and parameters
        else ()
    )
    if not any(gradient is not None for gradient in gradients):
        raise ModelError(
            f"{name}: no parameter gets a gradient from the logits, in {mode} mode",
            "logits that depend on parameters that require gradients",
            "look for detach(), no_grad() or requires_grad_(False); the recipe freezes parameters (train: ...)",
        )


def _failed(name: str, how: str, error: Exception, remedy: str = "") -> ModelError:
    return ModelError(f"{name}, {how}: {raised_at(error, name)}", _SIGNATURE, remedy or "correct the function")
