"""A network with frozen, folded batch norms is the network with its norms in inference mode, with the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stagewright.engine.frozen_norms import FrozenNorms
from stagewright.model.fold import find_pairs, skeleton
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.model.zoo import create_model


def moved(model: nn.Module) -> nn.Module:
    """Gives the norms statistics as after a training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    "name", ["cifar_resnet18", "torchvision:mobilenet_v2", "timm:resnet10t", "cifar_preact_resnet18"]
)
def test_it_learns_as_the_network_in_inference_mode(name: str) -> None:
    torch.manual_seed(0)
    model = moved(create_model(name, 3, image_size=32)).double()
    apply_trainable(model, "all")
    set_train_mode(model, "frozen")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(model)
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 3
    pairs = find_pairs(model, images.float())
    assert pairs
    folded = FrozenNorms(model, pairs, skeleton(model, pairs))
    for forward in (folded, plain):
        cross_entropy(forward(images), labels).backward()
    for (key, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, key
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)
    for (key, a), (_, b) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(a, b), key


def test_dropout_follows_the_mode_of_the_model() -> None:
    model = create_model("torchvision:mobilenet_v2", 3, image_size=32)
    set_train_mode(model, "frozen")
    images = torch.randn(2, 3, 32, 32)
    pairs = find_pairs(model, images)
    folded = FrozenNorms(model, pairs, skeleton(model, pairs))
    assert not torch.equal(folded(images), folded(images))
    model.eval()
    assert torch.equal(folded(images), folded(images))
