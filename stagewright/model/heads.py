"""Where a new head starts: at the loss of chance, about the logarithm of the number of classes.

A head is new where weights were loaded without one that fits, or where a network is made from scratch. Some libraries draw a
head's weights in proportion to the number of its *outputs*: torchvision's EfficientNet and MNASNet, timm's EfficientNet and
MobileNetV3 (uniform within 1 / sqrt(classes), as TensorFlow's reference has it for 1000 classes). With 2 classes training began
at losses from 1.3 to 8.8 instead of 0.69.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor, nn

from stagewright.model.groups import head_modules

NARROW = 0.01
"""Standard deviation of a new head's weights, torchvision's for MobileNetV2 and SqueezeNet. Not 0: SqueezeNet has a ReLU behind
its head, which would never let a gradient through."""


def head_tensors(model: nn.Module, num_classes: int) -> set[str]:
    """Names of the tensors that have a row for each class: of the layers with so many outputs within the head."""
    return {
        ".".join(part for part in (head, at, name) if part)
        for head in head_modules(model)
        for at, layer in model.get_submodule(head).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for name, parameter in layer.named_parameters()
        if parameter.shape[0] == num_classes
    }


@torch.no_grad()
def narrow_head(model: nn.Module, names: Iterable[str]) -> None:
    """Brings the tensors ``names`` of a head to where a new one starts: weights, as they were drawn, scaled down to a standard
    deviation of :data:`NARROW` (those that are narrower stay), biases 0. Nothing is drawn anew."""
    tensors = dict(model.named_parameters())
    for name in names:
        tensor = tensors[name]
        if tensor.ndim == 1:
            tensor.zero_()
        elif (spread := _spread(tensor)) > NARROW:
            tensor.mul_(NARROW / spread)


def narrow_wide_head(model: nn.Module, num_classes: int) -> None:
    """:func:`narrow_head` for a network made from scratch, where its weights are wider than 1 / sqrt(inputs): logits then
    differ by more than the features do. torch's own initialisation has 0.58 / sqrt(inputs); such heads stay as they are."""
    tensors = dict(model.named_parameters())
    names = head_tensors(model, num_classes)
    weights = [tensors[name] for name in names if tensors[name].ndim > 1 and not tensors[name].is_meta]
    if any(_spread(weight) * sqrt(weight[0].numel()) > 1.0 for weight in weights):
        narrow_head(model, names)


def _spread(weight: Tensor) -> float:
    return float(weight.detach().square().mean().sqrt())
