"""Networks that predict in bfloat16, and again in float32 where two classes are close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stagewright.model.two_precisions import TwoPrecisions, bfloat16_copy, margin_of
from stagewright.model.zoo import create_model


def network(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("cifar_resnet18", classes, image_size=24, options={"width": 8, "blocks": [1, 1]})
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 24, 24))
        model.eval().get_parameter("fc.bias").sub_(
            model(images(200, 9)).mean(dim=0)
        )  # all classes are as likely: close calls
    return model


def images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 24, 24, generator=random) + torch.randn(count, 3, 1, 1, generator=random)


def test_labels_are_those_of_float32() -> None:
    exact = network()
    fast = bfloat16_copy(exact, images(2, 0))
    assert fast is not None and {one.dtype for one in fast.parameters()} == {torch.bfloat16}
    both = TwoPrecisions(exact, fast)
    given = images(1500, 1)
    with torch.inference_mode():
        expected = exact(given)
        alone = fast(given.bfloat16()).float()
        found = torch.cat([both(part) for part in given.split(64)])
    assert found.dtype == torch.float32
    differing = [(one.argmax(dim=1) != expected.argmax(dim=1)).sum().item() for one in (alone, found)]
    assert differing[0] > 7 and differing[1] == 0
    again = (found == expected).all(dim=1)
    assert again[:64].all() and 0.02 < again[64:].float().mean() < 0.6  # the first batch teaches the margin


def test_the_network_itself_stays_as_it_is() -> None:
    exact = network().train()
    before = {name: tensor.clone() for name, tensor in exact.state_dict().items()}
    assert bfloat16_copy(exact, images(2, 0)) is not None
    assert exact.training
    for name, tensor in exact.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


def test_a_given_margin_is_used_from_the_first_image_on() -> None:
    exact = network()
    fast = bfloat16_copy(exact, images(2, 0))
    assert fast is not None
    given = images(8, 2)
    with torch.inference_mode():
        for margin, source in ((0.0, fast(given.bfloat16()).float()), (1e9, exact(given))):
            assert torch.equal(TwoPrecisions(exact, fast, margin)(given), source)


def test_a_logit_that_is_not_a_number_is_computed_again() -> None:
    class Broken(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return torch.tensor([[1.0, 3.0], [torch.nan, 0.0]]).repeat(len(given) // 2, 1).to(given.dtype)

    class Whole(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return torch.tensor([5.0, 4.0]).repeat(len(given), 1)

    found = TwoPrecisions(Whole(), Broken(), margin=0.5)(images(2, 3))
    assert found.tolist() == [[1.0, 3.0], [5.0, 4.0]]


def test_one_class_has_nothing_that_is_close() -> None:
    exact = network(classes=1)
    fast = bfloat16_copy(exact, images(2, 0))
    assert fast is not None
    with torch.inference_mode():
        assert TwoPrecisions(exact, fast, margin=1.0)(images(3, 4)).shape == (3, 1)


def test_a_network_with_float32_numbers_of_its_own_cannot_run_in_bfloat16() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, given: Tensor) -> Tensor:
            return self.head(given.mean(dim=(2, 3)) @ torch.eye(3))

    assert bfloat16_copy(Own(), images(2, 0)) is None


def test_the_margin_follows_the_difference() -> None:
    exact = torch.zeros(50, 4)
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert margin_of(exact, exact) == 0.0
    assert margin_of(exact + noise, exact) == pytest.approx(6.0, rel=0.1)
    assert margin_of(exact + torch.nan, exact) == float("inf")
