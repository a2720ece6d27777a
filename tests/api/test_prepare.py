"""What is known only when DATA has been read: settings of a request that have no effect there."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from stagewright.api.prepare import make_plan, prepare, tell_time
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.recipe.request import as_request

QUIET = Execution(device="cpu", quiet=True)


@pytest.fixture
def parts(picture_folder: Path, tmp_path: Path) -> Path:
    """DATA with train and val, and no test."""
    for part, numbers in {"train": range(12), "val": range(12, 20)}.items():
        for name in ("across", "down"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for at in numbers:
                shutil.copy(picture_folder / name / f"{at:02d}.png", tmp_path / "data" / part / name)
    return tmp_path / "data"


@pytest.mark.parametrize("override", ["data.val=0.3", "data.test=0.3", "data={val: 0.3}"])
def test_a_share_is_refused_where_data_gives_the_parts(parts: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=r"--set data\.(val|test)=0\.3 has no effect: .* gives its own parts"):
        make_plan(parts, "quick", overrides=[override], execution=QUIET)


def test_the_share_of_a_recipe_is_said(parts: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {name: cifar_resnet18}\nimage_size: 16\ndata: {val: 0.3}\n")
    make_plan(parts, recipe, execution=QUIET, say=said.append)
    assert "data.val=0.3 of the recipe is not used: DATA gives the parts" in said
    shutil.move(parts / "val", parts / "test")  # val is then made from train
    plan = make_plan(parts, recipe, overrides=["data.val=0.25"], execution=QUIET, say=said.append)
    assert (plan.dataset.num_val, plan.dataset.num_train, plan.dataset.num_test) == (6, 18, 16)
    with pytest.raises(RecipeError, match=r"data\.test=0\.1 has no effect"):
        make_plan(parts, recipe, overrides=["data.test=0.1"], execution=QUIET, say=said.append)


def test_early_stopping_needs_validation_pictures(picture_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"stop\.patience=3 without validation pictures has no effect"):
        make_plan(picture_folder, "quick", overrides=["stop.patience=3", "data.val=0"], execution=QUIET)


def test_the_time_told_counts_what_has_passed_since_the_start(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large folder, or a busy machine at the start, is part of the run's time."""
    monkeypatch.setattr("stagewright.api.prepare.quick_forecast", lambda plan, dataset: 100.0)
    said: list[str] = []
    dataset, plan = prepare(parts, as_request("quick", (), {}, None), QUIET, said.append)
    tell_time(plan, dataset, QUIET, said.append, time.perf_counter() - 500.0)
    assert said[-1] == "It should take about 10 min 0 s on this machine, from its start to the report."
