"""text: which names are near enough to be suggested, and that all suggestions come from one place."""

from __future__ import annotations

from pathlib import Path

import pytest

import stagewright
from stagewright.text import nearest


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("quik", "quick"), ("finetun", "finetune"), ("epoch", "epochs"), ("epoks", "epochs"), ("optimzer", "optimizer"),
        ("lable", "label"), ("pach", "patch"), ("flop", "flip"), ("greyscale", "grayscale"), ("hogg", "hog"), ("Nett", "Net"),
        ("digit", "digits"), ("photo", "photos"), ("resnet", "resnet18"), ("resnet81", "resnet18"), ("cifar10", "CIFAR10"),
        ("Label", "label"), ("mobilenet", "mobilenet_v2"), ("vit_b16", "vit_b_16"), ("layre2.*", "layer2.*"), ("adma", "adam"),
    ],
)  # fmt: skip
def test_near_names(word: str, name: str) -> None:
    assert nearest(word, ["nothing alike", name]) == f"; did you mean {name!r}?"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("battery", "paper"), ("cat", "dog"), ("cat", "car"), ("zzz", "resnet18"), ("species", "path"), ("glass", "class"[1:3]),
        ("metal", "trash"), ("adam", "sgd"), ("train", "val"), ("rabbit", "robin"), ("banana", "bread"), ("plastic", "paper"),
        ("x", "xception"), ("", "digits"), ("paprika", "paper"), ("ImageNet", "CIFAR10"), ("house", "mouse pad"), ("size", "lr"),
    ],
)  # fmt: skip
def test_other_names(word: str, name: str) -> None:
    assert nearest(word, [name]) == ""
    assert nearest(word, []) == ""


def test_one_place_suggests_names() -> None:
    package = Path(stagewright.__file__).parent
    own = {str(file.relative_to(package)) for file in package.rglob("*.py") if "difflib" in file.read_text("utf-8")}
    said = {
        str(file.relative_to(package)) for file in package.rglob("*.py") if "did you mean" in file.read_text("utf-8")
    }
    assert own == said == {"text.py"}
