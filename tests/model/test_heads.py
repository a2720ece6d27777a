"""New heads start at the loss of chance, and heads that do so already stay as they are drawn."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stagewright.model.heads import NARROW, head_tensors
from stagewright.model.weights import load_weights
from stagewright.model.zoo import create_model

SMALL = {
    "efficientnet_b0": 64,
    "mnasnet0_5": 64,
    "timm:mobilenetv3_small_050": 64,
    "timm:test_efficientnet": 64,
    "resnet18": 64,
    "mobilenet_v3_small": 64,
    "swin_t": 64,
    "vit_b_32": 64,
}


def first_loss(model: nn.Module, size: int, num_classes: int) -> float:
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, size, size), torch.arange(8) % num_classes
    with torch.no_grad():
        return float(cross_entropy(model.train()(images), labels))


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("name", SMALL)
def test_from_scratch_training_begins_near_chance(name: str, num_classes: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes, image_size=SMALL[name])
    assert first_loss(model, SMALL[name], num_classes) < log(num_classes) + 0.35


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "squeezenet1_1", "timm:test_efficientnet"])
def test_a_new_head_on_loaded_weights_begins_at_chance_and_learns(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create_model(name, 5, image_size=64).state_dict(), tmp_path / "w.pth")
    model = create_model(name, 2, image_size=64)
    load_weights(model, tmp_path / "w.pth", 2)
    assert first_loss(model, 64, 2) == pytest.approx(log(2), abs=0.05)
    weight = next(p for key, p in model.named_parameters() if key in head_tensors(model, 2) and p.ndim > 1)
    cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 2).backward()
    assert 0 < float(weight.detach().std()) <= NARROW * 1.01
    assert weight.grad is not None and bool(weight.grad.any())


@pytest.mark.parametrize(("name", "num_classes"), [("resnet18", 2), ("mobilenet_v2", 3), ("efficientnet_b0", 1000)])
def test_heads_near_chance_stay_as_their_library_draws_them(name: str, num_classes: int) -> None:
    import torchvision

    torch.manual_seed(0)
    ours = create_model(name, num_classes, image_size=64)
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, num_classes=num_classes)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_only_the_head_is_narrowed() -> None:
    import torchvision

    torch.manual_seed(0)
    ours = create_model("efficientnet_b0", 2, image_size=64)
    torch.manual_seed(0)
    theirs = torchvision.models.efficientnet_b0(num_classes=2).state_dict()
    different = {name for name, value in ours.state_dict().items() if not torch.equal(value, theirs[name])}
    assert different == {"classifier.1.weight"}
    ours_weight = ours.get_parameter("classifier.1.weight").detach()
    ratio = ours_weight / theirs["classifier.1.weight"]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4), "as it was drawn, but scaled"
