"""The lines of a model card that load the weights with PyTorch alone: they run, and give the bundle's own logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stagewright.bundle.bundle import BundleSpec, load_bundle, save_bundle
from stagewright.bundle.preprocessing import Preprocessing
from stagewright.model.zoo import create_model

CLASSES = ("ant", "bee", "cat", "dog")
CROP = Preprocessing(32, 0.875, "crop", "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SQUASH = Preprocessing(32, 1.0, "squash", "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def lines_of(folder: Path) -> str:
    """The code of the section "Plain PyTorch" of the card."""
    section = (folder / "README.md").read_text().split("## Plain PyTorch")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in section.splitlines() if not line or line.startswith("    "))


def saved(
    folder: Path, view: Preprocessing, name: str, options: dict[str, Any], drop_path: float | None
) -> Image.Image:
    """Saves a network with statistics of its own, and x.jpg beside it, which is wider than high."""
    torch.manual_seed(0)
    spec = BundleSpec(name, CLASSES, view, view.image_size, options=options, drop_path=drop_path)
    model = spec.build()
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
        for tensor in model.parameters():
            tensor.mul_(1.5)
    rough = np.random.default_rng(1).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(rough).resize((90, 61), Image.Resampling.BICUBIC)
    save_bundle(folder, model, spec, [(picture, "")])
    picture.save(folder / "x.jpg", quality=95)
    return Image.open(folder / "x.jpg").convert("RGB")


@pytest.mark.parametrize(
    ("name", "options", "drop_path", "view"),
    [
        ("torchvision:mobilenet_v2", {}, None, CROP),
        ("torchvision:mobilenet_v3_small", {"width_mult": 0.5}, None, SQUASH),
        ("torchvision:efficientnet_b0", {"drop_path_mode": "constant"}, 0.3, CROP),
        ("cifar_resnet18", {}, 0.1, CROP),
        ("cifar_resnet18", {"width": 8, "blocks": [1, 1]}, None, SQUASH),
        ("vit", {"depth": 2, "heads": 2, "width": 32}, None, CROP),
        ("timm:resnet10t", {}, None, CROP),
        ("timm:vit_tiny_patch16_224", {"depth": 2}, 0.1, SQUASH),
    ],
)
def test_the_lines_give_the_logits_of_the_bundle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    drop_path: float | None,
    view: Preprocessing,
) -> None:
    picture = saved(tmp_path / "model", view, name, options, drop_path)
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Any] = {}
    code = lines_of(tmp_path / "model")
    exec(compile(code, "README.md", "exec"), names)
    bundle, model = load_bundle(tmp_path / "model"), names["model"]
    own = bundle.preprocessing.batch([bundle.preprocessing.view(picture)], torch.device("cpu"))
    assert isinstance(model, nn.Module) and not model.training
    with torch.inference_mode():
        assert torch.equal(model(own), bundle.model(own))
    assert torch.allclose(names["tensor"], own[0], atol=0.02), (
        "the picture as the model is fed it: less than a grey level"
    )
    (answer,) = bundle.predict(picture, topk=4)
    ours = {CLASSES.index(one): probability for one, probability in answer.classes}
    theirs: Tensor = names["probabilities"]
    assert [ours[at] for at in range(4)] == pytest.approx(theirs.tolist(), abs=1e-3)
    assert max(map(len, code.splitlines())) < 130


def test_the_lines_of_the_page_on_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    spec = BundleSpec("mobilenet_v2", ("a", "b", "c", "d", "e"), CROP, 32)
    save_bundle(tmp_path / "model", spec.build(), spec, [])
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(names["model"](pictures), load_bundle(tmp_path / "model").model(pictures))


def test_create_model_takes_the_name_as_the_card_has_it() -> None:
    assert isinstance(create_model("stagewright:cifar_resnet18", 4, image_size=32, options={"width": 8}), nn.Module)
