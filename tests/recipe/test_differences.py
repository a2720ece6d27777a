"""Where nested values differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagewright.recipe.differences import differing, value_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON)
def test_equal_values_and_only_they_have_no_differences(one: object, other: object) -> None:
    assert differing(one, one) == []
    found = differing(one, other)
    assert bool(found) == (_plain(one) != _plain(other)) and all(a != b for _, a, b in found)
    assert sorted(map(str, found)) == sorted(str((path, a, b)) for path, b, a in differing(other, one))


def _plain(value: object) -> object:
    """A key with None is as good as none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if _plain(inner) is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def test_places_are_named() -> None:
    one = {"lr": {"peak": 1}, "stages": [{"a": 1}, {"a": 2}], "short": [1]}
    other = {"lr": {"peak": 2, "warmup": 3}, "stages": [{"a": 1}, {"a": 5}], "short": [1, 2]}
    assert differing(one, other) == [
        *(("lr.peak", 1, 2), ("lr.warmup", None, 3), ("stages[1].a", 2, 5), ("short", [1], [1, 2])),
    ]


def test_values_for_people() -> None:
    assert value_text(None) == "–" and value_text(0.1) == "0.1" and value_text(True) == "True"
    assert value_text([{"name": "head"}, {"name": "all"}]) == "head, all" and value_text([]) == "none"
    assert value_text({"views": 8, "x": None}) == "views: 8, x: –"
