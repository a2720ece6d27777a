from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.fields import Guard
from stagewright.recipe.recipe import Recipe, Stage


@pytest.mark.parametrize("name", recipes.shipped())
def test_yaml_reads_back_as_the_same_recipe(name: str) -> None:
    recipe = recipes.load(name)
    again = recipes.from_dict(yaml.safe_load(recipes.to_yaml(recipe)))
    assert again == recipe
    assert again.resolved_stages() == recipe.resolved_stages()


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_name_their_source_and_what_to_expect(name: str) -> None:
    text = recipes.text(name)
    assert "# Source:" in text and "# Expect:" in text and recipes.load(name).name == name


def test_what_a_stage_does_not_say_it_inherits_field_by_field() -> None:
    recipe = recipes.from_dict(
        {
            "epochs": "10ep",
            "mix": {"mixup": 0.2, "cutmix": 1.0},
            "augment": {"crop": "pad", "flip": 0.1},
            "average": {"kind": "ema", "half_life": "2ep"},
            "label_smoothing": 0.1,
            "stages": [
                {"epochs": 0.5},
                {"epochs": 0.5, "mix": "none", "augment": {"flip": 0}, "average": "swa", "label_smoothing": 0},
            ],
        }
    )
    first, second = recipe.resolved_stages()
    assert first.mix == recipe.mix and first.augment == recipe.augment and first.label_smoothing == 0.1
    assert second.mix is not None and (second.mix.mixup, second.mix.cutmix) == (0, 0)
    assert second.augment is not None and (second.augment.crop, second.augment.flip) == ("pad", 0)
    assert second.average is not None and (second.average.kind, str(second.average.half_life)) == ("swa", "2ep")
    assert second.label_smoothing == 0 and (first.name, second.name) == ("stage1", "stage2")


@pytest.mark.parametrize("off", ["none", "off", False])
def test_mixing_off_in_every_spelling_yaml_makes_of_it(off: object) -> None:
    assert recipes.from_dict({"mix": off}).mix.mixup == 0


@pytest.mark.parametrize(
    ("override", "given", "allowed"),
    [
        ("optimzer.name=adam", "optimzer: unknown field; did you mean 'optimizer'?", "optimizer"),
        ("stages.0.epoch=3ep", r"stages\[0\].epoch: unknown field; did you mean 'epochs'?", "image_size"),
        ("stages.0.augment.flop=1", r"stages\[0\].augment.flop: unknown field; did you mean 'flip'?", "crop, scale"),
        ("stages.9.epochs=3ep", "no stage '9'", "0 .. 1, head, all"),
        ("lr.peak=-1", "lr.peak: -1 is not allowed", "greater than 0"),
        ("augment.scale=[1, 0.2]", r"scale must be \[low, high\] .*, not \[1.0, 0.2\]", ""),
        ("image_size=big", "image_size: 'big' is not allowed", "valid integer"),
        ("stages.0.epochs=30", r"30 has no unit; write 30ep for epochs or 30st for steps", ""),
        ("stages.all.lr_scale=0.5", "lr .* or lr_scale .*, not both", ""),
        ("stages.0.train=lst:3", "train: 'lst:3' is not all, head, upper, last:N or a list of patterns", ""),
        ("train=['fc', '!']", "'fc', '!'. contains an empty pattern", ""),
        ("lr.schedule=cosin", "lr.schedule: 'cosin' is not allowed", "'cosine'"),
        ("model.weights.x=3", "model.weights is 'default', which has no fields", ""),
        ("seed", "--set 'seed'", "FIELD=VALUE"),
        ("epochs=0.5", "is a share of the run", ""),
    ],
)
def test_errors_say_field_value_and_what_is_allowed(override: str, given: str, allowed: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load("finetune", [override])
    assert re.search(given.replace("?", r"\?"), caught.value.given), caught.value.given
    assert allowed in caught.value.allowed
    assert caught.value.remedy


def test_overrides_reach_stages_by_name_and_make_parts() -> None:
    recipe = recipes.load(
        "finetune", ["stages.head.data_fraction=0.5", "stages[1].data_fraction=0.5", "stages.all.mix.mixup=0.4"]
    )
    assert [stage.data_fraction for stage in recipe.stages] == [0.5, 0.5]
    resolved = recipe.resolved_stages()[1].mix
    assert resolved is not None and resolved.mixup == 0.4


def test_unknown_recipe_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'finetun'[\s\S]*did you mean 'finetune'"):
        recipes.load("finetun")
    with pytest.raises(RecipeError, match="no such file"):
        recipes.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match="contains a list"):
        recipes.load(str(tmp_path / "list.yaml"))
    (tmp_path / "torn.yaml").write_text("a: [1\n")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        recipes.load(str(tmp_path / "torn.yaml"))


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipes.load("quick").seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_epochs_flag() -> None:
    assert str(recipes.stretch(recipes.load("quick"), "7").epochs) == "7ep"
    with pytest.raises(RecipeError, match=r"--epochs soon[\s\S]*30ep \(epochs\)"):
        recipes.stretch(recipes.load("quick"), "soon")


@pytest.mark.parametrize(
    ("recipe", "path", "new"),
    [
        (
            {"stages": [{"at_seam": "reset"}]},
            "stages[0].at_seam",
            "on_enter, which is keep_optimizer or reset_optimizer",
        ),
        ({"optimizer": {"at_seam": "keep"}}, "optimizer.at_seam", "on_enter"),
        ({"guard": {"ease": 0.1}}, "guard.ease", "lr_factor"),
        ({"guard": {"ease_windows": 3}}, "guard.ease_windows", "lr_factor_windows"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_the_new_one(recipe: dict[str, Any], path: str, new: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"{path}: this field is now called {new}")):
        recipes.from_dict(recipe)


def test_what_a_renamed_key_is_called_now_is_a_field() -> None:
    fields = {*Stage.model_fields, *Recipe.model_fields, *Guard.model_fields}
    for old, new in recipes.RENAMED.items():
        assert old not in fields and new.split(",")[0] in fields


def test_a_field_of_text_takes_what_was_typed() -> None:
    typed = [
        "data.path=0",
        "data.label=on",
        "data.group=Class: kind",
        "data.split=1e-3",
        "data.images='a b'",
        "name=[x",
    ]
    recipe = recipes.load("quick", [*typed, "model.weights=null", "optimizer.momentum=1e-1"])
    data = recipe.data
    assert (data.path, data.label, data.group, data.split, data.images) == ("0", "on", "Class: kind", "1e-3", "a b")
    assert recipe.name == "[x" and recipe.model.weights is None and recipe.optimizer.momentum == 0.1


def test_a_number_may_be_given_as_an_exponent() -> None:
    assert recipes.load("quick", ["lr=1e-3"]).lr.peak == 0.001


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"epochs: 1ep\ndescription: caf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        (
            b"epochs: 1ep\nimage_size: 32\nepochs: 50ep\n",
            "line 3: the key 'epochs' is given again; it is on line 1 already",
        ),
        (b"stages: &a [*a]\n", "an alias refers to what it is part of"),
    ],
)
def test_a_recipe_file_that_cannot_be_meant_is_refused_with_the_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipes.load(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("key", ["2020-01-01", "list[str]", "float", "", "1"])
def test_any_unknown_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"recipe: {key}: unknown field")):
        recipes.from_dict({key: 2})
