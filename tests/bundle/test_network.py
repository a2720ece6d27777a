"""What a Bundle predicts with: folded on CPUs, always with the present weights of its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stagewright.bundle import bundle
from stagewright.bundle.bundle import BundleSpec, Preprocessing, load_bundle, save_bundle
from stagewright.bundle.network import Network
from stagewright.bundle.preprocessing import logits_of
from stagewright.model.two_precisions import TwoPrecisions
from stagewright.model.zoo import create_model

VIEW = Preprocessing(24, 0.875, "crop", "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
OPTIONS = {"width": 8, "blocks": [1, 1]}
SPEC = BundleSpec("cifar_resnet18", ("a", "b", "c"), VIEW, image_size=24, options=OPTIONS)
IMAGES = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(5))


def trained() -> nn.Module:
    torch.manual_seed(3)
    model = create_model("cifar_resnet18", 3, image_size=24, options=OPTIONS)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 24, 24))
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def test_a_bundle_predicts_with_folded_norms_and_shows_its_own_model(tmp_path: Path) -> None:
    save_bundle(tmp_path / "model", trained(), SPEC, [])
    bundle = load_bundle(tmp_path / "model")
    assert (norms(bundle.model), norms(bundle.network.present())) == (6, 0)
    torch.testing.assert_close(logits_of(bundle.network.present(), IMAGES), logits_of(bundle.model, IMAGES))
    assert "fold" not in json.loads((tmp_path / "model" / "model.json").read_text())  # older versions can read it


def test_a_run_without_folding_leaves_a_bundle_without_it(tmp_path: Path) -> None:
    save_bundle(tmp_path / "model", trained(), replace(SPEC, fold=False), [])
    bundle = load_bundle(tmp_path / "model")
    assert not bundle.spec.fold
    assert bundle.network.present() is bundle.model


def _halved(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("fc.weight").mul_(0.5)


def _other_statistics(model: nn.Module) -> None:
    model.get_buffer("layer1.0.bn1.running_mean").add_(1.0)


def _loaded(model: nn.Module) -> None:
    model.load_state_dict({name: tensor * 0.9 for name, tensor in model.state_dict().items()})


def _replaced(model: nn.Module) -> None:
    model.get_submodule("fc").weight = nn.Parameter(torch.ones(3, 16))


def _heard(model: nn.Module) -> None:
    def shifted(module: nn.Module, given: Any, result: Tensor) -> Tensor:
        return result + 1

    model.register_forward_hook(shifted)


@pytest.mark.parametrize("change", [_halved, _other_statistics, _loaded, _replaced, _heard])
def test_changes_of_the_model_are_followed(change: Callable[[nn.Module], None]) -> None:
    model = trained()
    network = Network(model, 24, fold=True)
    first = network.present()
    assert network.present() is first
    before = logits_of(first, IMAGES)
    change(model)
    after = logits_of(network.present(), IMAGES)
    torch.testing.assert_close(after, logits_of(model, IMAGES))
    assert not torch.allclose(after, before)


def test_a_model_made_in_inference_mode_is_folded_anew_each_time() -> None:
    with torch.inference_mode():
        model = trained()
        network = Network(model, 24, fold=True)
        torch.testing.assert_close(logits_of(network.present(), IMAGES), logits_of(model, IMAGES))
        _halved(model)
        torch.testing.assert_close(logits_of(network.present(), IMAGES), logits_of(model, IMAGES))


@pytest.mark.parametrize("fast_processor", [True, False])
def test_a_bundle_predicts_in_bfloat16_where_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_processor: bool
) -> None:
    monkeypatch.setattr(bundle, "fast_bfloat16", lambda: fast_processor)
    sample = Image.new("RGB", (30, 30), (90, 20, 200))
    save_bundle(tmp_path / "model", trained(), replace(SPEC, close_margin=0.25), [(sample, ".png")])
    loaded = load_bundle(tmp_path / "model")
    present = loaded.network.present()
    assert isinstance(present, TwoPrecisions) is fast_processor
    if isinstance(present, TwoPrecisions):
        assert present.margin == 0.25 and loaded.network.exact() is present.exact
        assert {one.dtype for one in present.fast.parameters()} == {torch.bfloat16}
    assert len(list(loaded.predict([sample]))) == 1
    plain = load_bundle(tmp_path / "model", precision="fp32").network
    assert plain.present() is plain.exact() and norms(plain.present()) == 0


def test_a_bundle_without_a_margin_predicts_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "fast_bfloat16", lambda: True)
    save_bundle(tmp_path / "model", trained(), SPEC, [])
    assert {one.dtype for one in load_bundle(tmp_path / "model").network.present().parameters()} == {torch.float32}
    assert "close_margin" not in json.loads((tmp_path / "model" / "model.json").read_text())
