"""Trainable sets, blocks, frozen modules and parameter groups, on every kind of network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stagewright.errors import ModelError
from stagewright.model.groups import (
    apply_trainable,
    blocks,
    head_modules,
    parameter_depths,
    parameter_groups,
    set_train_mode,
    trainable_names,
)
from stagewright.model.zoo import create_model

TINY = {"width": 4, "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    vit = {"depth": 3, "heads": 1, "width": 8}
    return {
        "resnet18": create_model("resnet18", 5, image_size=32),
        "mobilenet_v2": create_model("mobilenet_v2", 5, image_size=32, options={"width_mult": 0.25}),
        "swin_t": create_model("swin_t", 5, image_size=32),
        "vit_b_32": create_model("vit_b_32", 5, image_size=32),
        "squeezenet1_1": create_model("squeezenet1_1", 5, image_size=32),
        "vit": create_model("vit", 5, image_size=16, options=vit),
        "convnext_atto": create_model("convnext_atto", 5, image_size=32),
        "cifar_resnet18": create_model("cifar_resnet18", 5, image_size=16, options=TINY),
        "cifar_preact_resnet18": create_model("cifar_preact_resnet18", 5, image_size=16, options=TINY),
        "timm:resnet18": create_model("timm:resnet18", 5, image_size=32),
        "efficientnet": create_model("timm:test_efficientnet", 5, image_size=32),
    }


@pytest.mark.parametrize(
    ("name", "head", "last", "count"),
    [
        ("resnet18", "fc", ["layer3", "layer4"], 5),
        ("timm:resnet18", "fc", ["layer3", "layer4"], 5),
        ("mobilenet_v2", "classifier.1", ["features.17", "features.18"], 19),
        ("swin_t", "head", ["features.6", "features.7"], 8),
        ("vit_b_32", "heads.head", ["encoder.layers.encoder_layer_10", "encoder.layers.encoder_layer_11"], 13),
        ("squeezenet1_1", "classifier.1", ["features.11", "features.12"], 9),
        ("vit", "head", ["blocks.1", "blocks.2"], 4),
        ("convnext_atto", "head.fc", ["stages.2", "stages.3"], 5),
        ("cifar_resnet18", "fc", ["layer3", "layer4"], 5),
        ("cifar_preact_resnet18", "fc", ["layer3", "layer4"], 5),
    ],
)
def test_heads_and_blocks(models: dict[str, nn.Module], name: str, head: str, last: list[str], count: int) -> None:
    assert head_modules(models[name]) == [head]
    found = blocks(models[name])
    assert (found[-2:], len(found)) == (last, count)


@pytest.mark.parametrize(
    ("name", "train", "tops"),
    [
        ("resnet18", "last:1", {"layer4", "fc"}),
        ("resnet18", "last:3", {"layer2", "layer3", "layer4", "fc"}),
        ("resnet18", "last:5", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}),
        ("mobilenet_v2", "last:1", {"features.18", "classifier.1"}),
        ("swin_t", "last:1", {"features.7", "norm", "head"}),
        ("vit", "last:1", {"blocks.2", "norm", "head"}),
        ("convnext_atto", "last:1", {"stages.3", "head.norm", "head.fc"}),
        ("cifar_preact_resnet18", "last:1", {"layer4", "norm", "fc"}),
        ("vit_b_32", "last:1", {"encoder.layers.encoder_layer_11", "encoder.ln", "heads.head"}),
    ],
)
def test_last_blocks_bring_the_head_and_the_norms_between(
    models: dict[str, nn.Module], name: str, train: str, tops: set[str]
) -> None:
    expected = {n for n, _ in models[name].named_parameters() if any(n.startswith(f"{top}.") for top in tops)}
    assert trainable_names(models[name], train) == expected


def test_head_is_the_layer_that_yields_the_logits_and_all_is_all(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        assert trainable_names(model, "all") == {name for name, _ in model.named_parameters()}
        head = trainable_names(model, "head")
        assert len(head) == 2
        assert all(model.get_parameter(name).shape[0] == 5 for name in head)


def test_every_last_n_contains_the_one_before(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        before = trainable_names(model, "head")
        for n in range(1, len(blocks(model)) + 1):
            now = trainable_names(model, f"last:{n}")
            assert before < now
            before = now
        loose = {name for name, _ in model.named_parameters()} - before
        assert all(
            name.rsplit(".", 1)[-1] in ("cls_token", "pos_embed", "class_token", "pos_embedding") for name in loose
        )


def test_patterns(models: dict[str, nn.Module]) -> None:
    model = models["resnet18"]
    assert trainable_names(model, ("fc.*",)) == {"fc.weight", "fc.bias"}
    assert trainable_names(model, ("fc",)) == {"fc.weight", "fc.bias"}, "a module's name selects all of its parameters"
    assert trainable_names(model, ("layer4.1.bn?.bias", "fc.bias")) == {
        *("layer4.1.bn1.bias", "layer4.1.bn2.bias"),
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("train", "tops"),
    [
        (("!layer2.*",), {"conv1", "bn1", "layer1", "layer3", "layer4", "fc"}),
        (("!layer2", "!layer3", "!*.bias"), {"conv1", "bn1", "layer1", "layer4", "fc"}),
        (("layer3.*", "layer4.*", "!layer3.0"), {"layer3.1", "layer4"}),
        (("layer4", "!layer4.0", "layer4.0.bn1"), {"layer4.1", "layer4.0.bn1"}),
        (("!*", "fc"), {"fc"}),
    ],
)
def test_patterns_that_take_away(models: dict[str, nn.Module], train: tuple[str, ...], tops: set[str]) -> None:
    """Exclusions apply in order: to the patterns before them, or to all parameters if one comes first."""
    names = {n for n, _ in models["resnet18"].named_parameters() if any(n.startswith(f"{top}.") for top in tops)}
    without = {name for name in names if name.endswith(".bias")} if "!*.bias" in train else set[str]()
    assert trainable_names(models["resnet18"], train) == names - without


@pytest.mark.parametrize(
    ("train", "given", "allowed"),
    [
        (("!layre2.*",), "'!layre2.*' matches no parameter; did you mean '!layer2.*'?", "from conv1.weight to fc.bias"),
        (("fc", "!fc.weight", "!fc.bias"), "['fc', '!fc.weight', '!fc.bias'] leave no parameter", "excludes"),
        (("layre4.*",), "'layre4.*' matches no parameter; did you mean 'layer4.*'?", "from conv1.weight to fc.bias"),
        ("last:6", "more blocks than the model has", "last:1 to last:5; its blocks are conv1, layer1"),
        ("last:0", "'last:0' means nothing", "last:N"),
        ("body", "'body' means nothing", "all, head, last:N"),
    ],
)
def test_what_cannot_be_meant(models: dict[str, nn.Module], train: str, given: str, allowed: str) -> None:
    with pytest.raises(ModelError) as error:
        trainable_names(models["resnet18"], train)
    assert given in error.value.given
    assert allowed in error.value.allowed


def test_apply_trainable_counts_and_drops_old_gradients() -> None:
    model = create_model("cifar_resnet18", 5, image_size=16, options=TINY)
    total = sum(parameter.numel() for parameter in model.parameters())
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    trainable, frozen = apply_trainable(model, "head")
    assert (trainable, trainable + frozen) == (32 * 5 + 5, total)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}
    assert apply_trainable(model, "all") == (total, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def running_means(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")}


def test_statistics_of_frozen_batch_norms_do_not_move() -> None:
    model = create_model("cifar_resnet18", 5, image_size=16, options=TINY, drop_path=0.5)
    apply_trainable(model, "last:1")
    set_train_mode(model)
    before = {name: means.clone() for name, means in running_means(model).items()}
    model(torch.randn(4, 3, 16, 16) + 1)
    moved = {name for name, means in running_means(model).items() if not torch.equal(before[name], means)}
    assert moved
    assert moved == {name for name in before if name.startswith("layer4.")}
    assert model.training
    assert model.get_submodule("layer4.0.drop_path").training
    assert not model.get_submodule("layer3.0.drop_path").training, "a frozen block drops nothing"
    apply_trainable(model, "all")
    set_train_mode(model)
    assert all(module.training for module in model.modules()), "unfreezing wakes everything"


def test_groups_hold_every_parameter_once(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        apply_trainable(model, "head")
        groups = parameter_groups(model, 0.05, decay_norm_and_bias=False)
        names = [name for group in groups for name in group["names"]]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        for group in groups:
            assert [id(p) for p in group["params"]] == [id(model.get_parameter(name)) for name in group["names"]]
            assert group["weight_decay"] == (0.05 if group["decays"] else 0.0)
            assert group["names"] == [name for name, _ in model.named_parameters() if name in set(group["names"])]


def test_without_layer_decay_the_groups_are_two(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        groups = parameter_groups(model, 0.05, decay_norm_and_bias=False)
        assert [(g["decays"], g["lr_scale"]) for g in groups] == [(True, 1.0), (False, 1.0)]
        again = parameter_groups(model, 0.05, decay_norm_and_bias=False, layer_decay=1.0)
        assert [g["names"] for g in again] == [g["names"] for g in groups]


def rates(model: nn.Module, layer_decay: float = 0.5) -> dict[str, float]:
    """``lr_scale`` of every parameter, by name."""
    groups = parameter_groups(model, 0.05, decay_norm_and_bias=False, layer_decay=layer_decay)
    return {name: group["lr_scale"] for group in groups for name in group["names"]}


@pytest.mark.parametrize(
    ("name", "some"),
    [
        (
            "resnet18",
            {"fc.weight": 0, "layer4.1.bn2.bias": 1, "layer3.0.conv1.weight": 2, "layer2.0.downsample.0.weight": 3}
            | {"layer1.0.conv1.weight": 4, "bn1.weight": 5, "conv1.weight": 5},
        ),
        (
            "mobilenet_v2",
            {"classifier.1.bias": 0, "features.18.1.weight": 1, "features.17.conv.0.0.weight": 2}
            | {"features.1.conv.0.0.weight": 18, "features.0.0.weight": 19},
        ),
        (
            "swin_t",
            {"head.weight": 0, "norm.weight": 1, "features.7.1.attn.qkv.weight": 1, "features.6.reduction.weight": 2}
            | {"features.5.5.attn.relative_position_bias_table": 3, "features.1.0.norm1.bias": 7}
            | {"features.0.0.weight": 8, "features.0.2.weight": 8},
        ),
        (
            "vit",
            {"head.bias": 0, "norm.weight": 1, "blocks.2.attn.qkv.weight": 1, "blocks.0.mlp.fc1.bias": 3}
            | {"patch_embed.proj.weight": 4, "cls_token": 4, "pos_embed": 4},
        ),
        (
            "vit_b_32",
            {"heads.head.weight": 0, "encoder.ln.bias": 1, "encoder.layers.encoder_layer_0.mlp.0.weight": 12}
            | {"conv_proj.weight": 13, "class_token": 13, "encoder.pos_embedding": 13},
        ),
    ],
)
def test_each_block_learns_slower_than_the_one_behind_it(
    models: dict[str, nn.Module], name: str, some: dict[str, int]
) -> None:
    """Parameters outside of all blocks have the same learning rate as the stem."""
    depths, found = parameter_depths(models[name]), rates(models[name])
    assert {parameter: depths[parameter] for parameter in some} == some
    assert found == {parameter: 0.5**depth for parameter, depth in depths.items()}


def test_layer_decay_of_every_network(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        depths, groups = parameter_depths(model), parameter_groups(model, 0.05, False, layer_decay=0.8)
        assert set(depths.values()) == set(range(len(blocks(model)) + 1)), "no depth is left out"
        names = [name for group in groups for name in group["names"]]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        plain = parameter_groups(model, 0.05, False)
        assert {n for g in groups if g["decays"] for n in g["names"]} == set(plain[0]["names"])
        assert all(g["weight_decay"] == (0.05 if g["decays"] else 0.0) and g["params"] for g in groups)
        assert all([id(model.get_parameter(n)) for n in g["names"]] == [id(p) for p in g["params"]] for g in groups)
        assert [g["lr_scale"] for g in groups] == sorted(g["lr_scale"] for g in groups), "from the stem to the head"


def test_a_network_of_one_layer_is_all_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert rates(model) == {"1.weight": 1.0, "1.bias": 1.0}


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("vit", ("cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias")),
        ("vit_b_32", ("class_token", "encoder.pos_embedding", "conv_proj.bias")),
        ("swin_t", ("features.1.0.attn.relative_position_bias_table", "features.1.0.norm1.weight")),
        ("resnet18", ("bn1.weight", "layer1.0.bn1.bias", "fc.bias")),
    ],
)
def test_what_does_not_decay(models: dict[str, nn.Module], name: str, still: tuple[str, ...]) -> None:
    decaying, others = parameter_groups(models[name], 0.1, decay_norm_and_bias=False)
    assert decaying["decays"] and not others["decays"]
    assert set(still) <= set(others["names"])
    assert all(parameter.ndim > 1 for parameter in decaying["params"])


def test_norms_and_biases_decay_where_asked(models: dict[str, nn.Module]) -> None:
    (everything,) = parameter_groups(models["resnet18"], 0.1, decay_norm_and_bias=True)
    assert everything["decays"]
    _, exempt = parameter_groups(models["vit"], 0.1, decay_norm_and_bias=True)
    assert exempt["names"] == ["cls_token", "pos_embed"], "parameters in the model's no_weight_decay() never decay"
