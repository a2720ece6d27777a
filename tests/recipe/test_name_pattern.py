"""Patterns of names: what is taken, what is refused and where, and that no pattern takes long."""

from __future__ import annotations

import re
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.data.sources.file_names import matches
from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.name_pattern import LONGEST, NamePattern
from stagewright.recipe.recipe import Recipe


@pytest.mark.parametrize("text", [r"(?P<label>[a-z]+)_\d+", r'{pattern: "(?P<label>[a-z]+)_\\d+"}'])
def test_a_pattern_or_its_mapping(text: str) -> None:
    data = recipes.data_settings([f"data.label={text}"])
    assert data.label == NamePattern(pattern=r"(?P<label>[a-z]+)_\d+") and str(data.label) == r"(?P<label>[a-z]+)_\d+"
    recipe = Recipe(data=data)
    assert recipes.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("text", ["species", "0", "Class: kind", "[1, 2]", "none"])
def test_a_column_stays_a_column(text: str) -> None:
    assert recipes.data_settings([f"data.group={text}"]).group == text
    assert recipes.data_settings([f"data.label={text}", "data.label=null"]).label is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(?P<label>[a-z", "unterminated character set at position 10: (?P<label> >>> [a-z"),
        ("(?P<label>*)", "nothing to repeat at position 10"),
        ("(?P<label>a)(?=b)", "invalid perl operator (?= at position 12: (?P<label>a) >>> (?=b); lookaround"),
        (r"(?P<label>a)_\1", r"invalid escape sequence \1 at position 13"),
        ("(?P<label>a){1,5000}", "invalid repetition size {1,5000} at position 12"),
        ("(?P<label>a{99999999999999999999})", "the repetition number is too large"),
        ("(?P<label>a)" + "a" * LONGEST, "has 1,012 characters; at most 1,000"),
        (
            "(?P<group>a)",
            "has no group (?P<label>...), which says where the label is; it names group; write for example",
        ),
        ("{pattern: '[a-z]+'}", "has no group (?P<label>...)"),
        ("{patern: '[a-z]+'}", "data.label.patern: unknown field; did you mean 'pattern'?"),
        ("{pattern: 3}", "data.label.pattern: 3 is not allowed"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipes.data_settings([f"data.label={text}"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    ["(?P<label>(a+)+)$", "(?P<label>(a|aa|b?)*)x", "(?P<label>(x?){900}x{900})", "(?P<label>(.*)(.*)(.*)(.*))!!"],
)
def test_nothing_explodes(pattern: str) -> None:
    began = time.perf_counter()
    matches(
        NamePattern(pattern=pattern), "label", pa.array(["a" * 250 + "!"] * 4000)
    )  # 250: names have 255 bytes at most
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("pattern", "path", "label"),
    [
        (r"(?P<label>[a-z]+)_\d+", "cat_1.jpg", "cat"),
        (r"(?P<label>[a-z]+)_\d+", "Abyssinian_1.jpg", None),  # and not byssinian
        (r"(?P<label>[a-z]+)_\d+", "great_pyrenees_1.jpg", None),  # and not pyrenees
        (r"(?P<label>[a-z]+)_\d+", "batch_1/dog_2.jpg", "dog"),  # the file before its folders
        (r"(?P<label>[a-z]+)_\d+", "batch_1/2.jpg", "batch"),
        (r"(?P<label>[^/]+)/\d+", "x/red fox/1.jpg", "red fox"),
        (r".*_(?P<label>cat|dog)\.", "IMG_1_cat.jpg", "cat"),
        (r"(?i)(?P<label>cat|dog)", "CAT1.jpg", "CAT"),
        (r"(img|photo)-(?P<label>\w+)", "photo-cat.jpg", "cat"),
        (r"[(](?P<label>[])(a]+)[)]", "((a)].jpg", "(a"),
        (r"(?P<label>[a-z]*)\d", "1.jpg", None),  # the empty text is no class
        (r"(?P<label>cat)|dog", "dog.jpg", None),
        (r"(?P<label>[^/_]+)_", "e\u0301l\u00e9phant_1.jpg", "\u00e9l\u00e9phant"),
    ],
)
def test_where_it_matches(pattern: str, path: str, label: str | None) -> None:
    assert matches(NamePattern(pattern=pattern), "label", pa.array([path])) == [label]


PIECES = st.sampled_from(["a", "b", "[ab]", "(a|b)", "a*", "b?", r"\d", "_", "[^/]", "(?:ab)+", "."])


@given(st.lists(PIECES, min_size=1, max_size=5), st.lists(PIECES, max_size=3), st.text("ab1_/", max_size=12))
def test_re2_and_python_agree(inside: list[str], after: list[str], path: str) -> None:
    pattern = f"(?P<label>{''.join(inside)}){''.join(after)}"
    expected = re.match(f"(?s:.*/)?(?:{pattern})", path)
    found = matches(NamePattern(pattern=pattern), "label", pa.array([path]))[0]
    assert found == ((expected["label"] or None) if expected else None)
