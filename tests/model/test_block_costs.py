"""How the cost of a network is shared by its blocks, and which of them ``train: upper`` means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stagewright.model.block_costs import UPPER_SHARE, block_costs, upper_blocks
from stagewright.model.groups import blocks
from stagewright.model.zoo import create_model


@pytest.mark.parametrize(
    ("name", "size", "count", "first"),
    [
        ("torchvision:mobilenet_v2", 160, 10, "features.9"),
        ("torchvision:resnet18", 160, 1, "layer4"),
        ("torchvision:vit_b_32", 224, 4, "encoder.layers.encoder_layer_8"),
        ("timm:vit_tiny_patch16_224", 224, 4, "blocks.8"),
        ("torchvision:convnext_tiny", 96, 2, "features.6"),
        ("cifar_resnet18", 32, 1, "layer4"),
    ],
)
def test_upper_blocks_are_a_third_of_the_cost(name: str, size: int, count: int, first: str) -> None:
    model, images = create_model(name, 3, image_size=size), torch.zeros(1, 3, size, size)
    model.train()
    costs = block_costs(model, images)
    assert len(costs) == len(blocks(model)) and model.training
    assert upper_blocks(model, images) == count
    assert blocks(model)[-count] == first
    if count > 1:
        assert sum(costs[-count:]) <= UPPER_SHARE * sum(costs) < sum(costs[-count - 1 :])


def test_the_cost_of_a_layer_is_its_products_and_its_output() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 25, 2))
    assert blocks(model) == ["0.0", "0.1"]
    first, second = block_costs(model, torch.zeros(1, 3, 5, 5))
    assert first == 100 * (27 + 30)
    assert second == 100 * (4 + 30) + 100 * 30 + 2 * (100 + 30)  # what follows the last block counts for it


def test_a_lone_layer_has_no_blocks() -> None:
    assert upper_blocks(nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), torch.zeros(1, 3, 5, 5)) == 0
