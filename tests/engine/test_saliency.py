"""Saliency maps: where a known network must look, the formula of Grad-CAM by hand, and real architectures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stagewright.engine.saliency import saliency
from stagewright.errors import ModelError
from stagewright.model.zoo import create_model


class Spots(nn.Module):
    """Class 0 is red, class 1 blue: the means of the channels of a map of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        mix = nn.Conv2d(3, 6, 1, bias=False)
        self.body = nn.Sequential(nn.AvgPool2d(4), mix, nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 2)
        torch.manual_seed(0)
        with torch.no_grad():
            mix.weight.copy_(torch.eye(3).repeat(2, 1)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 0, 1.0, 0, 0, 1]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """The same for patches as tokens, behind a class token that the head alone uses."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 3, 4, 4, bias=False)
        self.blocks = nn.ModuleList([Mean(), nn.Identity()])
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.patch.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.head.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens[:, 1:]], dim=1) * self.scale


def spots() -> Tensor:
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, :8, :8] = 1.0  # red at the upper left
    images[:, 2, 24:, 24:] = 1.0  # blue at the lower right
    return images


def test_a_class_is_found_where_it_is() -> None:
    maps = saliency(Spots(), spots(), torch.tensor([0, 1]))
    assert maps.shape == (2, 32, 32) and maps.dtype == torch.float32
    for one, corner in zip(maps, ((0, 0), (31, 31)), strict=True):
        assert one.max() == 1.0 == one[corner] and one.min() == 0.0
        assert one[31 - corner[0], 31 - corner[1]] == 0.0 and one[16, 16] == 0.0


def test_it_is_the_formula_of_grad_cam() -> None:
    torch.manual_seed(1)
    model, images, classes = (
        create_model("cifar_resnet18", 5, image_size=32, options={"width": 4}),
        torch.randn(3, 3, 32, 32),
        [1, 4, 0],
    )
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> None:
        kept.append(output)

    hook = model.eval().get_submodule("layer4").register_forward_hook(keep)
    logits = model(images)
    hook.remove()
    slopes = torch.autograd.grad(logits[[0, 1, 2], classes].sum(), kept)[0]
    cam = (slopes.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    cam = nn.functional.interpolate(cam[:, None], (32, 32), mode="bilinear")[:, 0]
    expected = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-30)
    assert torch.allclose(saliency(model, images, torch.tensor(classes)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_model("torchvision:mobilenet_v2", 4, image_size=64),
        lambda: create_model("vit", 4, image_size=64),
        lambda: create_model("torchvision:swin_t", 4, image_size=64),
    ],
    ids=["convolutions", "tokens", "channels last"],
)
def test_real_networks_have_maps_and_stay_as_they_are(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():  # a caller that only predicts
        images = torch.randn(2, 3, 64, 64)
    maps = saliency(model, images.clone(), torch.tensor([0, 3]))
    assert maps.isfinite().all() and (maps >= 0).all() and (maps.amax((1, 2)) == 1).any()
    assert maps[0].std() > 0
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())


def test_the_tokens_of_the_patches_are_used_and_not_the_last_block_alone() -> None:
    maps = saliency(Tokens(), spots(), torch.tensor([0, 1]))
    assert maps[0, 0, 0] == 1.0 and maps[0, 31, 31] == 0.0 and maps[1, 31, 31] == 1.0 and maps[1, 0, 0] == 0.0


def test_a_network_without_a_map_is_an_error() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ModelError, match="no block of this network gives a map"):
        saliency(flat, spots(), torch.tensor([0, 1]))
