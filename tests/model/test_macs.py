"""Multiply-adds: the figures of known networks, operators that cannot be counted, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from stagewright.errors import ModelError
from stagewright.model.macs import count_macs, has_products, num_parameters
from stagewright.model.zoo import create_model


def vit(depth: int, heads: int, width: int) -> dict[str, int]:
    return {"patch": 4, "depth": depth, "heads": heads, "width": width}


@pytest.mark.parametrize(
    ("name", "classes", "size", "options", "parameters", "macs"),
    [
        ("torchvision:resnet18", 1000, 224, {}, 11_689_512, 1_814_073_344),
        ("torchvision:resnet50", 1000, 224, {}, 25_557_032, 4.089e9),
        ("torchvision:swin_t", 1000, 224, {}, 28_288_354, 4.491e9),
        ("torchvision:swin_s", 1000, 224, {}, 49_606_258, 8.741e9),
        ("timm:vit_small_patch16_224", 1000, 224, {}, 22_050_664, 4_598_882_304),
        ("cifar_resnet18", 10, 32, {}, 11_173_962, 555_422_720),
        ("vit", 100, 32, vit(2, 2, 128), 424_420, 28_128_256),
        ("vit", 100, 32, vit(4, 4, 256), 3_214_692, 213_937_152),
        ("vit", 100, 32, vit(6, 8, 384), 10_730_212, 710_780_928),
        ("vit", 100, 32, vit(8, 8, 512), 25_330_276, 1_672_013_824),
    ],
)
def test_known_networks(
    name: str, classes: int, size: int, options: dict[str, Any], parameters: int, macs: float
) -> None:
    model = create_model(name, classes, image_size=size, options=options)
    assert num_parameters(model) == parameters
    assert count_macs(model, size) == (macs if isinstance(macs, int) else pytest.approx(macs, rel=1e-3))


class Encoder(nn.Module):
    """An encoder layer of torch, which has a fused kernel for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.reshape(1, -1, 8)).mean(dim=1)


ENCODER = 6 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16) + 2 * 6 * 6 * 8
"""Of 6 tokens of width 8: q, k and v, output, the two dense layers; scores and their sums."""


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_attention_is_counted_whole_and_the_fast_path_is_as_before(fast: bool, frozen: bool) -> None:
    model = Encoder().eval().requires_grad_(not frozen)
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            assert count_macs(model, 4) == ENCODER
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert all(one.requires_grad is not frozen and one.grad is None for one in model.parameters())


class Fused(nn.Module):
    """The kernel itself: torch's counter takes its products for 0."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens, one = images.reshape(1, -1, 8), self.attention
        with torch.no_grad():
            return torch.ops.aten._native_multi_head_attention(
                *(tokens, tokens, tokens, 8, 2, one.in_proj_weight, one.in_proj_bias, one.out_proj.weight),
                one.out_proj.bias,
            )[0]


class Vector(nn.Module):
    """A product of a matrix and a vector, of which torch's counter has no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 48))

    def forward(self, images: Tensor) -> Tensor:
        return torch.mv(self.weight, images.flatten())[None]


class Custom(nn.Module):
    """An operator of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(48, 5))

    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.stagewright_test.product(images.reshape(1, -1), self.weight)


@pytest.fixture
def own_operator() -> Iterator[None]:
    library = torch.library.Library("stagewright_test", "DEF")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda a, b: a.detach() @ b.detach(), "CompositeExplicitAutograd")
    yield
    library._destroy()


@pytest.mark.parametrize(
    ("network", "named"),
    [(Fused, "aten._native_multi_head_attention"), (Vector, "aten.mv"), (Custom, "stagewright_test.product")],
)
@pytest.mark.usefixtures("own_operator")
def test_products_without_a_formula_are_an_error_that_names_them(network: type[nn.Module], named: str) -> None:
    model = network()
    with pytest.raises(ModelError, match=f"no formula for {named}\n") as caught:
        count_macs(model, 4)
    assert "register_flop_formula" in caught.value.remedy
    assert model.training and torch.backends.mha.get_fastpath_enabled()


def test_a_network_that_cannot_run() -> None:
    with pytest.raises(ModelError, match=r"Linear cannot be counted.*4 x 4 pixels.*shapes cannot be multiplied"):
        count_macs(nn.Linear(5, 2), 4)


def test_every_operator_with_a_formula_is_recognised() -> None:
    """So one whose formula a version of torch does not have is an error there."""
    known = [str(one).split(".") for one in flop_registry if str(one).startswith("aten.")]
    assert len(known) > 15 and all(has_products(*one) for one in known)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_scaled_dot_product_flash_attention_for_cpu", True),
        ("mkldnn_rnn_layer", True),
        ("_addmm_activation", True),
        ("addmv_", True),
        ("linalg_vector_norm", False),
        ("upsample_bilinear2d", False),
        ("native_layer_norm", False),
        ("add_", False),
        ("comma", False),
    ],
)
def test_names_of_operators(name: str, expected: bool) -> None:
    assert has_products("aten", name) is expected


class Busy(nn.Module):
    """Changes a buffer, replaces another, draws and trains a part in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.count: Tensor
        self.last: Tensor

    def forward(self, images: Tensor) -> Tensor:
        self.body[1].train()
        self.count += 1
        self.last = torch.rand(3)
        next(self.parameters()).grad = None
        return self.body(images).mean(dim=(2, 3))


def test_nothing_else_changes() -> None:
    model = Busy()
    model.body[0].eval()
    model(torch.rand(2, 3, 6, 6)).sum().backward()
    model.body[1].bias.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    buffers = {name: (one, one.clone()) for name, one in model.named_buffers()}
    gradients = {name: (one.grad, one.requires_grad) for name, one in model.named_parameters()}
    switches = torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled(), torch.get_rng_state()
    assert count_macs(model, 6) == 4 * 16 * 27
    assert [part.training for part in model.modules()] == modes
    assert dict(model.named_buffers()).keys() == buffers.keys()
    for name, one in model.named_buffers():
        assert one is buffers[name][0] and torch.equal(one, buffers[name][1])
    for name, one in model.named_parameters():
        assert one.grad is gradients[name][0] and one.requires_grad == gradients[name][1]
    assert switches[:2] == (torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled())
    assert torch.equal(torch.get_rng_state(), switches[2])
