"""A setting that a user asked for and that has no effect is an error; defaults and shipped recipes are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.holds import When, conditions
from stagewright.recipe.recipe import Recipe, num_head_stages
from stagewright.recipe.request import RecipeRequest, as_request


@pytest.mark.parametrize(
    ("recipe", "override", "why"),
    [
        ("imagenet-resnet50", "lr.div=10", r"lr\.schedule is one_cycle, but lr\.schedule is cosine"),
        ("standard", "lr={div: 10, warmup: 1ep}", r"lr\.div has no effect"),
        ("quick", "average.every=2ep", r"average\.kind is swa, but average\.kind is ema"),
        ("standard", "augment.policy_ops=3", r"augment\.policy is randaugment, but augment\.policy is"),
        ("quick", "mix.probability=0.5", r"mix\.mixup is on or mix\.cutmix is on, but mix\.mixup is 0\.0"),
        ("quick", "stop.min_delta=0.1", r"stop\.patience is on, but stop\.patience is none"),
        ("quick", "guard={rollbacks: 0, lr_factor: 0.5}", r"guard\.lr_factor has no effect"),
        ("progressive", "image_size=64", r"image_size has no effect: every stage sets its own"),
        ("progressive", "epochs=9ep", r"every stage gives its own length; --epochs scales"),
        ("finetune", "stages.all.lr.div=3", r"stages\.1\.lr\.div has no effect"),
        (
            "quick",
            "eval.consider_head=false",
            r"eval\.consider_head has no effect: it holds where the first stages train",
        ),
        ("quick", "stop={head_suffices: true}", r"stop\.head_suffices has no effect: it holds where the first stages"),
        ("finetune", "optimizer.nesterov=true", r"optimizer\.name is sgd, but optimizer\.name is adamw"),
    ],
)
def test_an_override_without_effect(recipe: str, override: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        recipes.load(recipe, [override])
    with pytest.raises(RecipeError, match=why):
        _ = RecipeRequest(recipe, overrides=(override,)).preliminary


def test_the_order_of_overrides_does_not_matter() -> None:
    recipe = recipes.load("standard", ["lr.div=10", "lr.schedule=one_cycle"])
    assert recipe.lr.div == 10
    assert recipes.load("quick", ["average.every=2ep", "average=swa"]).average.kind == "swa"


def test_a_field_holds_if_it_does_in_one_stage() -> None:
    """swag's second stage averages by swa, so that the recipe's own value is inherited there."""
    recipe = Recipe.model_validate({"epochs": "4ep", "stages": [{"epochs": 0.5}, {"epochs": 0.5, "average": "swa"}]})
    assert str(recipes.override(recipe, ["average.every=2ep"]).average.every) == "2ep"
    with pytest.raises(RecipeError, match=r"average\.half_life has no effect"):
        recipes.override(recipe, ["average.half_life=1ep"])


def test_fields_about_the_head_hold_after_stages_of_the_head(tmp_path: Path) -> None:
    recipe = recipes.load("finetune", ["eval.consider_head=false", "stop.head_suffices=true"])
    assert recipe.stop.head_suffices and not recipe.eval.consider_head
    with pytest.raises(RecipeError, match=r"stop\.head_suffices"):
        recipes.load("finetune", ["stop.head_suffices=true", "stages.1.train=head"])
    file = tmp_path / "mine.yaml"
    file.write_text("eval: {consider_head: false}\nstop: {head_suffices: true}\n")
    with pytest.raises(RecipeError) as error:
        recipes.load(str(file))
    assert [line.split()[0] for line in error.value.given.splitlines()] == ["eval.consider_head", "stop.head_suffices"]
    file.write_text(f"{file.read_text()}epochs: 4ep\nstages: [{{epochs: 0.5, train: head}}, {{epochs: 0.5}}]\n")
    assert recipes.load(str(file)).stop.head_suffices


@pytest.mark.parametrize(
    ("trained", "count"),
    [
        (["all"], 0),
        (["head"], 0),
        (["head", "all"], 1),
        (["head", "head", "last:1", "all"], 2),
        (["head", "head"], 0),
        (["all", "head", "all"], 0),
        (["head", "all", "head", "all"], 1),
        (["head", ("layer4.*",)], 1),
    ],
)
def test_which_stages_are_the_heads(trained: list[str], count: int) -> None:
    assert num_head_stages(trained) == count


def test_what_shipped_recipes_set_is_no_request() -> None:
    assert recipes.load("quick", ["optimizer.name=adamw"]).optimizer.nesterov
    assert recipes.load("standard", ["lr.schedule=constant"]).lr.schedule == "constant"


def test_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: {schedule: cosine, final_div: 7}\nstop: {min_delta: 0.5}\naverage: {half_life: 0.02}\n")
    with pytest.raises(RecipeError) as error:
        recipes.load(str(file))
    assert [line.split()[0] for line in error.value.given.splitlines()] == ["lr.final_div", "stop.min_delta"]
    file.write_text("lr: {schedule: cosine, div: 25.0}\n")
    assert recipes.load(str(file)).lr.div == 25.0, "a default asks for nothing"


def test_the_recipe_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    """It has all fields, also those without effect in it."""
    recipe = recipes.load("quick", ["optimizer.name=adamw", "lr.schedule=constant"])
    (tmp_path / "recipe.yaml").write_text(recipes.to_yaml(recipe))
    assert recipes.load(str(tmp_path / "recipe.yaml")) == recipe
    for name in recipes.shipped():
        (tmp_path / f"{name}.yaml").write_text(recipes.text(name))
        assert recipes.load(str(tmp_path / f"{name}.yaml")) == recipes.load(name)


def test_auto_takes_the_users_values() -> None:
    _ = as_request("auto", ["lr.div=10"]).preliminary  # the schedule is known later


def test_conditions_name_fields_of_their_part() -> None:
    parts = [field.annotation for field in Recipe.model_fields.values() if hasattr(field.annotation, "model_fields")]
    assert len(parts) > 8
    for part in parts:
        for name in part.model_fields:  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            for condition in conditions(part, name):  # pyright: ignore[reportArgumentType]
                if isinstance(condition, When):
                    assert set(condition.values) <= set(part.model_fields)  # pyright: ignore
