"""Properties of variants: their order, their names, and overrides that ``--set`` reads as they were meant."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.yaml_text import load_yaml
from stagewright.study.definition import Rungs, study_from_content
from stagewright.study.expected import trained_share
from stagewright.study.settings import combined, override_text, settings_of, value_label
from stagewright.study.space import Dimension, corner_values, variant_at
from stagewright.study.variants import grid_variants, listed_variants, safe_name

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "lr.peak": st.floats(1e-6, 10),
    "batch_size": st.integers(1, 4096),
    "label_smoothing": st.floats(0, 0.9),
    "augment.rotation": st.integers(0, 180),
    "optimizer.weight_decay": st.floats(0, 1),
}
grids = st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.lists(FIELDS[name], min_size=1, max_size=4) for name in names})
)
SAFE = re.compile(r"[A-Za-z0-9_+=,][A-Za-z0-9._+=,-]*")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(grids)
def test_a_grid_has_each_combination_once_the_last_axis_fastest(grid: dict[str, list[Any]]) -> None:
    distinct = all(len({value_label(one) for one in each}) == len(each) for each in grid.values())
    if not distinct:
        with pytest.raises(RecipeError, match="two values are labelled"):
            grid_variants(grid, (), Recipe())
        return
    try:
        found = grid_variants(grid, (), Recipe())
    except RecipeError as error:  # 1.0 and -1.0 would not; labels that only hashes tell apart
        assert "both make the folder name" in str(error)
        return
    assert [tuple(one.labels.values()) for one in found] == [
        tuple(map(value_label, each)) for each in itertools.product(*grid.values())
    ]
    names = [one.name.casefold() for one in found]
    assert len(set(names)) == len(names) and all(SAFE.fullmatch(one.name) and len(one.name) <= 80 for one in found)
    for one, chosen in zip(found, itertools.product(*grid.values()), strict=True):
        recipe = recipes.override(Recipe(), one.overrides)
        for field, value in zip(grid, chosen, strict=True):
            got: Any = recipe
            for part in field.split("."):
                got = getattr(got, part)
            assert got == value


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_names_are_safe_whatever_the_labels(parts: list[str]) -> None:
    name = safe_name(parts)
    assert name == "_" or (SAFE.fullmatch(name) and len(name) <= 80)
    assert name == safe_name(parts)


def test_a_long_name_keeps_what_tells_it_apart() -> None:
    one, other = (safe_name(["a" * 90, end]) for end in ("x", "y"))
    assert one != other and len(one) == len(other) == 80


@given(st.dictionaries(st.text(), st.just({}), min_size=1, max_size=6))
def test_listed_variants_keep_their_order(listed: dict[str, Any]) -> None:
    try:
        found = listed_variants(listed, (), Recipe())
    except RecipeError as error:
        assert "both make the folder name" in str(error)
        return
    assert [one.labels["variant"] for one in found] == list(listed) and len({one.name for one in found}) == len(listed)


@given(values)
def test_set_reads_a_value_as_it_was_meant(value: Any) -> None:
    try:
        field, _, text = override_text("model.options", value).partition("=")
    except RecipeError:  # control characters that YAML does not know
        return
    assert (field, load_yaml(text)) == ("model.options", value)
    assert type(load_yaml(text)) is type(value)


def test_texts_stay_plain_where_yaml_reads_them_so() -> None:
    assert override_text("model.name", "swin_t") == "model.name=swin_t"
    assert override_text("model.name", "timm:resnet18.a1_in1k") == "model.name=timm:resnet18.a1_in1k"
    assert override_text("data.label", "1") == 'data.label="1"'
    assert override_text("data.label", "null") == 'data.label="null"'
    assert override_text("lr.peak", 1e-5) == "lr.peak=1e-05"
    assert override_text("model.drop_path", None) == "model.drop_path=null"


def test_what_chooses_comes_first_and_wholes_before_their_parts() -> None:
    given = {"model.options.depth": 3, "model.options": {"depth": 1, "heads": 2}, "model.name": "vit"}
    found = combined([(field, settings_of(field, value, "")) for field, value in given.items()], Recipe())
    assert found == ("model.name=vit", 'model.options={"depth": 1, "heads": 2}', "model.options.depth=3")
    assert recipes.override(Recipe(), found).model.options == {"depth": 3, "heads": 2}


@given(st.floats(1e-6, 1), st.floats(1.001, 1e6), st.booleans(), st.randoms(use_true_random=False))
def test_numbers_of_a_search_keep_their_bits(low: float, ratio: float, log: bool, random: Any) -> None:
    space = {"lr.peak": Dimension("float", low, low * ratio, log), "batch_size": Dimension("int", 2, 9)}
    for chosen in [*corner_values(space), {"lr.peak": random.uniform(low, low * ratio), "batch_size": 5}]:
        chosen["lr.peak"] = min(max(chosen["lr.peak"], low), low * ratio)
        recipe = recipes.override(Recipe(), variant_at(space, chosen, (), Recipe()).overrides)
        assert recipe.lr.peak == chosen["lr.peak"] and recipe.batch_size == chosen["batch_size"]


@given(st.floats(0.001, 0.999), st.integers(2, 10))
def test_rungs_train_a_share_of_all(first: float, eta: int) -> None:
    share = trained_share(Rungs(first, eta))
    assert first <= share <= 1


def test_rungs_by_hand() -> None:
    """Ten of a hundred parts for all, 20 more for a third, 60 more for a ninth, the last 10 for a 27th."""
    assert trained_share(Rungs(0.1, 3)) == pytest.approx(0.1 + 0.2 / 3 + 0.6 / 9 + 0.1 / 27)


KEYS = [
    "description",
    "data",
    "recipe",
    "equal",
    "seeds",
    "set",
    "grid",
    "variants",
    "search",
    "confirm",
    "metric",
    "test",
]
WORDS = [
    *(
        "lr",
        "lr.peak",
        "lr.",
        "",
        "stages",
        "stages.0",
        "stages.0.lr",
        "stages[7].lr",
        "model",
        "model.name",
        "model.options",
    ),
    *(
        "model.options.width",
        "optimizer",
        "average",
        "mix",
        "train",
        "data",
        "data.label",
        "epochs",
        "sgd",
        "A",
        "none",
        "x y",
    ),
    *(
        "log",
        "range",
        "int",
        "choice",
        "space",
        "trials",
        "rungs",
        "first",
        "eta",
        "top",
        "10%",
        "3ep",
        "seed",
        "null",
        "ü",
    ),
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=4), st.sampled_from(["grid", "variants", "search"]))
def test_whatever_a_file_says_is_read_or_refused(changes: dict[str, Any], way: str) -> None:
    ways: dict[str, Any] = {
        "grid": {"lr.peak": [0.1, 0.2]},
        "variants": {"a": {}, "b": {"lr": 0.1}},
        "search": {"space": {"lr.peak": {"log": [0.1, 0.2]}}, "trials": 3},
    }
    content = {"data": "photos", "recipe": "cifar-resnet", "seeds": [0], way: ways[way], **changes}
    try:
        found = study_from_content("any", content)
    except RecipeError as error:
        assert error.given and error.remedy
        return
    for variant in found.examples:
        assert found.command(variant, 0, "out")[-1] == "--hold-test"
        assert found.request(variant, 0).preliminary.seed == 0
