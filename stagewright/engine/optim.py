"""Optimizers: torch's SGD, Adam and AdamW, every one of timm, and a person's own; hyper-parameters written in each step.

All parameters are in the groups from the start; freezing is ``requires_grad`` off and no gradient, which every
optimizer here skips. There is no scheduler object: :func:`set_hyper` writes what the plan says for the step.

torch's own optimizers run as one fused kernel, on the CPU too (measured: docs/log.md), unless ``options`` say ``fused: false``
or name something that it cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from stagewright.engine.own_optimizer import own_optimizer
from stagewright.errors import ModelError
from stagewright.system.named_functions import is_named
from stagewright.text import nearest

_ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_FUSED = ("sgd", *_ADAMS)
_FUSED_DEVICES = ("cpu", "cuda")
_FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def optimizer_names() -> list[str]:
    """``sgd``, ``adam``, ``adamw`` and every optimizer of timm, sorted."""
    from timm.optim import list_optimizers  # pyright: ignore[reportPrivateImportUsage]

    return sorted({"sgd", *_ADAMS, *map(str, list_optimizers())})


def make_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimizer ``name`` over ready parameter groups (each with its own ``weight_decay`` and ``lr_scale``).

    ``momentum`` is SGD's momentum or Adam's beta1. ``python:module:function`` calls a user's function
    (:mod:`stagewright.engine.own_optimizer`), which knows no ``nesterov``. ModelError for an unknown name or option. Build it
    when the parameters are on their device and in their memory format.
    """
    if is_named(name):
        return own_optimizer(groups, name, lr=lr, momentum=momentum, options=options or {})
    arguments: dict[str, Any] = {"lr": lr, **(options or {})}
    if name in _FUSED:
        arguments.setdefault("fused", _can_fuse(groups, arguments))
    plain = [{key: value for key, value in group.items() if key in ("params", "weight_decay")} for group in groups]
    try:
        if name == "sgd":
            optimizer = torch.optim.SGD(plain, momentum=momentum, nesterov=nesterov, **arguments)
        elif name in _ADAMS:
            betas = arguments.pop("betas", (momentum, 0.999))
            optimizer = _ADAMS[name](plain, betas=(momentum, betas[1]), **arguments)
        else:
            optimizer = _from_timm(plain, name, momentum, arguments)
    except TypeError as error:
        raise ModelError(
            f"optimizer.options {dict(options or {})} do not fit {name}: {error}",
            f"keyword arguments of {name}'s constructor",
            "correct or remove them",
        ) from None
    for group, made in zip(groups, optimizer.param_groups, strict=True):
        made["decays"] = bool(group.get("decays", True))
        made["lr_scale"] = float(group.get("lr_scale", 1.0))
    if name in _FUSED:
        optimizer.register_load_state_dict_pre_hook(_keep_kernel)
        if arguments["fused"]:
            optimizer.register_load_state_dict_post_hook(_lay_out_state)
            optimizer.register_step_pre_hook(_lay_out_gradients)
            if name == "sgd":
                optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _can_fuse(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> bool:
    """Returns whether torch's fused kernels support the parameters of ``groups`` and the ``options``."""
    if any(options.get(other) for other in ("foreach", "differentiable", "dampening")):
        return False
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in _FUSED_DEVICES and p.dtype in _FUSED_DTYPES for p in parameters)


def _begin_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Initialises missing momentum with zeros, which without dampening gives the same first step as torch's own.

    By itself, torch's fused SGD (2.15) fails if some parameters of a group have momentum and others, just unfrozen, have none.
    If an fp16 overflow skips the first step, it uses uninitialised memory as momentum.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _lay_out_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Every gradient lies in memory as its parameter does. torch's fused kernels (2.15) take all tensors of a parameter for
    laid out alike, and update the wrong numbers, silently, where one is not."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = _laid_out_as(parameter, parameter.grad)


def _lay_out_state(optimizer: Optimizer) -> None:
    """Does the same for loaded momentum, because the network may have had another memory format in the checkpoint."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = _laid_out_as(parameter, value)


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _keep_kernel(optimizer: Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    """Keeps this optimizer's choice of kernels when a state is loaded, which may be from another device."""
    kernels = ("fused", "foreach")
    if len(content["param_groups"]) != len(optimizer.param_groups):
        return content  # torch raises an error that states the difference
    loaded = [
        {**group, **{name: own[name] for name in kernels if name in own}}
        for group, own in zip(content["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**content, "param_groups": loaded}


def _from_timm(groups: list[dict[str, Any]], name: str, momentum: float, arguments: dict[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    known = optimizer_names()
    if name not in known:
        raise ModelError(
            f"optimizer.name {name!r}",
            f"sgd, adam, adamw and timm's optimizers ({len(known)} names in all){nearest(name, known)}",
            "python -c 'import timm.optim; print(timm.optim.list_optimizers())' lists timm's",
        )
    lr = arguments.pop("lr")
    return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, momentum=momentum, **arguments)


def set_hyper(optimizer: Optimizer, *, lr: float, momentum: float, weight_decay: float) -> None:
    """Writes the step's learning rate, momentum (or beta1) and weight decay into every group that takes them.

    A group's rate is ``lr`` times its ``lr_scale``. Groups of norms and biases keep weight decay 0 unless they were built to
    decay.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif "momentum" in group:
            group["momentum"] = momentum


def reset_state(optimizer: Optimizer) -> None:
    """Deletes momentum and all other per-parameter state, as before the first step."""
    optimizer.state.clear()
