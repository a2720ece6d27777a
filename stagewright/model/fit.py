"""Judges whether weights belong to a network: which share of it they fill, and which share of them it uses.

A wrong file often fits in part. Of ResNet-18's tensors, a file of ResNet-50 fills 77 % by name and shape, but only 56 % of the
parameters; and a file of ResNet-34 fills all of them, with blocks that another depth was trained around.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from stagewright.errors import ModelError
from stagewright.model.weight_file import State
from stagewright.text import some

LEAST = 2 / 3
"""Smallest share of the network's tensors, of its parameters, and of the file's parameters of the same kinds, that must fit;
heads and counters do not count. Pairs of different depths or widths in one family stay below 0.62 in one of the three; ResNet
variants that share most weights (a stem of three convolutions, squeeze and excitation) are above 0.75 in all."""

_FAMILIAR = {
    (100, 11_186_112): "resnet18",
    (180, 21_301_696): "resnet34",
    (265, 23_561_152): "resnet50",
    (520, 42_605_504): "resnet101",
    (775, 58_295_232): "resnet152",
    (265, 66_902_464): "wide_resnet50_2",
    (265, 23_048_128): "resnext50_32x4d",
    (260, 2_257_984): "mobilenet_v2",
    (206, 939_120): "mobilenet_v3_small",
    (262, 2_996_352): "mobilenet_v3_large",
    (309, 4_049_564): "efficientnet_b0",
    (437, 6_575_232): "efficientnet_b1",
    (437, 7_768_562): "efficientnet_b2",
    (178, 27_818_592): "convnext_tiny",
    (340, 49_453_152): "convnext_small",
    (150, 85_798_656): "vit_b_16",
    (604, 7_037_504): "densenet121",
    (26, 14_714_688): "vgg16",
    (183, 27_548_166): "swin_t",
}
"""Number of tensors, and of numbers in them, of common networks (torchvision's names), without head and counters."""
_HEADS = ("fc.", "classifier.", "head.", "heads.")
COUNTER = "num_batches_tracked"
"""Buffer of a batch norm that counts batches, without consequence for the network."""

Fits = Callable[[str], bool]
_DIGITS = re.compile(r"\d+")
_EXAMPLES = 3


def require_fit(model: nn.Module, ours: State, state: State, ignored: set[str], fits: Fits, source: str) -> None:
    """Raises ModelError if the tensors ``state`` of the file ``source`` belong to another network than ``model``.

    ``ours`` are the model's tensors, ``ignored`` the names of those that do not count, and ``fits(name)`` tells whether the
    tensor ``name`` of the file fits.
    """
    body = [name for name in ours if name not in ignored]
    fitting = [name for name in body if name in state and fits(name)]
    tensors = len(fitting) / len(body) if body else 1.0
    numbers = _share(ours, fitting, body)
    kinds = {_DIGITS.sub("#", name) for name in fitting}
    alike = [name for name in state if name not in ignored and _DIGITS.sub("#", name) in kinds]
    used = _share(state, fitting, alike)
    if min(tensors, numbers, used) >= LEAST:
        return
    what = (
        f"{100 * tensors:.0f} % of the model's tensors and {100 * numbers:.0f} % of its parameters, by name and shape"
    )
    if min(tensors, numbers) >= LEAST:
        what = f"all that the model needs, but of its own parameters of these kinds only {100 * used:.0f} % are used"
    here, there = (some(names, _EXAMPLES) or "nothing" for names in (body, state))
    raise ModelError(
        f"{source} does not fit this model: it has {what}{_differences(ours, state, fits)}. The file is of "
        f"{described(state)}; the model is {described(ours, type(model).__name__)}",
        f"at least {100 * LEAST:.0f} % of each, not counting heads; a file with tensors such as {here}; it has {there}",
        "set model.name and model.options to the network that the file was made with, or take a file of this one; to use a "
        "part of the file on purpose, save that part under the names of this model",
    )


def _share(sizes: State, part: list[str], whole: list[str]) -> float:
    total = sum(sizes[name].numel() for name in whole)
    return sum(sizes[name].numel() for name in part) / total if total else 1.0


def _differences(ours: State, state: State, fits: Fits) -> str:
    named = [name for name in ours if name in state and not fits(name)]
    return "".join(f"; {name} is {shape(state[name])} there, {shape(ours[name])} here" for name in named[:2])


def shape(tensor: torch.Tensor) -> str:
    """Returns the shape of ``tensor`` as in 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "a number"


def described(state: State, kind: str = "another network") -> str:
    """Returns the name of the network that has as many tensors and numbers as ``state``, or ``kind``; and their number."""
    sizes = [tensor.numel() for name, tensor in state.items() if not name.startswith(_HEADS) and COUNTER not in name]
    return f"{_FAMILIAR.get((len(sizes), sum(sizes)), kind)} ({sum(sizes):,} numbers without the head)"
