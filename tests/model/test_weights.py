"""Weights from files and runs: what is loaded, what is not, and that the report states exactly that."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from stagewright.errors import ModelError
from stagewright.model.fit import described
from stagewright.model.weights import load_weights
from stagewright.model.zoo import create_model

TINY = {"width": 4, "blocks": [1, 1]}
VIT = {"patch": 4, "depth": 2, "heads": 1, "width": 8}


def network(classes: int = 5, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("cifar_resnet18", classes, image_size=16, options={**TINY, **options})


def same(model: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items() if name not in but)


def as_run(folder: Path, model: nn.Module, classes: list[str]) -> Path:
    """What of a run's directory matters here."""
    (folder / "model").mkdir(parents=True)
    save_file(model.state_dict(), folder / "model" / "weights.safetensors")
    (folder / "model" / "model.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"net.{name}": tensor for name, tensor in state.items()},
        lambda state: {"ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in state.items()}}},
        lambda state: {"model_ema": state, "state_dict": {name: tensor * 0 for name, tensor in state.items()}},
        lambda state: {"step": 7, "model": state, "optimizer": {"state": {}, "param_groups": []}},
    ],
)
def test_common_wrappings(wrap: Any, tmp_path: Path) -> None:
    source, model = network(seed=1), network(seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", 5)
    assert same(model, source)
    assert report.skipped == report.missing == report.unexpected == ()
    assert report.loaded_parameters == report.parameters == sum(p.numel() for p in model.parameters())


def test_safetensors_and_half_precision(tmp_path: Path) -> None:
    source, model = network(seed=1), network(seed=2)
    half = {name: t.half() if t.is_floating_point() else t for name, t in source.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors", 5)
    assert torch.equal(model.get_parameter("fc.weight"), source.get_parameter("fc.weight").half().float())
    assert model.get_parameter("fc.weight").dtype == torch.float32


def test_head_of_another_size_stays_as_drawn_but_narrow_and_the_report_counts(tmp_path: Path) -> None:
    source, model, untouched = network(9, seed=1), network(5, seed=2), network(5, seed=2)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", 5)
    assert same(model, source, but=("fc.weight", "fc.bias"))
    drawn = untouched.get_parameter("fc.weight")
    assert torch.allclose(model.get_parameter("fc.weight"), drawn * (0.01 / drawn.square().mean().sqrt()))
    assert not model.get_parameter("fc.bias").any()
    assert report.skipped == tuple(
        (f"fc.{part}", "the head has 9 classes in the source, 5 here; it starts random") for part in ("weight", "bias")
    )
    assert report.parameters - report.loaded_parameters == 8 * 5 + 5
    text = "\n".join(report.lines())
    assert "not loaded: fc.weight: the head has 9 classes" in text
    assert f"{report.loaded_parameters:,} of {report.parameters:,} parameters loaded" in text


def test_heads_in_a_wrapper_are_heads_too(tmp_path: Path) -> None:
    torch.save(create_model("timm:levit_128s", 9, image_size=32).state_dict(), tmp_path / "w.pth")
    report = load_weights(create_model("timm:levit_128s", 5, image_size=32), tmp_path / "w.pth", 5)
    assert {name for name, _ in report.skipped} == {
        *("head.linear.weight", "head.linear.bias"),
        *("head_dist.linear.weight", "head_dist.linear.bias"),
    }
    assert all("it starts random" in why for _, why in report.skipped)


def test_missing_unexpected_and_misshapen_are_told_apart(tmp_path: Path) -> None:
    state = dict(network(seed=1).state_dict())
    del state["layer1.0.bn1.weight"]
    state["extra"] = torch.zeros(2)
    state["layer1.0.bn2.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(network(), tmp_path / "w.pth", 5)
    assert report.missing == ("layer1.0.bn1.weight",)
    assert report.unexpected == ("extra",)
    assert report.skipped == (("layer1.0.bn2.bias", "7 in the source, 4 here"),)
    assert "not in the source, so random: layer1.0.bn1.weight" in report.lines()
    assert "in the source but not in the model, so unused: extra" in report.lines()


def test_head_rows_go_by_class_name(tmp_path: Path) -> None:
    source = network(4, seed=1)
    run = as_run(tmp_path / "run", source, ["ant", "bee", "cat", "dog"])
    model, untouched = network(3, seed=2), network(3, seed=2)
    report = load_weights(model, run, 3, classes=("dog", "emu", "ant"))
    for part in ("fc.weight", "fc.bias"):
        ours, theirs, random = (one.get_parameter(part) for one in (model, source, untouched))
        assert torch.equal(ours[0], theirs[3])
        assert torch.equal(ours[1], random[1])
        assert torch.equal(ours[2], theirs[0])
    lines = report.lines()
    assert "head rows were copied by class name for 2 of 3 classes" in lines
    assert "classes new to the source, whose head rows start random: emu" in lines
    assert "classes of the source that are not used: bee, cat" in lines
    assert report.parameters - report.loaded_parameters == 8 + 1, "one row of the weight and one bias are random"


def test_same_number_of_classes_in_another_order_is_permuted_not_copied(tmp_path: Path) -> None:
    source, model = network(3, seed=1), network(3, seed=2)
    run = as_run(tmp_path / "run", source, ["ant", "bee", "cat"])
    load_weights(model, run, 3, classes=("cat", "ant", "bee"))
    assert torch.equal(model.get_parameter("fc.weight"), source.get_parameter("fc.weight")[[2, 0, 1]])


def test_a_bundle_a_run_and_its_weights_file_are_the_same_source(tmp_path: Path) -> None:
    run = as_run(tmp_path / "run", network(3, seed=1), ["ant", "bee", "cat"])
    for source in (run, run / "model", run / "model" / "weights.safetensors"):
        report = load_weights(network(3), source, 3, classes=("ant", "bee", "cat"))
        assert "the head was loaded completely: the source has the same classes in the same order" in report.notes


def test_no_class_in_common(tmp_path: Path) -> None:
    run = as_run(tmp_path / "run", network(3, seed=1), ["ant", "bee", "cat"])
    model, untouched = network(3, seed=2), network(3, seed=2)
    report = load_weights(model, run, 3, classes=("x", "y", "z"))
    drawn, narrow = untouched.get_parameter("fc.weight"), model.get_parameter("fc.weight")
    assert torch.allclose(narrow / narrow.square().mean().sqrt(), drawn / drawn.square().mean().sqrt())
    assert [name for name, _ in report.skipped] == ["fc.weight", "fc.bias"]


def test_a_head_without_names_is_loaded_with_a_warning(tmp_path: Path) -> None:
    torch.save(network(3, seed=1).state_dict(), tmp_path / "w.pth")
    report = load_weights(network(3), tmp_path / "w.pth", 3, classes=("ant", "bee", "cat"))
    assert any("without class names to compare" in note for note in report.notes)


def test_positions_are_resampled_for_another_image_size(tmp_path: Path) -> None:
    small = create_model("vit", 5, image_size=16, options=VIT)
    torch.save(small.state_dict(), tmp_path / "w.pth")
    large = create_model("vit", 5, image_size=24, options=VIT)
    report = load_weights(large, tmp_path / "w.pth", 5)
    assert "pos_embed: positions resampled from 17 to 37 tokens (bicubic)" in report.notes
    ours, theirs = (model.get_parameter("pos_embed").detach() for model in (large, small))
    assert torch.equal(ours[:, :1], theirs[:, :1]), "the class token's position embedding is not resampled"
    assert float(ours[:, 1:].mean()) == pytest.approx(float(theirs[:, 1:].mean()), abs=2e-3)
    assert report.loaded_parameters == report.parameters


def test_mobilenet_loads_into_torchvision_by_name_and_into_timm_by_order(shared_data: Path) -> None:
    file = shared_data / "mobilenet_v2-imagenet.pth"
    by_name = create_model("mobilenet_v2", 1000, image_size=64).eval()
    by_order = create_model("timm:mobilenetv2_100", 1000, image_size=64).eval()
    assert not any("order" in note and "names do not fit" in note for note in load_weights(by_name, file, 1000).notes)
    report = load_weights(by_order, file, 1000)
    assert any("loaded by order" in note for note in report.notes)
    assert report.missing == report.skipped == ()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(by_name(pictures), by_order(pictures), atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:mobilenetv2_100"])
def test_mobilenet_with_another_head(name: str, shared_data: Path) -> None:
    report = load_weights(create_model(name, 10, image_size=64), shared_data / "mobilenet_v2-imagenet.pth", 10)
    assert len(report.skipped) == 2
    assert report.loaded_parameters == 2_223_872


def test_order_is_not_trusted_where_shapes_differ(tmp_path: Path) -> None:
    renamed = {f"x{at}": tensor for at, tensor in enumerate(network(width=8).state_dict().values())}
    torch.save(renamed, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="0 % of the model's tensors"):
        load_weights(network(), tmp_path / "w.pth", 5)
    save_file({f"x{at}": t.clone() for at, t in enumerate(network().state_dict().values())}, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match="0 % of the model's tensors"
    ):  # safetensors sorts by name, so the order has no meaning
        load_weights(network(), tmp_path / "w.safetensors", 5)


def test_a_file_of_another_network_shows_both_sides(tmp_path: Path) -> None:
    torch.save(create_model("vit", 5, image_size=16, options=VIT).state_dict(), tmp_path / "w.pth")
    model, untouched = network(seed=3), network(seed=3)
    with pytest.raises(ModelError) as error:
        load_weights(model, tmp_path / "w.pth", 5)
    assert "does not fit this model: it has 0 %" in error.value.given
    assert "stem.0.weight" in error.value.allowed
    assert "cls_token" in error.value.allowed
    assert "model.name" in error.value.remedy
    assert same(model, untouched), "nothing was loaded"


@pytest.mark.slow
def test_common_networks_are_known_by_their_size() -> None:
    for name in (
        "resnet18",
        "wide_resnet50_2",
        "mobilenet_v3_large",
        "efficientnet_b1",
        "vit_b_16",
        "densenet121",
        "swin_t",
    ):
        with torch.device("meta"):
            assert described(torchvision.models.get_model(name).state_dict()).startswith(f"{name} (")


def saved(name: str, folder: Path, drop: str = "") -> Path:
    state = torchvision.models.get_model(name, num_classes=7).state_dict()
    torch.save({key: tensor for key, tensor in state.items() if not drop or not key.startswith(drop)}, folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize(
    ("file", "model", "why"),
    [
        ("resnet50", "resnet18", "it has 77 % of the model's tensors and 56 % of its parameters"),
        ("resnet18", "resnet34", "it has 56 % of the model's tensors and 53 % of its parameters"),
        ("wide_resnet50_2", "resnet50", "it has 34 % of the model's tensors and 12 % of its parameters"),
        (
            "resnet34",
            "resnet18",
            "all that the model needs, but of its own parameters of these kinds only 53 % are used",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused_and_both_are_named(
    file: str, model: str, why: str, tmp_path: Path
) -> None:
    network = create_model(f"torchvision:{model}", 7, image_size=64)
    with pytest.raises(ModelError) as error:
        load_weights(network, saved(file, tmp_path), 7)
    assert why in error.value.given
    assert f"The file is of {file} (" in error.value.given and f"the model is {model} (" in error.value.given
    assert "model.name" in error.value.remedy


@pytest.mark.parametrize(
    ("file", "model"),
    [("resnet18", "timm:resnet18d"), ("resnet50", "timm:seresnet50"), ("resnet50", "timm:resnet50d")],
)
def test_close_relatives_are_loaded_in_part(file: str, model: str, tmp_path: Path) -> None:
    report = load_weights(create_model(model, 5, image_size=64), saved(file, tmp_path), 5)
    assert report.missing and 0.8 < report.loaded_parameters / report.parameters < 1


def test_a_file_of_the_backbone_alone_is_loaded(tmp_path: Path) -> None:
    model = create_model("torchvision:resnet18", 5, image_size=64)
    report = load_weights(model, saved("resnet18", tmp_path, drop="fc."), 5)
    assert [name for name, _ in report.skipped] == ["fc.weight", "fc.bias"]
    assert not report.missing


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = network(seed=1)
    with torch.no_grad():
        source.get_parameter("fc.bias")[1] = float("nan")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model, untouched = network(seed=3), network(seed=3)
    with pytest.raises(ModelError, match=r"fc.bias has numbers that are not finite"):
        load_weights(model, tmp_path / "w.pth", 5)
    assert same(model, untouched)


def damaged(path: Path, kind: str) -> Path:
    if kind == "object":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    else:
        torch.save(network().state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000] if kind == "truncated" else b"<html>not found</html>")
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("object", r"it holds Python objects \(torch.nn.modules.linear.Linear\)"),
        ("no tensors", "it has no tensors by name, but entries epoch"),
        ("truncated", "it is not a file of torch.save"),
        ("foreign", "it is not a file of torch.save"),
    ],
)
def test_files_that_are_no_weights(kind: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"cannot be read as weights: {why}") as error:
        load_weights(network(), damaged(tmp_path / "w.pth", kind), 5)
    assert "state_dict" in error.value.allowed


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"hello, this is nothing")
    with pytest.raises(ModelError, match=r"w.safetensors cannot be read as weights"):
        load_weights(network(), tmp_path / "w.safetensors", 5)


def test_no_file_no_model_and_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file or directory") as error:
        load_weights(network(), tmp_path / "nothing.pth", 5)
    assert "default" in error.value.allowed
    with pytest.raises(ModelError, match="holds no trained model"):
        load_weights(network(), tmp_path, 5)
    state = tmp_path / "checkpoints" / "step_000500" / "state.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    with pytest.raises(ModelError) as unfinished:
        load_weights(network(), tmp_path, 5)
    assert str(state) in unfinished.value.remedy


def test_a_damaged_card(tmp_path: Path) -> None:
    run = as_run(tmp_path / "run", network(3), ["ant", "bee", "cat"])
    (run / "model" / "model.json").write_text("{")
    with pytest.raises(ModelError, match=r"model.json is damaged"):
        load_weights(network(3), run, 3)
