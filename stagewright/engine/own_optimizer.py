"""Users' optimizers (``optimizer.name: python:module:function``): tests them, then calls them with the parameter groups.

``function(groups, *, lr, momentum, weight_decay, **options)`` gets a list of dicts with ``params`` and
``weight_decay`` (0 in the groups of biases and norms), and returns a :class:`torch.optim.Optimizer` that has every one of these
parameters in exactly one group. It may split groups, by ``param.ndim`` for example, but not join them. Before each update the
engine writes ``lr``, ``weight_decay`` and, where a group has them, ``momentum`` or ``betas[0]`` into its groups: ``step()``
reads them there. State that a resume must restore is stored in ``optimizer.state``, as in torch's optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stagewright.errors import ModelError
from stagewright.system.named_functions import check_arguments, load_function, raised_at

_FIELD = "optimizer.name"
_SIGNATURE = "a function of (groups, *, lr, momentum, weight_decay, **options) that returns a torch.optim.Optimizer"
Groups = list[dict[str, Any]]


def own_optimizer(groups: Groups, name: str, *, lr: float, momentum: float, options: Mapping[str, Any]) -> Optimizer:
    """Returns the optimizer of the function ``name`` for ``groups`` (:func:`stagewright.model.groups.parameter_groups`). Its
    groups have the ``decays`` and ``lr_scale`` of the given groups.

    It is tested on small tensors first. RecipeError if the function cannot be imported or does not take the options; ModelError
    if it raises, returns something else, leaves parameters out or ignores ``lr``.
    """
    function = load_function(name, _FIELD, _SIGNATURE)
    decay = next((group["weight_decay"] for group in groups if group.get("decays", True)), 0.0)
    given = {"lr": lr, "momentum": momentum, "weight_decay": decay, **options}
    if clash := sorted({"lr", "momentum", "weight_decay"} & set(options)):
        raise ModelError(
            f"optimizer.options.{clash[0]} with {name}",
            "other options of the function",
            "give it as a field of the recipe",
        )
    check_arguments(function, name, _FIELD, _SIGNATURE, (groups,), given)

    def make(over: Groups) -> Optimizer:
        plain = [{"params": list(group["params"]), "weight_decay": group["weight_decay"]} for group in over]
        return _made(function, name, plain, given)

    _check_obeys_lr(name, make)
    optimizer = make(groups)
    _check_holds(name, optimizer, groups)
    return optimizer


def _made(function: Callable[..., Any], name: str, groups: Groups, given: Mapping[str, Any]) -> Optimizer:
    try:
        optimizer = function(groups, **given)
    except Exception as error:
        raise ModelError(
            f"optimizer.name: {name}, called with {len(groups)} groups and {dict(given)}: {raised_at(error, name)}",
            _SIGNATURE,
            "correct the function, or the options in the recipe",
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise ModelError(
            f"optimizer.name: {name} returned a {type(optimizer).__name__}", _SIGNATURE, "return the optimizer"
        )
    return optimizer


def _check_holds(name: str, optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks that every parameter is in exactly one group, and copies ``decays`` and ``lr_scale`` to the groups."""
    kinds = {
        id(parameter): (bool(group.get("decays", True)), float(group.get("lr_scale", 1.0)))
        for group in groups
        for parameter in group["params"]
    }
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if sorted(held) != sorted(kinds):
        missing, foreign = len(kinds.keys() - set(held)), len(set(held) - kinds.keys())
        raise ModelError(
            f"optimizer.name: {name} left out {missing} of {len(kinds)} parameters, and has {foreign} that it was not given",
            "each given parameter in exactly one group, frozen ones too: a later stage may train them",
            "pass all groups to the optimizer",
        )
    for group in optimizer.param_groups:
        found = {kinds[id(parameter)] for parameter in group["params"]}
        if len(found) > 1:
            raise ModelError(
                f"optimizer.name: {name} joined groups of different weight decay or learning rate",
                "groups as they were given, or parts of them",
                "make new groups within each given one",
            )
        group["decays"], group["lr_scale"] = found.pop() if found else (True, 1.0)


def _check_obeys_lr(name: str, make: Callable[[Groups], Optimizer]) -> None:
    """Makes two updates of small tensors: with learning rate 0 nothing may change, with 0.1 everything must change."""
    shapes = ((4, 3), (4, 3, 3, 3), (4,))
    generator = torch.Generator().manual_seed(0)
    for lr in (0.0, 0.1):
        tensors = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = make([{"params": tensors[:2], "weight_decay": 0.0}, {"params": tensors[2:], "weight_decay": 0.0}])
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr
        try:
            optimizer.step()
        except Exception as error:
            raise ModelError(
                f"optimizer.name: {name}: its step() on tensors of {', '.join(map(str, shapes))}: {raised_at(error, name)}",
                "an optimizer whose step() needs no closure, for tensors of 1 to 4 dimensions",
                "mend the optimizer",
            ) from error
        moved = [bool(tensor.any()) for tensor in tensors]
        if any(moved) if lr == 0.0 else not all(moved):
            what = "moved parameters" if lr == 0.0 else f"moved {sum(moved)} of {len(moved)} parameters"
            raise ModelError(
                f"optimizer.name: {name} {what} with a learning rate of {lr:g} in its groups",
                'step() that takes its learning rate from group["lr"], which is set before each update',
                'read group["lr"] in step(), not what the constructor was given',
            )
