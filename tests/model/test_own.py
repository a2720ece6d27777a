"""Networks of one's own: built by name, tried before training, and heads found in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import own_parts
import pytest
import torch
from torch import nn

from stagewright.errors import ModelError, RecipeError
from stagewright.model.catalog import find_model
from stagewright.model.groups import blocks, head_modules, parameter_groups, trainable_names
from stagewright.model.own import check_own
from stagewright.model.weights import load_weights
from stagewright.model.zoo import IMAGENET, create_model, create_with_report, model_normalisation

NET = "python:own_parts:Net"


def test_it_is_called_with_classes_and_options() -> None:
    model = create_model(NET, 7, image_size=32, options={"width": 6})
    assert isinstance(model, own_parts.Net)
    assert model.head.weight.shape == (7, 12)
    assert str(find_model(NET)) == NET and model_normalisation(NET) == IMAGENET


def test_its_weights_are_a_function_of_the_seed() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(create_model(NET, 4, image_size=32).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_head_blocks_and_groups() -> None:
    model = create_model(NET, 4, image_size=32)
    assert head_modules(model) == ["head"], "by its name, though a linear layer is defined after it"
    assert blocks(model) == ["stem", "deep", "project"]
    assert trainable_names(model, "head") == {"head.weight", "head.bias"}
    assert trainable_names(model, "last:1") == {"head.weight", "head.bias", "project.weight", "project.bias"}
    assert trainable_names(model, ("deep.0",)) == {"deep.0.weight", "deep.0.bias"}
    groups = parameter_groups(model, 0.1, False)
    assert [group["decays"] for group in groups] == [True, False]
    assert all(p.ndim == 1 for p in groups[1]["params"])


@pytest.mark.parametrize("names", [("body", "classifier"), ("fc", "project"), ("body", "last")])
def test_a_head_is_found_by_name_else_as_the_last_linear_layer(names: tuple[str, str]) -> None:
    model = nn.Module()
    for name in names:
        model.add_module(name, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    known = next((name for name in names if name in ("classifier", "fc")), names[-1])
    assert head_modules(model) == [f"{known}.1"]


def test_weights_with_another_class_count_leave_a_new_head(tmp_path: Path) -> None:
    source = create_model(NET, 9, image_size=32)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = create_model(NET, 4, image_size=32)
    report = load_weights(model, tmp_path / "w.pth", 4)
    assert {name for name, _ in report.skipped} == {"head.weight", "head.bias"}
    assert torch.equal(model.get_parameter("deep.0.weight"), source.get_parameter("deep.0.weight"))


def test_trying_it_leaves_no_trace() -> None:
    model = own_parts.Net(4)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    model.stem.eval()
    check_own(NET, model, 4, 16, torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert model.training and not model.stem.training


@pytest.mark.parametrize(
    ("fault", "given", "remedy"),
    [
        (
            "one class more",
            r"gave \(2, 5\) torch.float32 for images \(2, 3, 16, 16\) float32",
            "return only the logits",
        ),
        ("whole numbers", r"gave \(2, 4\) torch.int64", "return only the logits"),
        ("tuple in training", "gave a tuple for .* in training mode", "return only the logits"),
        ("not finite", "gave logits that are not finite", "initial weights"),
        ("detached", "no parameter gets a gradient", "detach"),
        ("view", "RuntimeError: view size is not compatible", "reshape"),
        ("raises", r"ValueError: no such thing \(.*own_parts.py, line \d+\)", "correct the function"),
    ],
)
def test_networks_that_cannot_be_trained_are_explained(fault: str, given: str, remedy: str) -> None:
    name = "python:own_parts:OwnWeights"
    model = create_model(name, 4, image_size=16, options={"fault": fault})
    with pytest.raises(ModelError, match=given) as caught:
        check_own(name, model, 4, 16, torch.channels_last)
    assert name in caught.value.given and caught.value.allowed and remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "options", "error", "given"),
    [
        ("gives_text", {}, ModelError, "returned a str"),
        ("gives_no_parameters", {}, ModelError, "a network without parameters"),
        ("gives_up", {}, ModelError, r"RuntimeError: no weights today \(.*own_parts.py"),
        ("Net", {"widht": 3}, RecipeError, "cannot be called with num_classes, widht: got an unexpected keyword"),
        ("Net", {"num_classes": 3}, ModelError, "model.options.num_classes"),
        (
            "Nett",
            {},
            RecipeError,
            "model.name: python:own_parts:Nett: module own_parts has no 'Nett'; did you mean 'Net'",
        ),
        ("IMAGES", {}, RecipeError, "has no 'IMAGES'"),
    ],
)
def test_functions_that_make_no_network_are_explained(
    name: str, options: dict[str, Any], error: type[Exception], given: str
) -> None:
    with pytest.raises(error, match=given):
        create_model(f"python:own_parts:{name}", 4, image_size=16, options=options)


def test_what_only_libraries_have() -> None:
    with pytest.raises(ModelError, match=re.escape("default: own_parts:Net has no pretrained weights")):
        create_with_report(NET, 4, image_size=16, pretrained=True)
    with pytest.raises(ModelError, match=r"model.drop_path: 0\.1 with python:own_parts:Net"):
        create_model(NET, 4, image_size=16, drop_path=0.1)
    with pytest.raises(RecipeError, match="No module named 'absent_parts'"):
        create_model("python:absent_parts:Net", 4, image_size=16)
