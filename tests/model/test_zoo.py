"""Models by name: their libraries, how names are resolved, their options, and error messages."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from stagewright.errors import ModelError
from stagewright.model.catalog import find_model, model_names
from stagewright.model.zoo import (
    IMAGENET,
    check_image_sizes,
    create_model,
    create_with_report,
    list_models,
    model_normalisation,
)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("cifar_resnet18", 10, 11_173_962),
        ("cifar_resnet18", 100, 11_220_132),
        ("cifar_preact_resnet18", 10, 11_172_170),
    ],
)
def test_cifar_resnets_have_the_size_that_everybody_compares(name: str, classes: int, parameters: int) -> None:
    assert num_parameters(create_model(name, classes, image_size=32)) == parameters


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_preact_resnet18"])
def test_cifar_resnet_keeps_the_resolution_of_its_stem(name: str) -> None:
    model = create_model(name, 7, image_size=32, options={"width": 8, "blocks": [1, 2, 1]})
    shapes = []
    for stage in ("stem", "layer1", "layer2", "layer3"):
        model.get_submodule(stage).register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(8, 32, 32), (8, 32, 32), (16, 16, 16), (32, 8, 8)]


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": []}, {"blocks": [1, 0]}, {"blocks": 3}, {"width": 2.5}])
def test_cifar_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"model.options.{next(iter(options))} is"):
        create_model("cifar_resnet18", 2, image_size=32, options=options)


def test_vit_takes_its_numbers_and_other_sizes() -> None:
    options = {"patch": 4, "depth": 3, "heads": 2, "width": 24, "mlp_ratio": 2.0, "dropout": 0.1}
    model = create_model("vit", 5, image_size=16, options=options)
    blocks = model.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    assert len(blocks) == 3
    assert model.get_parameter("blocks.0.mlp.fc1.weight").shape == (48, 24)
    assert model.get_parameter("pos_embed").shape == (1, 17, 24)
    check_image_sizes(model, [8, 16, 24], 5)
    with pytest.raises(ModelError, match=r"18 x 18 pixels: .*divisible by patch size"):
        check_image_sizes(model, [16, 18], 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch": 5}, "patches of 5 pixels do not tile"), ({"heads": 5, "width": 32}, "width of 32 cannot be divided")],
)
def test_vit_numbers_that_do_not_fit_together(options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("vit", 5, image_size=32, options=options)


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "squeezenet1_1", "googlenet", "timm:resnet18", "timm:convnext_atto", "timm:test_vit"],
)
def test_models_yield_logits_in_training_too(name: str) -> None:
    model = create_model(name, 3, image_size=64).train()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_models_of_a_fixed_size_are_built_for_it_and_say_so() -> None:
    model = create_model("vit_b_32", 3, image_size=64)
    check_image_sizes(model.train(), [64], 3)
    assert model.training, "the probe restores the mode"
    with pytest.raises(
        ModelError, match=r"VisionTransformer does not accept pictures of 96 x 96 pixels: Wrong image height"
    ):
        check_image_sizes(model, [64, 96], 3)
    with pytest.raises(ModelError, match=r"yields \(1, 3\) instead of \(1, 4\)"):
        check_image_sizes(model, [64], 4)


def test_transformers_of_timm_are_built_free_in_size() -> None:
    check_image_sizes(create_model("timm:test_vit", 3, image_size=64), [32, 64, 96], 3)


def test_the_probe_leaves_batch_norm_alone() -> None:
    model = create_model("cifar_resnet18", 3, image_size=16, options={"width": 4}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_image_sizes(model, [16, 8], 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_names_and_libraries() -> None:
    assert str(find_model("resnet18")) == "torchvision:resnet18"
    assert "timm:resnet18 selects the other" in find_model("resnet18").note
    assert find_model("timm:resnet18").library == "timm"
    assert find_model("convnext_atto").library == "timm"
    assert find_model("swin_t").library == "torchvision"
    assert find_model("vit").library == "stagewright"
    assert str(find_model("resnet50.a1_in1k")) == "timm:resnet50.a1_in1k"
    assert str(find_model("resnet50.IMAGENET1K_V1")) == "torchvision:resnet50.IMAGENET1K_V1"
    assert ("resnet18", "torchvision") in list_models("resnet18")
    assert ("resnet18", "timm") in list_models("resnet1?")
    assert list_models("cifar_resnet18") == [("cifar_resnet18", "stagewright")]
    assert len(list_models()) == sum(len(model_names(library)) for library in ("stagewright", "torchvision", "timm"))


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("resnet81", "'resnet81' is unknown; did you mean", "of torchvision"),
        ("tim:resnet18", "'tim:resnet18' is unknown", "timm:NAME"),
        ("timm:swin_t", "'timm:swin_t' is unknown", "of timm"),
        ("resnet18.a1_in2k", "no pretrained weights 'a1_in2k'; did you mean 'resnet18.a", "resnet18.IMAGENET1K_V1"),
    ],
)
def test_unknown_names(name: str, given: str, allowed: str) -> None:
    with pytest.raises(ModelError) as error:
        create_model(name, 2, image_size=32)
    assert given in error.value.given
    assert allowed in error.value.allowed
    assert error.value.remedy


def test_drop_path_is_set_as_each_library_scales_it() -> None:
    swin = create_model("swin_t", 2, image_size=32, drop_path=0.3)
    depths = [module.p for module in swin.modules() if isinstance(module, StochasticDepth)]
    assert depths == pytest.approx([0.3 * at / 11 for at in range(12)])
    constant = create_model("swin_t", 2, image_size=32, drop_path=0.2, options={"drop_path_mode": "constant"})
    assert {module.p for module in constant.modules() if isinstance(module, StochasticDepth)} == {0.2}
    own = create_model("cifar_resnet18", 2, image_size=32, drop_path=0.7, options={"width": 4})
    assert [module.p for module in own.modules() if isinstance(module, StochasticDepth)] == pytest.approx(
        [0.1 * at for at in range(8)]
    )
    vit = create_model("vit", 2, image_size=8, drop_path=0.2, options={"depth": 3, "heads": 1, "width": 8})
    assert float(vit.get_submodule("blocks.2.drop_path1").drop_prob) == pytest.approx(0.2)  # pyright: ignore


def test_drop_path_none_leaves_the_network_its_own() -> None:
    swin = create_model("swin_t", 2, image_size=32)
    assert max(module.p for module in swin.modules() if isinstance(module, StochasticDepth)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm:vgg11"])
def test_drop_path_where_there_is_none(name: str) -> None:
    with pytest.raises(ModelError, match="has no stochastic depth") as error:
        create_model(name, 2, image_size=32, drop_path=0.1)
    assert "swin" in error.value.allowed


@pytest.mark.parametrize(
    ("name", "options", "message", "allowed"),
    [
        ("vit", {"pach": 4}, "takes no 'pach'; did you mean 'patch'?", "patch, depth, heads"),
        ("cifar_resnet18", {"depth": 4}, "takes no 'depth'", "width, blocks"),
        ("convnext_tiny", {"drop_path_rate": 0.1}, "takes no 'drop_path_rate'", "stochastic_depth_prob"),
        ("timm:resnet18", {"stem": "deep"}, "unexpected keyword argument 'stem'", "stem_type"),
        ("resnet18", {"num_classes": 4}, "num_classes cannot be set", "the network itself"),
        ("googlenet", {"aux_logits": True}, "aux_logits cannot be set", "the network itself"),
        ("swin_t", {"drop_path_mode": "square"}, "drop_path_mode is 'square'", "linear, constant"),
        ("timm:convnext_atto", {"drop_path_mode": "constant"}, "only scales drop-path linearly", "torchvision"),
    ],
)
def test_bad_options_list_what_the_constructor_takes(
    name: str, options: dict[str, object], message: str, allowed: str
) -> None:
    with pytest.raises(ModelError) as error:
        create_model(name, 2, image_size=32, options=options)
    assert message in error.value.given
    assert allowed in error.value.allowed


def test_options_reach_the_constructor() -> None:
    assert num_parameters(create_model("mobilenet_v2", 2, image_size=32, options={"width_mult": 0.25})) < 300_000
    assert create_model("timm:resnet18", 2, image_size=32, options={"stem_width": 8, "stem_type": "deep"})


def test_normalisation_is_that_of_the_pretrained_weights() -> None:
    assert model_normalisation("resnet50") == IMAGENET
    assert model_normalisation("vit") == IMAGENET
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert model_normalisation("timm:vit_tiny_patch16_224") == half
    assert model_normalisation("googlenet") == half, "torchvision does this inside the network"


def test_torchvision_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(ModelError) as error:
        create_model("mobilenet_v3_small", 10, image_size=32, pretrained=True)
    assert "torchvision:mobilenet_v3_small.IMAGENET1K_V1 could not be fetched" in error.value.given
    assert "https://download.pytorch.org/models/mobilenet_v3_small" in error.value.given
    assert "Name or service not known" in error.value.given
    assert str(tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-") in error.value.remedy
    assert "model.weights: FILE" in error.value.remedy


def test_timm_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", unreachable)
    with pytest.raises(ModelError) as error:
        create_model("timm:test_resnet", 10, image_size=32, pretrained=True)
    assert "timm:test_resnet.r160_in1k could not be fetched from https://huggingface.co/timm/" in error.value.given
    assert "models--timm--test_resnet.r160_in1k" in error.value.remedy
    assert "model.weights: FILE" in error.value.remedy


def test_no_pretrained_weights_at_all() -> None:
    with pytest.raises(ModelError, match="vit has no pretrained weights"):
        create_model("vit", 10, image_size=32, pretrained=True)
    without = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(ModelError, match=f"timm has no pretrained weights for {without}"):
        create_model(f"timm:{without}", 10, image_size=64, pretrained=True)


def test_pretrained_of_torchvision_replaces_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced by a network with random weights; everything else is real."""
    torch.manual_seed(1)
    theirs = create_model("torchvision:mobilenet_v3_small", 1000, image_size=64)
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_a, **_k: theirs.state_dict())
    torch.manual_seed(2)
    model, report = create_with_report("mobilenet_v3_small", 10, image_size=64, pretrained=True)
    torch.manual_seed(2)
    untouched = create_model("mobilenet_v3_small", 10, image_size=64)
    assert report is not None
    assert torch.equal(model.get_parameter("features.0.0.weight"), theirs.get_parameter("features.0.0.weight"))
    head, drawn = (one.get_parameter("classifier.3.weight") for one in (model, untouched))
    assert torch.allclose(head, drawn, rtol=0.05), "torchvision draws it with the spread of a new head already"
    assert [name for name, _ in report.skipped] == ["classifier.3.weight", "classifier.3.bias"]
    assert report.missing == report.unexpected == ()


def test_pretrained_of_timm_resamples_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("test_vit")
    size = isqrt(theirs.get_parameter("pos_embed").shape[1] - 1) * 16
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda *_a, **_k: {k: v.clone() for k, v in theirs.state_dict().items()},
    )
    model, report = create_with_report("timm:test_vit", 10, image_size=size // 2, pretrained=True)
    assert report is not None
    assert torch.equal(
        model.get_parameter("blocks.0.attn.qkv.weight"), theirs.get_parameter("blocks.0.attn.qkv.weight")
    )
    assert [name for name, _ in report.skipped] == ["head.weight", "head.bias"]
    assert "pos_embed" in report.loaded
    assert model.get_parameter("pos_embed").shape != theirs.get_parameter("pos_embed").shape
