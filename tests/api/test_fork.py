"""Resuming with less common settings: BCE, class weights, sampling, layer-wise rates, excluding patterns, each optimizer; stopped
at every step, the run ends with the bits of the uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stopping import last_checkpoint, stop_after

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.errors import ModelError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.rundir.directory import RunDir
from stagewright.rundir.environment import environment

COUNTS = {"common": 24, "rare": 5, "some": 12}


def two_stages(**changes: Any) -> Recipe:
    """The first stage freezes the stem and a block, which start to train in the second stage, without momentum."""
    plain = {
        "seed": 3,
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        "optimizer": {"momentum": 0.9, "layer_decay": 0.6},
        "lr": {"schedule": "one_cycle", "peak": 0.1, "momentum": [0.85, 0.95]},
        "loss": "bce",
        "class_weights": {"rare": 3.0},
        "sampling": "balanced",
        "label_smoothing": 0.1,
        "batch_size": 10,
        "eval": {"every": "3st"},
        "checkpoints": {"every": "4st", "keep": 2},
        "data": {"val": 0.2, "test": 0.2},
        "augment": {"rotation": 15},
        "stages": [
            {"name": "part", "epochs": "5st", "image_size": 8, "train": ["!stem", "!layer2.*"]},
            {"name": "all", "epochs": "5st", "image_size": 12, "mix": {"mixup": 0.4}, "average": "ema"},
        ],
    }
    return recipes.from_dict({**plain, **changes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("skewed")
    random = np.random.default_rng(0)
    for level, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir()
        for at in range(count):
            pixels = random.normal(60 + 60 * level, 40, (14, 14, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at:02d}.png")
    return load_dataset(str(folder), two_stages().data).manifest


Start = Callable[..., tuple[RunDir, Plan]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, pictures: Manifest) -> Start:
    def make(recipe: Recipe) -> tuple[RunDir, Plan]:
        plan = resolve(recipe, pictures.info())
        run = RunDir.create(tmp_path_factory.mktemp("run") / "r")
        run.write_start(plan, pictures, environment("skewed", ["test"], "cpu", ""))
        return run, plan

    return make


def go(run: RunDir, step: int | None = None, workers: int = 0) -> bool:
    """Resumes the run, to its end or until ``step`` updates are done; returns whether it finished."""
    arm = None if step is None else stop_after(step)
    quietly = Execution(device="cpu", workers=workers, pages=False, quiet=True, save_minutes=1e9)
    return resume(run.root, execution=quietly, say=lambda text: None, arm=arm).finished


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "nesterov": True},
        {"name": "adamw", "weight_decay": 0.05},
        {"name": "sgd", "options": {"fused": False}},
    ],
    ids=["sgd", "adamw", "unfused"],
)
def test_stopped_after_every_step(start: Start, optimizer: dict[str, Any]) -> None:
    recipe = two_stages(optimizer={"momentum": 0.9, "layer_decay": 0.6, **optimizer})
    unbroken, plan = start(recipe)
    assert go(unbroken)
    stopped, _ = start(recipe)
    for step in range(1, plan.total_steps + 1):
        assert not go(stopped, step, workers=step % 3)
        assert last_checkpoint(stopped.checkpoints).step == step
    assert go(stopped)
    assert differences(unbroken, stopped) == []


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "cross_entropy"},
        {"class_weights": "none"},
        {"class_weights": "balanced", "sampling": "square_root"},
        {"sampling": "natural"},
        {"optimizer": {"momentum": 0.9}},
    ],
    ids=str,
)
def test_each_option_makes_another_run(start: Start, change: dict[str, Any]) -> None:
    """Without this, the test above would also pass for options without any effect."""
    one, other = (start(recipe)[0] for recipe in (two_stages(), two_stages(**change)))
    assert not go(one, 3) and not go(other, 3)
    states = [last_checkpoint(run.checkpoints).tensors["model"]["fc.weight"] for run in (one, other)]
    assert not np.allclose(*states, atol=1e-5)


def test_what_a_later_stage_cannot_mean_is_refused_before_the_first_step(start: Start) -> None:
    content: dict[str, Any] = two_stages().to_dict()
    stages = content["stages"]
    run, _ = start(two_stages(stages=[stages[0], {**stages[1], "train": ["!layre1.*"]}]))
    with pytest.raises(ModelError, match=r"'!layre1\.\*' matches no parameter; did you mean '!layer1\.\*'"):
        go(run)
    assert not run.steps.exists()
