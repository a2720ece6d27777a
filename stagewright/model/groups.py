"""Selects trainable parameters, and makes the optimizer's parameter groups with and without weight decay.

The definitions are the same for every architecture and derived from the module tree alone:

- The **head** is the module that outputs the logits: timm's ``get_classifier()``, else the last linear layer or 1x1
  convolution, of the part called ``classifier``, ``head`` or ``fc`` where the model has one. Everything else is the body.
- **Blocks** are the body's parts in order: the model's children, where a part that holds 90 % of the body's parameters
  and a lone ``Sequential`` or ``ModuleList`` among the parts (``features``, ``blocks``, ``stages``) are replaced by
  their own children. So a ResNet has its stem and ``layer1`` to ``layer4``; a ViT its patch embedding and each
  transformer block; MobileNetV2 each inverted residual; Swin each stage and each patch merging.
- A norm that is a part by itself belongs to the block before it, and so do all modules between the last block and the
  head (the final norm, hidden layers of the classifier): they train under ``last:1``, but not under ``head``.
- ``last:N`` is the head and the last N blocks. Parameters outside of all blocks (class token, positions) train only
  under ``all`` or by a pattern.
- A parameter's **depth** is 0 in the head, 1 in the last block and so on; the first block and the parameters outside of all
  blocks have the greatest depth. Layer-wise decay multiplies the head's learning rate by ``layer_decay ** depth``.

Freezing is ``requires_grad`` off and eval mode, never a learning rate of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.errors import ModelError
from stagewright.text import nearest

_DOMINANT = 0.9
"""A part with this share of the body's parameters is the body in a wrapper. A ResNet's last stage has 75 %, the encoder
of torchvision's ViT 98 %."""
_HEADS = ("classifier", "head", "fc")
_NEVER_DECAY = ("class_token", "pos_embedding", "relative_position_bias_table")
"""Embeddings of torchvision's transformers, which have no ``no_weight_decay()``; its reference training exempts them
(references/classification/train.py, --transformer-embedding-decay)."""


def head_modules(model: nn.Module) -> list[str]:
    """Returns the names of the modules that output the logits; several for a distilled transformer, [] if there is none."""
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier):
        found = classifier()
        parts = {id(part) for part in (found if isinstance(found, tuple | list) else (found,))}
        heads = [name for name, module in model.named_modules() if id(module) in parts and _has_parameters(module)]
        if heads:
            return heads
    linear = [name for name, module in model.named_modules() if _is_pointwise(module)]
    named = ([name for name in linear if _within(name, [head])] for head in _HEADS)
    return next((within for within in named if within), linear)[-1:]


def blocks(model: nn.Module) -> list[str]:
    """Names of the body's blocks in order, as the module docstring defines them; [] for a lone linear layer."""
    return [names[0] for names in block_modules(model)]


def block_modules(model: nn.Module) -> list[list[str]]:
    """Returns the blocks in order, each as a list: the name of its module, then names of other modules that belong to it."""
    heads = head_modules(model)
    total = sum(p.numel() for name, p in model.named_parameters() if not _within(name, heads))
    found: list[list[str]] = []
    for name, module, is_block in _parts(model, "", heads, _DOMINANT * total):
        if found and (not is_block or _is_norm(module)):
            found[-1].append(name)
        else:
            found.append([name])
    return found


def _parts(module: nn.Module, at: str, heads: list[str], dominant: float) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, part, whether it may be a block), in order, without the head."""
    children = _children(module, at)
    bodies = [] if isinstance(module, nn.Sequential | nn.ModuleList) else children
    containers = [child for child, part in bodies if isinstance(part, nn.Sequential | nn.ModuleList)]
    containers = [child for child in containers if not _holds(child, heads)]
    if len(containers) > 1 and containers[0] == children[0][0]:
        containers = containers[1:]  # a stem written as a Sequential is one part
    for name, part in children:
        size = sum(p.numel() for p in part.parameters())
        if _holds(name, heads):
            inner = _parts(part, name, heads, dominant) if name not in heads else ()
            yield from ((child, deeper, is_block and len(children) == 1) for child, deeper, is_block in inner)
        elif size > dominant and _children(part, name):
            yield from _parts(part, name, heads, dominant)
        elif containers == [name]:
            yield from ((child, deeper, True) for child, deeper in _children(part, name))
        else:
            yield name, part, True


def _children(module: nn.Module, at: str) -> list[tuple[str, nn.Module]]:
    dot = f"{at}." if at else ""
    return [(dot + name, child) for name, child in module.named_children() if _has_parameters(child)]


def _has_parameters(module: object) -> bool:
    return isinstance(module, nn.Module) and next(module.parameters(), None) is not None


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _is_norm(module: nn.Module) -> bool:
    owners = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    return all("norm" in type(part).__name__.lower() for part in owners)


def _holds(name: str, inner: Iterable[str]) -> bool:
    return any(other == name or other.startswith(f"{name}.") for other in inner)


def _within(name: str, outer: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in outer)


def trainable_names(model: nn.Module, train: str | tuple[str, ...]) -> set[str]:
    """Returns the names of the parameters selected by ``train``: ``all``, ``head``, ``last:N``, or a tuple of patterns.

    A pattern is a parameter's name with shell wildcards (``layer4.*``, ``*.bias``) or a module's name, which selects all
    of its parameters. A pattern with ``!`` in front excludes parameters from those selected before it, or from all parameters
    if it comes first. ModelError for a pattern without a match, for patterns that select nothing, for N above the number of
    blocks, and for any other text.
    """
    names = [name for name, _ in model.named_parameters()]
    if train == "all":
        return set(names)
    if not isinstance(train, str):
        return _chosen(names, train)
    heads = head_modules(model)
    if train != "head":
        heads = [*heads, *_last_blocks(model, train)]
    return {name for name in names if _within(name, heads)}


def _last_blocks(model: nn.Module, train: str) -> list[str]:
    count = train.removeprefix("last:")
    if count == train or not count.isdigit() or int(count) < 1:
        raise ModelError(
            f"train: {train!r} means nothing",
            "all, head, last:N, or a list of patterns of names",
            "correct train of the recipe or its stage",
        )
    found = block_modules(model)
    if int(count) > len(found):
        raise ModelError(
            f"train: {train!r} asks for more blocks than the model has",
            f"last:1 to last:{len(found)}; its blocks are {', '.join(names[0] for names in found)}",
            "write train: all to train everything",
        )
    return [name for names in found[-int(count) :] for name in names]


def _chosen(names: list[str], patterns: tuple[str, ...]) -> set[str]:
    chosen = set(names) if patterns[:1] and patterns[0].startswith("!") else set[str]()
    for pattern in patterns:
        if pattern.startswith("!"):
            chosen -= _matching(names, pattern[1:], "!")
        else:
            chosen |= _matching(names, pattern)
    if not chosen:
        raise ModelError(
            f"train: the patterns {list(patterns)} leave no parameter to train",
            "patterns that match parameters; !PATTERN excludes from those before it, or from all if it comes first",
            "exclude less, or begin with a pattern of parameters to train",
        )
    return chosen


def _matching(names: list[str], pattern: str, sign: str = "") -> set[str]:
    found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
    if not found:
        modules = {name.rsplit(".", end)[0] for name in names for end in range(1, name.count(".") + 1)}
        known = [*names, *sorted(modules), *(f"{module}.*" for module in sorted(modules))]
        hint = nearest(sign + pattern, [sign + one for one in known])
        raise ModelError(
            f"train: the pattern {sign + pattern!r} matches no parameter{hint}",
            f"its parameters, from {names[0]} to {names[-1]}, with wildcards such as {names[-1].split('.')[0]}.*",
            "correct the pattern; train: all, head and last:N work with every model",
        )
    return found


def apply_trainable(model: nn.Module, train: str | tuple[str, ...]) -> tuple[int, int]:
    """Sets ``requires_grad`` of every parameter by :func:`trainable_names`; returns the sizes (trainable, frozen)."""
    names = trainable_names(model, train)
    trainable = frozen = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            trainable += parameter.numel()
        else:
            frozen += parameter.numel()
            parameter.grad = None  # with an old gradient the optimizer would still update a frozen parameter
    return trainable, frozen


def set_train_mode(model: nn.Module, norm: str = "train") -> None:
    """Sets training mode, except for modules that have parameters and whose parameters are all frozen.

    These modules and all modules inside them are in eval mode, so that frozen batch norms keep their statistics and frozen
    blocks have no dropout. With ``norm`` "frozen", all batch norms are in eval mode; their parameters may still train.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        still = parameters and not any(parameter.requires_grad for parameter in parameters)
        if still or (norm == "frozen" and isinstance(module, _BatchNorm)):
            module.eval()


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Context that restores the mode (training or evaluation) of every module on exit; yields {module: training} at entry."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield modes
    finally:
        for module, training in modes.items():
            module.training = training


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_norm_and_bias: bool, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Returns optimizer groups that contain all parameters, also frozen ones, once, with and without weight decay.

    Without weight decay are parameters that the model exempts (``no_weight_decay()`` of timm's models; class token, positions
    and relative position biases of torchvision's) and, unless ``decay_norm_and_bias``, those with at most one dimension:
    biases, norms, layer scales. A group has ``params``, ``names`` (in the model's order), ``weight_decay`` (0.0 if ``decays``
    is False), ``decays`` and ``lr_scale``; empty groups are omitted.

    With ``layer_decay`` 1.0 there are two groups with ``lr_scale`` 1.0. Below 1.0 there are two groups for each depth, from the
    stem to the head, with ``lr_scale = layer_decay ** depth``: 1.0 for the head, ``layer_decay`` for the last block. Class token
    and positions have the depth of the first block, as in BEiT's reference code (arXiv:2106.08254).
    """
    exempt: Callable[[], Iterable[str]] | None = getattr(model, "no_weight_decay", None)
    never = set(exempt()) if exempt is not None else set()
    depths = parameter_depths(model) if layer_decay < 1.0 else {}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for depth in range(max(depths.values(), default=0), -1, -1):
        lr_scale = layer_decay**depth
        for still in (False, True):
            decay = 0.0 if still else weight_decay
            groups[depth, still] = {"params": [], "names": [], "weight_decay": decay, "decays": not still}
            groups[depth, still]["lr_scale"] = lr_scale
    for name, parameter in model.named_parameters():
        small = parameter.ndim <= 1 or name.endswith(".bias")
        still = name in never or name.rsplit(".", 1)[-1] in _NEVER_DECAY or (small and not decay_norm_and_bias)
        group = groups[depths.get(name, 0), still]
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Returns {parameter name: depth}, the number of blocks up to the logits, as defined in the module docstring."""
    heads, found = head_modules(model), block_modules(model)
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        of_block = (len(found) - at for at, names in enumerate(found) if _within(name, names))
        depths[name] = 0 if _within(name, heads) else next(of_block, len(found))
    return depths
