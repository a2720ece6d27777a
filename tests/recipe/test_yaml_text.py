from __future__ import annotations

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stagewright.recipe import recipes
from stagewright.recipe.yaml_text import YamlError, decode_text, load_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+5", 5),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("'1e-3'", "1e-3"),
        ("[1, 2.0, no]", [1, 2.0, "no"]),
        ("{a: 1, b: {c: }}", {"a": 1, "b": {"c": None}}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("<<: {a: 1}\nb: 2", {"a": 1, "b": 2}),
        (".inf", math.inf),
    ],
)
def test_a_value_is_read_as_yaml_1_2_means_it(text: str, value: Any) -> None:
    read = load_yaml(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given again; it is on line 1 already"),
        ("x: {b: 1, b: 2}", "line 1: the key 'b' is given again"),
        ("a: &a\n  b: *a", "an alias refers to what it is part of"),
        ("? [1]\n: 2", "a key that is no plain value"),
        ("a: !!python/object/apply:os.system [x]", "line 1: could not determine a constructor for the tag"),
        ("a: !!timestamp 2020-01-01", "could not determine a constructor"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("[" * 100 + "]" * 100, "values nested deeper than 40 levels"),
        ("a: \x00", "line 1: the character U+0000 is not allowed"),
        ("a: [1,", "line 1: "),
        ("a: 1\n--- \nb: 2", "line 2: "),
        ("x" * (1 << 21), "2,097,152 characters; at most 1,048,576 are read"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(YamlError) as error:
        load_yaml(text)
    assert message in str(error.value)


@pytest.mark.parametrize("merge", [False, True])
def test_a_bomb_of_aliases_is_refused_before_it_is_built(merge: bool) -> None:
    levels = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x, x]"]
    for at in range(1, 40):
        before = ", ".join([f"*a{at - 1}"] * 9)
        levels.append(f"a{at}: &a{at} {{<<: [{before}]}}" if merge else f"a{at}: &a{at} [{before}]")
    began = time.perf_counter()
    with pytest.raises(YamlError, match="more than 20,000 values"):
        load_yaml("\n".join(levels))
    assert time.perf_counter() - began < 5


def test_encodings_with_a_mark_are_read_and_others_named() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert load_yaml(decode_text("name: é".encode(encoding))) == {"name": "é"}
    with pytest.raises(YamlError, match="line 2: byte 0xe9 is not UTF-8"):
        decode_text(b"epochs: 1ep\nname: caf\xe9 x\n")


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_mean_the_same_in_both_versions_of_yaml(name: str) -> None:
    assert load_yaml(recipes.text(name)) == yaml.safe_load(recipes.text(name))


_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    [
        "1e-3",
        "yes",
        "010",
        "0o7",
        "~",
        "",
        "1_0",
        "=",
        "<<",
        "true",
        "NaN",
        ".inf",
        "a\nb",
        "12:30",
        "- x",
        "# no",
        "*a",
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    assert load_yaml(write_yaml(value)) == value


@given(st.text(max_size=60) | st.text("a:[]{}&*!<>-?|#'\"\n 0.1e,~", max_size=60))
def test_any_text_is_a_value_or_a_yaml_error(text: str) -> None:
    try:
        load_yaml(text)
    except YamlError as error:
        assert str(error)
