"""Sums of lanes' gradients: the tree's bits, in one process and in several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_jobs import lane_gradients, lane_loss, network
from ranks import run_sizes, start_worlds
from torch import nn

from stagewright.distributed.reduce import LaneGradients
from stagewright.distributed.tree import PartialSums, fold
from stagewright.distributed.world import World
from stagewright.errors import WorldError

ALONE = World.alone("cpu")


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


def test_a_missing_gradient_counts_as_zeros_and_a_frozen_one_stays_none() -> None:
    a, b, frozen = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    gradients = LaneGradients([a, b, frozen], 3, ALONE)
    for lane in range(3):
        with gradients.lane():
            loss = (a * (lane + 1)).sum()
            (loss + b.sum() if lane == 1 else loss).backward()
    gradients.finish()
    assert a.grad is not None and a.grad.tolist() == [6, 6, 6]
    assert b.grad is not None and b.grad.tolist() == [1, 1, 1]
    assert frozen.grad is None


def test_a_missing_gradient_is_added_as_zeros_are() -> None:
    """0.0 is the sum of -0.0 and 0.0, whichever of two lanes gives nothing: as where the lanes are of different processes."""
    for given in (0, 1):
        weight = nn.Parameter(torch.ones(2))
        gradients = LaneGradients([weight], 2, ALONE)
        for lane in range(2):
            with gradients.lane():
                if lane == given:
                    (weight * torch.tensor([-0.0, 1.0])).sum().backward()
        gradients.finish()
        assert weight.grad is not None and torch.copysign(torch.ones(2), weight.grad).tolist() == [1, 1], given


def test_gradients_do_not_pile_up() -> None:
    """A lane whose gradient is added at once needs no memory for it: as many are kept as the stack is deep."""
    weight = nn.Parameter(torch.ones(10))
    gradients = LaneGradients([weight], 8, ALONE)
    kept = []
    for _ in gradients.own:
        with gradients.lane():
            (2 * weight).sum().backward()
        kept.append(len(gradients._buckets[0].sums._stack))
    assert kept == [1, 1, 2, 1, 2, 2, 3, 1]
    gradients.finish()
    assert weight.grad is not None and weight.grad.tolist() == [16] * 10


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


def test_the_bits_are_the_same_for_every_number_of_processes(tmp_path: Path) -> None:
    """Two updates of a network in 7 and in 8 lanes: gradients that come in order, in another order, and without hooks; half
    precision; exchanged in pairs and by collectives; a parameter with few gradients; what is gathered; sums by all-reduce."""
    found = run_sizes(tmp_path / "ranks", "reduce_bits", [1, 2, 3, 4, 5, 8])
    alone = found[1][0]["ordered"]
    assert len(alone) == 16
    for size, ranks in found.items():
        for rank, own in enumerate(one["ordered"] for one in ranks):
            assert own == {name: alone[name] for name in own}, f"rank {rank} of {size}"
            assert len(own) == (16 if size <= 7 else 8)
    for lanes in (7, 8):
        bits = alone[f"{lanes} lanes"]
        assert len(set(bits)) == 3
        assert alone[f"{lanes} lanes, no hooks"] == bits
        assert alone[f"{lanes} lanes, collectives"] == bits
        assert alone[f"{lanes} lanes, hooks shuffled"] == bits
        assert alone[f"{lanes} lanes, gathered"] == torch.tensor([[lane, lane / 3] for lane in range(lanes)]).tolist()
        assert alone[f"{lanes} lanes, partly"] == [[lanes * (lanes + 1) / 2] * 3, [1.0] * 3]
    for size in (2, 3, 5):  # by all-reduce: the same on all ranks, and nearly the sum
        own = found[size][0]["unordered"]
        assert all(one["unordered"] == own for one in found[size])
        exact, compressed = own
        assert max(exact) < 1e-6
        assert 1e-6 < max(compressed) < 0.02


def test_host_by_host_the_bits_are_the_same(tmp_path: Path) -> None:
    """Two hosts of two ranks, four of two, two of four; with 7 lanes, those of the second host of two are no subtree."""
    (alone,) = run_sizes(tmp_path / "alone", "reduce_bits", [1])[1]
    for size, each in ((4, 2), (8, 2), (8, 4)):
        with start_worlds(
            tmp_path / f"{size} by {each}", "reduce_bits_on_hosts", size, {"w": {"ranks_each": each}}
        ) as worlds:
            ranks = worlds["w"]
            assert ranks.wait() == [0] * size, ranks._errors()
            for own in (ranks.result(rank) for rank in range(size)):
                for lanes in (7, 8)[size > 7 :]:
                    kinds, in_order, shuffled = own[f"{lanes} lanes"]
                    assert in_order == shuffled == alone["ordered"][f"{lanes} lanes"], (size, each, lanes)
                    assert kinds == (["TwoLevelSum"] if lanes == 8 else ["OrderedSum"])


def test_more_processes_than_lanes_are_refused() -> None:
    world = World(rank=0, size=4, local_rank=0, local_size=4, device=torch.device("cpu"))
    with pytest.raises(WorldError, match="at most 3 processes"):
        LaneGradients([], 3, world)
