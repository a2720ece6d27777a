"""Python takes the command line's flags by the same names, and makes the same plan of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import typed

import stagewright as sw
from stagewright.errors import RecipeError

QUIET = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)
GIVEN: list[dict[str, Any]] = [
    {"model": "cifar_resnet18", "epochs": 3, "batch_size": 10, "lr": 0.02, "image_size": 16, "seed": 5},
    {"model": "vit", "weights": "none", "epochs": "12st", "image_size": 32},
    {"epochs": 1.5, "lr": "0.3"},
    {"seed": 2**40},
]
FLAGS = {"image_size": "img-size"}


def silent(text: str) -> None: ...


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("recipe", ["quick", "auto"])
def test_the_plan_is_that_of_the_command(
    given: dict[str, Any],
    recipe: str,
    picture_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = [word for name, value in given.items() for word in (f"--{FLAGS.get(name, name).replace('_', '-')}", value)]
    command = ("plan", picture_folder, "-r", recipe, *flags, "--device", "cpu", "--json", "--quiet")
    code, out, err = typed(capsys, monkeypatch, *command)
    assert code == 0, err
    plan = sw.make_plan(picture_folder, recipe, execution=QUIET, say=silent, **given)
    assert plan.to_json() == {name: value for name, value in json.loads(out).items() if name != "account"}


def test_train_and_preview_take_them_too(picture_folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "cifar_resnet18", "epochs": "2st", "batch_size": 8, "image_size": 16, "seed": 3}
    width = ["model.options={width: 4}"]
    plan = sw.make_plan(picture_folder, "quick", overrides=width, execution=QUIET, say=silent, lr=0.05, **given)
    run = sw.train(
        *(picture_folder, "quick"), overrides=width, out=tmp_path / "run", execution=QUIET, say=silent, lr=0.05, **given
    )
    assert run.summary["plan_digest"] == plan.digest
    seen = sw.preview(picture_folder, "quick", overrides=width, execution=QUIET, say=silent, **given)
    assert seen.images.shape == (8, 3, 16, 16) and seen.plan.recipe.seed == 3


def test_a_flag_outlives_the_recipe_it_is_given_with_and_an_override_comes_last(picture_folder: Path) -> None:
    recipe = sw.Recipe(name="mine", batch_size=32, image_size=16)
    plan = sw.make_plan(picture_folder, recipe, overrides=["batch_size=9"], batch_size=10, execution=QUIET, say=silent)
    assert plan.stages[0].batch_size == 9
    assert sw.make_plan(picture_folder, recipe, batch_size=10, execution=QUIET, say=silent).stages[0].batch_size == 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": "fast"}, "--lr fast(?s:.*)a number above 0, or auto"),
        ({"lr": -1.0}, "lr.peak"),
        ({"epochs": "soon"}, "--epochs soon"),
        ({"batch_size": "many"}, "batch_size"),
        ({"seed": -3}, "seed"),
        ({"budget": "90s", "epochs": 3}, "--budget 90s with --epochs 3(?s:.*)both set the length"),
        ({"budget": "soon"}, "--budget 'soon'"),
        ({"budget": sw.Budget.parse("90s"), "epochs": 3}, "--budget 90s with --epochs 3"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], words: str, picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        sw.train(picture_folder, "quick", out=tmp_path / "run", execution=QUIET, say=silent, **given)
    assert not (tmp_path / "run").exists()


def test_a_budget_is_a_text(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--budget 1s is not enough for one epoch"):
        sw.train(picture_folder, "quick", budget="1s", out=tmp_path / "run", execution=QUIET, say=silent)
    assert not (tmp_path / "run").exists()
