"""The preview of a step: the bits of the training, labels and shares in words, one page, and errors for what the plan lacks."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stagewright as sw
from stagewright.data.dataset import load_dataset
from stagewright.engine.fed import fed_at
from stagewright.errors import RecipeError
from stagewright.recipe import recipes

QUIET = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)


def recipe(**fields: Any) -> sw.Recipe:
    plain = {
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        "batch_size": 12,
        "lr": {"peak": "auto"},
        "stages": [
            {"name": "cut", "epochs": "3st", "image_size": 16, "mix": {"cutmix": 1.0}, "augment": {"hue": 0.1}},
            {"name": "plain", "epochs": "2st", "image_size": 32, "augment": {"crop": "pad"}, "label_smoothing": 0.1},
        ],
        "data": {"val": 0.2, "test": 0.1},
    }
    return recipes.from_dict({**plain, **fields})


def look(data: Path, **given: Any) -> Any:
    return sw.preview(data, given.pop("recipe", recipe()), execution=QUIET, say=lambda text: None, **given)


def test_it_is_the_batch_of_the_step_with_labels_and_shares(picture_folder: Path) -> None:
    found = look(picture_folder, step=1, shown=5)
    assert found.images.shape == (12, 3, 16, 16) and found.evaluated.shape == (5, 16, 16, 3)
    dataset = load_dataset(str(picture_folder), recipe().data)
    assert torch.equal(found.images, fed_at(found.plan, dataset.manifest, dataset.images, 1).mixed.images)
    names, share = found.manifest.classes, found.fed.mixed.lam
    for label, own, other in zip(found.labels, found.fed.rows, found.fed.partners, strict=True):
        classes = [names[found.manifest.labels[row]] for row in (own, other)]
        mixed = f"{classes[0]} {100 * share:.0f} % + {classes[1]} {100 * (1 - share):.0f} %"
        assert label == (classes[0] if classes[0] == classes[1] else mixed)
    assert any("+" in label for label in found.labels)
    said = " ".join(found.facts)
    assert "stage cut (1 of 2), step 1 of 0 to 4" in said and "Cutmix at this step: a box" in said
    assert "crop random_resized, flip 0.5, hue 0.1" in said and "smoothing" not in said


def test_a_stage_counts_its_own_steps(picture_folder: Path) -> None:
    first, second = look(picture_folder, stage="plain"), look(picture_folder, stage="plain", step=1)
    assert (first.fed.step, second.fed.step) == (3, 4) and look(picture_folder).fed.step == 0
    said = " ".join(second.facts)
    assert "Nothing is mixed" in said and "crop pad, flip 0.5" in said and "Label smoothing of 0.1" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stage": "plane"}, r"stage 'plane'; did you mean 'plain'\?[\s\S]*allowed: cut, plain"),
        ({"step": 5}, r"step 5, but the plan has 5 steps[\s\S]*allowed: 0 to 4"),
        ({"stage": "cut", "step": 3}, r"step 3, but stage 'cut' has 3 steps[\s\S]*allowed: 0 to 2"),
        ({"step": -1}, "step -1"),
        ({"shown": 0}, "0 pictures to show"),
    ],
)
def test_what_the_plan_does_not_have(picture_folder: Path, given: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        look(picture_folder, **given)


def test_the_page_is_one_file_with_every_picture_and_escaped_names(tmp_path: Path, picture_folder: Path) -> None:
    hostile = tmp_path / "<b>data"
    for folder in picture_folder.iterdir():
        (hostile / f"<script>{folder.name}").mkdir(parents=True)
        for at, file in enumerate(sorted(folder.iterdir())):
            (hostile / f"<script>{folder.name}" / f'<img src="x">{at}.png').write_bytes(file.read_bytes())
    found = look(hostile, step=0, shown=4)
    html = found.to_html()
    assert "<script" not in html and "<img" not in html and "<b>data" not in html
    assert "&lt;script&gt;across" in html and "&lt;img src=&quot;x&quot;&gt;" in html
    assert html.count("background-image:url(data:image/png;base64,") == 8 and "8 more pictures of the batch" in html
    assert re.findall(r"(?:src|href)=|url\((?!data:)|@import", html.replace("&lt;img src=", "")) == []
    assert found._repr_html_().startswith("<iframe srcdoc=") and "<html" not in found._repr_html_()


def test_it_is_saved_as_a_page_or_as_a_png(tmp_path: Path, picture_folder: Path) -> None:
    found = look(picture_folder, step=3, shown=3)
    found.save(tmp_path / "page.html")
    found.save(tmp_path / "picture.PNG")
    assert (tmp_path / "page.html").read_text() == found.to_html()
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "picture.PNG").read_bytes())).convert("RGB"))
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 20


def test_a_head_at_its_optimum_says_so(picture_folder: Path) -> None:
    stages = [
        {"name": "head", "train": "head", "fit": "optimum", "augment": {"crop": "none", "flip": 0.5}},
        {"epochs": "2st"},
    ]
    made = recipe(model={"name": "torchvision:mobilenet_v2"}, stages=stages, image_size=32, lr=0.01)
    found = look(picture_folder, recipe=made)
    assert "optimum of the head for all 42 pictures and their mirror images" in " ".join(found.facts)
    assert "more pictures of the batch not shown" in found.to_html()
