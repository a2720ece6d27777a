"""Published weights give the labels that the library's own preset gives."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import stagewright as sw
from stagewright.errors import DataError, ModelError

PHOTOS = 40


def test_labels_agree_with_torchvisions_preset(shared_data: Path, tmp_path: Path) -> None:
    """On 1,000 photographs they agree in all (benchmarks/published.py)."""
    with zipfile.ZipFile(shared_data / "photos-250.zip") as archive:
        for name in archive.namelist()[:: 250 // PHOTOS][:PHOTOS]:
            folder = tmp_path / Path(name).name[:9]
            folder.mkdir(exist_ok=True)
            (folder / Path(name).name).write_bytes(archive.read(name))
    file = shared_data / "mobilenet_v2-imagenet.pth"
    found = sw.evaluate(sw.load_published(file, "mobilenet_v2.IMAGENET1K_V1", device="cpu"), tmp_path, device="cpu")
    own = models.mobilenet_v2().eval()
    own.load_state_dict(torch.load(file, weights_only=True))
    preset = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    views = [preset(Image.open(tmp_path / path).convert("RGB")) for path in found.paths.to_pylist()]
    with torch.inference_mode():
        shares = own(torch.stack(views)).softmax(1).numpy()
    answers = found.result.predictions
    assert (answers.predicted == shares.argmax(1)).mean() >= 0.995
    assert np.allclose(answers.probability, shares.max(1), atol=1e-4)
    labels = [found.classes[label][:9] for label in found.labels]
    assert labels == [Path(path).name[:9] for path in found.paths.to_pylist()] and found.top1 > 60
    assert found.scored == "all" and any("shorter side to 256 pixels" in note for note in found.notes)


def test_a_file_needs_a_network_that_it_fills(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(models.mobilenet_v2(num_classes=7).state_dict(), file)
    with pytest.raises(ModelError, match="without --model"):
        sw.load_published(file)
    with pytest.raises(ModelError, match="without --model"):
        sw.load_published("default")
    with pytest.raises(ModelError, match="with --model resnet18"):
        sw.load_published("mobilenet_v2", "resnet18")
    with pytest.raises(ModelError, match="does not fill mobilenet_v2 with its 1,000 classes of ImageNet"):
        sw.load_published(file, "mobilenet_v2", device="cpu")
    with pytest.raises(ModelError, match="does not fit this model"):
        sw.load_published(file, "resnet18", device="cpu")


def test_weights_have_no_pictures_of_their_own(tmp_path: Path, picture_folder: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    weights = sw.load_published(tmp_path / "w.pth", "squeezenet1_1", device="cpu")
    with pytest.raises(DataError, match="published weights without DATA"):
        sw.evaluate(weights)
    with pytest.raises(DataError, match="are not among the model's 1000"):
        sw.evaluate(weights, picture_folder)
    mapping = {"across": "n01440764 tench", "down": "n02123159 tiger cat", "slanted": None}
    found = sw.evaluate(weights, picture_folder, class_map=mapping)
    assert found.result.images == 40 and [one.name for one in found.by_class()] == list(mapping.values())[:2]
