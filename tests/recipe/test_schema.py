"""The schema of recipes and plans: no field takes infinity or NaN, whatever its type, and each is named where one came in."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, create_model

from stagewright.errors import RangeTestError, RecipeError
from stagewright.plan.budget import Budget
from stagewright.plan.lr_curve import lr_grid
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.schema import Frozen

NUMBERS = (math.inf, -math.inf, math.nan)
INFO = DatasetInfo(num_train=1000, num_val=100, num_test=0, classes=tuple("0123456789"), digest="d")


def models(model: type[Any], found: set[type[Any]]) -> set[type[Any]]:
    """``model`` and every pydantic model and dataclass that its fields lead to."""
    if model not in found:
        found.add(model)
        hints = typing.get_type_hints(model)
        for name in names(model):
            for kind in inside(hints[name]):
                if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind)):
                    models(kind, found)
    return found


def names(model: type[Any]) -> list[str]:
    return list(model.model_fields) if issubclass(model, BaseModel) else [field.name for field in fields(model)]


def inside(hint: Any) -> Iterator[Any]:
    """All types that ``hint`` is made of."""
    yield hint
    for one in typing.get_args(hint):
        yield from inside(one)


def tries(hint: Any, number: float) -> Iterator[Any]:
    """Values of the shape of ``hint`` with ``number`` in the place of each of its floats in turn."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float or hint is Any:
        yield number
    elif hint is Duration:
        yield from (number, f"{number}ep")
    elif origin is typing.Annotated:
        yield from tries(args[0], number)
    elif origin in (typing.Union, types.UnionType):
        for one in args:
            yield from tries(one, number)
    elif origin is dict:
        yield from ({"a": value} for value in tries(args[1], number))
        yield from ({"a": {"b": [value]}} for value in tries(args[1], number) if args[1] is Any)
    elif origin is tuple and args[-1] is not Ellipsis:
        for at in range(len(args)):
            yield from ([*[1.0] * at, value, *[1.0] * (len(args) - at - 1)] for value in tries(args[at], number))
    elif origin is tuple:
        yield from ([value] for value in tries(args[0], number))


def test_no_field_of_a_recipe_or_plan_takes_a_number_that_is_not_finite() -> None:
    seen = 0
    for model in models(Plan, set()):
        if model is Duration:
            continue
        assert is_dataclass(model) or issubclass(model, Frozen), f"{model.__name__} is no Frozen"
        # A dataclass inside a model takes the model's settings, as the plan's curve does.
        holder = create_model("Holder", __base__=Frozen, part=(model, ...))
        hints = typing.get_type_hints(model, include_extras=True)
        for name in names(model):
            for number in NUMBERS:
                for value in tries(hints[name], number):
                    seen += 1
                    with pytest.raises(ValidationError) as caught:
                        holder.model_validate({"part": {name: value}})
                    places = [error["loc"][:2] for error in caught.value.errors()]
                    assert ("part", name) in places, (model, name, value)
    assert seen > 300


def test_a_plan_with_a_number_that_is_not_finite_is_refused_with_its_field() -> None:
    plan = resolve(recipes.from_dict({"epochs": "20st"}), INFO)
    for number in NUMBERS:
        for path in ("stages.0.peak_lr", "stages.0.curve.final_div", "measured.lr", "recipe.lr.peak"):
            content: Any = json.loads(json.dumps(plan.to_json()))
            *way, leaf = path.split(".")
            at = content
            for part in way:
                at = at[int(part)] if part.isdigit() else at[part]
            at[leaf] = number
            with pytest.raises(RecipeError) as caught:
                Plan.from_json(json.loads(json.dumps(content)))  # which writes and reads NaN and Infinity
            assert path in caught.value.given


def test_a_recipe_file_and_an_override_with_infinity_are_refused_with_the_field(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("lr: .inf\noptimizer: {options: {betas: [0.9, .nan]}, weight_decay: .inf}\n")
    with pytest.raises(RecipeError) as caught:
        recipes.load(str(tmp_path / "r.yaml"))
    for field in ("lr.peak: inf", "betas[1]: nan", "optimizer.weight_decay: inf"):
        assert field in caught.value.given
    for text in ("mean=[.nan, 0, 0]", "mix.mixup=.inf", "epochs=1e400ep", "epochs=1e400st", "std=[1, 1, .inf]"):
        with pytest.raises(RecipeError, match=text.partition("=")[0].partition(".")[0]):
            recipes.override(Recipe(), [text])
    with pytest.raises(ValueError, match="not finite"):
        Duration(math.inf, "epochs")


def test_finite_numbers_whose_product_is_not_are_refused_too() -> None:
    for fields_ in (
        {"lr": {"peak": 1e308, "batch": 1}, "batch_size": 64},
        {"epochs": "1e308ep"},
        {"stages": [{"epochs": "5st"}, {"epochs": "5st", "lr": {"schedule": "swa", "peak": 1e-320}}]},
    ):
        with pytest.raises(RecipeError, match=r"stages\[\d\]"):
            resolve(recipes.from_dict({"epochs": "10st", **fields_}), INFO)


@pytest.mark.parametrize("number", NUMBERS)
def test_budgets_and_sweeps_are_finite(number: float) -> None:
    with pytest.raises(RecipeError, match="--price"):
        Budget.parse("5m", number)
    with pytest.raises(RecipeError, match="--budget"):
        Budget.parse(f"${number}", 2.0)
    for ends in ((number, 1.0), (1e-7, number)):
        with pytest.raises(RangeTestError, match="lr_min"):
            lr_grid(*ends, 100)


def test_a_price_is_looked_at_wherever_it_is_given() -> None:
    from typer.testing import CliRunner

    from stagewright.cli.main import app

    for command in (["plan", "digits", "--probe"], ["train", "digits"], ["train", "digits", "--budget", "1m"]):
        done = CliRunner().invoke(app, [*command, "--price", "nan"])
        assert isinstance(done.exception, RecipeError) and "--price nan" in str(done.exception), command
