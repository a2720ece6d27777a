"""Batch norms folded into convolutions: the same function, the same gradients, and no pair where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from stagewright.model.fold import find_pairs, folded_copy, folded_tensors, skeleton
from stagewright.model.zoo import create_model

TINY: dict[str, Any] = {"width": 8, "blocks": [1, 1]}


def lived_in(model: nn.Module) -> nn.Module:
    """``model`` in float64 and evaluation mode, with norms whose statistics say something, as after a training."""
    random = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.2, generator=random)
            norm.running_var.uniform_(0.5, 1.5, generator=random)
            if norm.affine:
                nn.init.normal_(norm.bias, 0, 0.2, generator=random)
                nn.init.uniform_(norm.weight, 0.5, 1.5, generator=random)
    return model.double().eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def call(model: nn.Module, pairs: dict[str, str], given: Tensor) -> Tensor:
    return functional_call(skeleton(model, pairs), folded_tensors(model, pairs), (given,))


@pytest.mark.parametrize(
    ("name", "size", "pairs", "options"),
    [
        ("cifar_resnet18", 16, 6, TINY),
        ("cifar_preact_resnet18", 16, 2, TINY),  # only the norm between two convolutions of a block
        ("resnet18", 32, 20, {}),
        ("mobilenet_v2", 32, 52, {}),
        ("efficientnet_b0", 32, 49, {}),
        ("regnet_y_400mf", 32, 53, {}),
        ("densenet121", 32, 59, {}),
        ("timm:resnet18", 32, 20, {}),
        ("timm:efficientnet_b0", 32, 49, {}),  # norms with an activation of their own
        ("timm:resnetv2_18", 32, 8, {}),
        ("vit", 16, 0, {"patch": 8, "depth": 1, "heads": 1, "width": 8}),
    ],
)
def test_folded_networks_are_the_same_function(name: str, size: int, pairs: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = lived_in(create_model(name, 5, image_size=size, options=options))
    found = find_pairs(model, images(size))
    assert len(found) == pairs
    with torch.no_grad():
        expected = model(images(size))
        torch.testing.assert_close(call(model, found, images(size)), expected)
        torch.testing.assert_close(folded_copy(model, found)(images(size)), expected)


def test_the_search_leaves_model_and_generator_as_they_are() -> None:
    model = create_model("cifar_resnet18", 5, image_size=16, options=TINY)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_pairs(model, images(16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not any(part._forward_hooks for part in model.modules())


def test_gradients_are_those_of_the_network_with_norms_in_inference_mode() -> None:
    model = lived_in(create_model("cifar_resnet18", 5, image_size=16, options=TINY))
    pairs = find_pairs(model, images(16))
    results = []
    for forward in (model, lambda given: call(model, pairs, given)):
        model.zero_grad()
        forward(images(16)).square().sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(results[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_keep_their_memory_format_and_dtype() -> None:
    model = create_model("cifar_resnet18", 5, image_size=16, options=TINY).to(memory_format=torch.channels_last)
    pairs = find_pairs(model, images(16))
    for tensors in (folded_tensors(model, pairs), folded_copy(model, pairs).state_dict()):
        for name in pairs:
            assert tensors[f"{name}.weight"].is_contiguous(memory_format=torch.channels_last)
            assert tensors[f"{name}.weight"].dtype == torch.float32
    assert folded_tensors(model, pairs)["fc.weight"] is model.get_parameter("fc.weight")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_pairs_do_not_depend_on_the_present_weights(value: float) -> None:
    """A resumed run looks for them when it has other weights, perhaps spoilt ones, and must evaluate the same bits."""
    model = create_model("cifar_resnet18", 5, image_size=16, options=TINY)
    expected = find_pairs(model, images(16))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(value)
    assert len(expected) == 6
    assert find_pairs(model, images(16)) == expected


class Own(nn.Module):
    """A network in which one thing is in the way of folding."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = _Standardised(3, 8, 3) if how == "own weight" else nn.Conv2d(3, 8, 3)
        self.twin = nn.Conv2d(3, 8, 3)
        if how == "tied":
            self.twin.weight = self.conv.weight
        if how == "parametrised":
            nn.utils.parametrizations.weight_norm(self.conv)
        self.norm = nn.BatchNorm2d(8, track_running_stats=how != "no statistics")
        if how == "zeros":
            nn.init.zeros_(self.norm.weight)
        self.norms = nn.Identity() if how != "heard" else nn.BatchNorm2d(8)
        if how == "heard":
            self.conv.register_forward_hook(_one_more)
        self.fc = nn.Linear(8, 4)
        self.fc_norm = nn.BatchNorm1d(4)

    def forward(self, given: Tensor) -> Tensor:
        x = self.conv(given)
        y = self.norm(x)
        if self.how == "used after":
            y = y + x
        if self.how == "view used":
            y = y + x.flatten(1).mean()
        if self.how == "norm twice":
            y = self.norm(y)
        if self.how == "convolution twice":
            y = y + self.conv(given)
        if self.how == "between":
            y = self.norm(x.relu())
        y = y + self.twin(given)
        return self.fc_norm(self.fc(y.mean(dim=(2, 3))))


def _one_more(module: nn.Module, given: Any, result: Tensor) -> Tensor:
    return result + 1


class _Standardised(nn.Conv2d):
    """Changes its weight before it uses it."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


@pytest.mark.parametrize(
    "how",
    [
        *("used after", "view used", "norm twice", "convolution twice", "between", "tied", "parametrised"),
        *("own weight", "heard", "no statistics"),
    ],
)
def test_a_convolution_that_must_not_be_folded_is_not(how: str) -> None:
    model = lived_in(Own(how))
    found = find_pairs(model, images(8, 4))
    assert found == {"fc": "fc_norm"}
    with torch.no_grad():
        torch.testing.assert_close(folded_copy(model, found)(images(8, 4)), model(images(8, 4)))


@pytest.mark.parametrize("how", ["plain", "zeros"])
def test_a_convolution_with_bias_and_a_linear_layer_are_folded(how: str) -> None:
    model = lived_in(Own(how))
    assert find_pairs(model, images(8)) == {"conv": "norm", "fc": "fc_norm"}


def test_a_network_that_cannot_be_tried_has_no_pairs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3, 2))
    assert find_pairs(model, images(8)) == {}
