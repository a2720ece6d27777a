"""Sums of lanes' gradients: the tree's bits, in one process and in several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stagewright.distributed.reduce import LaneGradients
from stagewright.distributed.tree import PartialSums, fold
from stagewright.distributed.world import World

ALONE = World.alone("cpu")


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small convolutional network with weights in the channels-last layout."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    return parts.to(dtype).to(memory_format=torch.channels_last)


def lane_loss(model: nn.Module, lane: int, dtype: torch.dtype = torch.float32) -> Tensor:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(lane)).to(dtype)
    return (model(images).float() ** 2).mean()


def lane_gradients(model: nn.Module, lane: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(torch.autograd.grad(lane_loss(model, lane, dtype), list(model.parameters())))


@pytest.mark.parametrize("lanes", [2, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_process_adds_in_the_order_of_the_tree(lanes: int, dtype: torch.dtype) -> None:
    model = network(dtype)
    gradients = LaneGradients(list(model.parameters()), lanes, ALONE)
    for _ in range(2):  # a second update begins as the first did
        for lane in gradients.own:
            with gradients.lane():
                lane_loss(model, lane, dtype).backward()
            assert all(p.grad is None for p in model.parameters())
        gradients.finish()
        for at, parameter in enumerate(model.parameters()):
            leaves = {(lane, lane + 1): lane_gradients(model, lane, dtype)[at] for lane in range(lanes)}
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, fold(lanes, leaves, torch.add))
            assert parameter.grad.stride() == parameter.stride()
        model.zero_grad(set_to_none=True)


def test_another_order_has_other_bits() -> None:
    """Or the test above could not fail."""
    model = network()
    leaves = [lane_gradients(model, lane)[0] for lane in range(8)]
    tree = PartialSums(8, range(8), torch.add)
    for leaf in leaves:
        tree.push(leaf)
    assert not torch.equal(tree.sums[0], torch.stack(leaves).sum(0))
    assert not torch.equal(tree.sums[0], sum(leaves[1:], leaves[0]))


def test_one_lane_keeps_the_gradients_of_the_backward_pass() -> None:
    model = network()
    gradients = LaneGradients(list(model.parameters()), 1, ALONE)
    with gradients.lane():
        lane_loss(model, 0).backward()
    kept = [p.grad for p in model.parameters()]
    gradients.finish()
    assert all(p.grad is one for p, one in zip(model.parameters(), kept, strict=True))


def test_a_missing_gradient_counts_as_zeros_and_an_unused_one_stays_none() -> None:
    a, b, c, frozen = (nn.Parameter(torch.ones(3)) for _ in range(4))
    frozen.requires_grad_(False)
    gradients = LaneGradients([a, b, c, frozen], 3, ALONE, unused=[2])
    for lane in range(3):
        with gradients.lane():
            loss = (a * (lane + 1)).sum()
            (loss + b.sum() if lane == 1 else loss).backward()
    gradients.finish()
    assert a.grad is not None and a.grad.tolist() == [6, 6, 6]
    assert b.grad is not None and b.grad.tolist() == [1, 1, 1]
    assert c.grad is None and frozen.grad is None


def test_an_error_in_a_lane_abandons_the_update() -> None:
    """As when memory runs out: the update is tried again from its first lane."""
    weight = nn.Parameter(torch.ones(2))
    gradients = LaneGradients([weight], 2, ALONE)
    with gradients.lane():
        weight.sum().backward()
    with pytest.raises(MemoryError), gradients.lane():
        weight.sum().backward()
        raise MemoryError
    for _ in range(2):
        with gradients.lane():
            (3 * weight).sum().backward()
    gradients.finish()
    assert weight.grad is not None and weight.grad.tolist() == [6, 6]


def test_wrong_use_is_an_error() -> None:
    weight = nn.Parameter(torch.ones(2))
    gradients = LaneGradients([weight], 2, ALONE)
    with pytest.raises(RuntimeError, match="0 of 2 lanes"):
        gradients.finish()
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="before its lane"), gradients.lane():
        pass
    weight.grad = None
    for _ in range(2):
        with gradients.lane():
            weight.sum().backward()
    with pytest.raises(RuntimeError, match="call finish"), gradients.lane():
        pass


def test_gathering_alone_returns_the_values() -> None:
    values = torch.rand(4, 3)
    assert LaneGradients([], 4, ALONE).gather(values) is values
