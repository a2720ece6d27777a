"""Optimizers of one's own: they get the groups, obey the schedule, and are tried first."""

from __future__ import annotations

import copy
from typing import Any

import own_parts
import pytest
import torch
from torch import nn

from stagewright.engine.optim import make_optimizer, set_hyper
from stagewright.errors import ModelError, RecipeError
from stagewright.model.groups import parameter_groups


def network() -> nn.Module:
    torch.manual_seed(3)
    return own_parts.Net(4)


def make(name: str, model: nn.Module, layer_decay: float = 1.0, **options: Any) -> torch.optim.Optimizer:
    groups = parameter_groups(model, 0.01, False, layer_decay)
    return make_optimizer(groups, f"python:own_parts:{name}", lr=0.1, momentum=0.9, options=options)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["lion", "split"])
def test_its_groups_follow_the_schedule(name: str, layer_decay: float) -> None:
    model = network()
    optimizer = make(name, model, layer_decay)
    set_hyper(optimizer, lr=0.02, momentum=0.8, weight_decay=0.3)
    scales = {group["lr_scale"] for group in parameter_groups(model, 0.01, False, layer_decay)}
    assert sorted({group["lr"] / 0.02 for group in optimizer.param_groups}) == pytest.approx(sorted(scales))
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.8
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}


def test_split_groups_train_as_whole_ones() -> None:
    trained = []
    for name in ("python:own_parts:split", "sgd"):
        model = network()
        optimizer = make_optimizer(parameter_groups(model, 0.01, False), name, lr=0.1, momentum=0.9)
        for step in range(3):
            set_hyper(optimizer, lr=0.1 / (step + 1), momentum=0.9, weight_decay=0.01)
            optimizer.zero_grad()
            torch.manual_seed(step)
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(trained[0], trained[1], atol=1e-6)


def test_its_state_goes_on_exactly() -> None:
    model = network()
    optimizer = make("lion", model)
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    again_model = copy.deepcopy(model)
    again = make("lion", again_model)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, again):
        set_hyper(one, lr=0.05, momentum=0.9, weight_decay=0.01)
    for mine, theirs in zip(model.parameters(), again_model.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    optimizer.step()
    again.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again_model.parameters(), strict=True))


def test_trying_it_moves_nothing_of_the_network() -> None:
    model, state = network(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    optimizer = make("lion", model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "given", "remedy"),
    [
        ("gives_no_optimizer", "returned a str", "return the optimizer"),
        ("one_group", r"left out \d+ of 12 parameters, and has 0", "pass all groups"),
        ("joined", "joined groups of different weight decay or learning rate", "within each given one"),
        ("deaf", "moved parameters with a learning rate of 0 in its groups", 'group["lr"]'),
        ("needs_closure", r"its step\(\) on tensors of .*TypeError.*own_parts.py", "mend the optimizer"),
    ],
)
def test_wrong_optimizers_are_explained(name: str, given: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=given) as caught:
        make(name, network())
    assert name in caught.value.given and caught.value.allowed and remedy in caught.value.remedy


def test_options_that_it_does_not_take() -> None:
    with pytest.raises(RecipeError, match=r"python:own_parts:lion cannot be called with .*betas: got an unexpected"):
        make("lion", network(), betas=[0.9, 0.99])
    with pytest.raises(ModelError, match=r"optimizer.options.lr with python:own_parts:lion"):
        make("lion", network(), lr=3.0)
