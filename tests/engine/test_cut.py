"""Where networks are cut into a frozen lower and a trainable upper part, and what the two parts compute."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from stagewright.engine.cut import find_cut, linear_cut, upper_part
from stagewright.engine.frozen_features import LowerPart
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.model.zoo import create_model


def ready(model: nn.Module, train: str | tuple[str, ...] = "head") -> nn.Module:
    apply_trainable(model, train)
    set_train_mode(model)
    return model


CUTS = [
    ("torchvision:resnet18", 64, "head", "fc"),
    ("torchvision:resnet18", 64, "last:1", "layer4"),
    ("torchvision:mobilenet_v2", 64, "head", "classifier"),  # the dropout before the linear layer is after the cut
    ("torchvision:mobilenet_v2", 64, "last:12", "features.7"),
    ("torchvision:convnext_tiny", 64, "last:2", "features.6"),
    ("torchvision:swin_t", 64, "last:3", "features.5"),
    ("torchvision:vit_b_32", 224, "last:2", "encoder.layers.encoder_layer_10"),
    ("timm:mobilenetv2_100", 64, "head", "classifier"),
    ("timm:resnet10t", 64, "last:2", "layer3"),
    ("timm:vit_tiny_patch16_224", 224, "last:3", "blocks.9"),  # its forward decides by shapes
    ("timm:swin_tiny_patch4_window7_224", 224, "last:1", "layers.3"),
    ("cifar_resnet18", 32, "last:2", "layer3"),
    ("cifar_preact_resnet18", 32, "last:1", "layer4"),
    ("vit", 32, "last:2", "blocks.4"),
]


@pytest.mark.parametrize(("name", "size", "train", "cut"), CUTS)
def test_networks_are_cut_in_front_of_what_trains(name: str, size: int, train: str, cut: str) -> None:
    torch.manual_seed(0)
    model = ready(create_model(name, 3, image_size=size), train)
    found = find_cut(model, torch.randn(2, 3, size, size))
    assert found is not None and found.name == cut
    lower, upper = LowerPart(model, found.name), upper_part(model, found.name, torch.zeros(2, 3, size, size))
    assert upper is not None
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable <= {key for key, _ in upper.named_parameters()}  # the very parameters, under their own names
    images = torch.randn(3, 3, size, size)
    features = lower(images)
    assert features[0].numel() * 4 == found.bytes_each
    model.eval()
    torch.testing.assert_close(upper(features), model(images), rtol=1e-4, atol=1e-5)


def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    model = ready(create_model("torchvision:mobilenet_v2", 3, image_size=64), "last:12")
    lower, images = LowerPart(model, "features.7"), torch.randn(70, 3, 64, 64)
    whole = lower(images)
    assert torch.equal(lower(images[66:]), whole[66:])
    order = torch.randperm(70)
    assert torch.equal(lower(images[order]), whole[order])


def test_training_modes_and_buffers_are_left_as_they_were() -> None:
    model = ready(torchvision.models.mobilenet_v2(num_classes=3))
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert find_cut(model, torch.randn(2, 3, 32, 32)) is not None
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


class Random(nn.Module):
    """Dropout in the body has no parameters, so it is not in eval mode when the body is frozen."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.body, self.drop, self.head, self.twice = nn.Linear(12, 6), nn.Dropout(0.5), nn.Linear(6, 2), twice

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop(self.body(images.flatten(1)))
        return self.head(features) + (self.head(features) if self.twice else 0)


class Moving(nn.Module):
    """Batch-norm statistics that change although no parameter of the body trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body, self.head = nn.BatchNorm2d(3, affine=False), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.norm(images).flatten(1)))


def test_what_cannot_be_cut_is_not() -> None:
    images = torch.randn(2, 3, 2, 2)
    for model in (Random(), Moving()):
        assert find_cut(ready(model, ("head.*",)), images) is None
    calm = Random(twice=True)
    calm.drop.p = 0.0
    assert find_cut(ready(calm, ("head.*",)), images) is None  # its head is called twice
    calm.twice = False
    assert find_cut(ready(calm, ("head.*",)), images) is not None
    assert find_cut(ready(calm, "all"), images) is None
    model = torchvision.models.resnet18(num_classes=3)
    images = torch.randn(1, 3, 32, 32)
    cut = find_cut(ready(model, ("layer1.*", "fc.*")), images)
    assert cut is not None and cut.name == "layer1"  # what is frozen behind it runs with it
    assert find_cut(ready(model, ("conv1.*", "fc.*")), images) is None  # nothing is frozen before it
    around = Around()
    assert find_cut(ready(around, ("last.*", "head.*")), images) is None


class Around(nn.Module):
    """A way around the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last, self.head = nn.Linear(3072, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images.flatten(1))
        return self.head(features + self.last(features))


def test_weights_that_are_not_finite_hide_nothing() -> None:
    """A run that is resumed with spoilt weights must be cut where it was, and the guard then goes back."""
    images = torch.zeros(2, 3, 32, 32)
    models = [create_model("torchvision:mobilenet_v2", 3, image_size=32) for _ in range(2)]
    for parameter in models[1].parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    assert len({linear_cut(model, images).name for model in models}) == 1
    cuts = [find_cut(ready(model, "last:12"), images) for model in models]
    assert cuts[0] is not None and cuts[0] == cuts[1]
