"""What a run is said to take: it grows with the work, whatever kind the stages are, and measuring leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stagewright.data.dataset import load_dataset
from stagewright.plan.resolve import resolve
from stagewright.preflight.quick_forecast import quick_forecast
from stagewright.preflight.upper import upper_of
from stagewright.recipe import recipes

HEAD = {"name": "head", "train": "head", "fit": "optimum", "augment": {"crop": "none", "flip": 0.5}}


def seconds(pictures: Path, stages: list[dict[str, Any]]) -> float:
    made = recipes.from_dict(
        {
            "model": {"name": "cifar_resnet18", "options": {"width": 8}},
            "image_size": 32,
            "batch_size": 12,
            "stages": stages,
            "average": "ema",
            "data": {"val": 0.2, "test": 0.1},
        }
    )
    dataset = load_dataset(str(pictures), made.data)
    return quick_forecast(resolve(made, dataset.manifest.info()), dataset)


@pytest.mark.parametrize(
    "stage",
    [
        {"train": "all"},
        {"train": "all", "norm": "frozen"},
        {"train": "last:1", "norm": "frozen", "cache": {"views": 2}},
    ],
)
def test_longer_runs_take_longer(picture_folder: Path, stage: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    short, long = (seconds(picture_folder, [HEAD, {**stage, "epochs": f"{steps}st"}]) for steps in (2, 20_000))
    assert 5.0 < short < long
    assert torch.equal(before, torch.random.get_rng_state())


def test_upper_is_found_from_the_network_alone() -> None:
    made = recipes.from_dict({"model": {"name": "mobilenet_v2"}, "image_size": 160, "train": "upper"})
    assert upper_of(made, 3) == "last:10"
    whole = made.with_upper("last:10")
    assert whole.train == "last:10" and [stage.train for stage in whole.resolved_stages()] == ["last:10"]
    cached = recipes.from_dict(
        {"epochs": "2ep", "stages": [HEAD, {"epochs": 1.0, "train": "upper", "cache": {"views": 2}}]}
    )
    assert cached.with_upper("all").stages[1].cache is None


def test_a_network_that_cannot_be_cut_trains_whole() -> None:
    made = recipes.from_dict({"model": {"name": "timm:eva02_tiny_patch14_224"}, "image_size": 224, "train": "upper"})
    assert upper_of(made, 3) == "all"
