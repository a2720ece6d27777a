"""In which fields two recipes, or other nested values of JSON, differ; and their values for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagewright.text import ABSENT, number_text


def differing(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Returns (path, value in ``one``, value in ``other``) of all places below ``path`` where two nested values differ.

    Paths are like ``stages[0].lr.peak``. Lists of the same length are compared item by item, others as a whole. A key that one
    of them does not have counts as None.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = {**one, **other}
        return [found for key in keys for found in differing(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found for at, pair in enumerate(zip(one, other, strict=True)) for found in differing(*pair, f"{path}[{at}]")
        ]
    return [] if one == other else [(path, one, other)]


def value_text(value: Any) -> str:
    """Returns a value of a recipe for people: an en dash for None, and the names for a list of stages."""
    if value is None:
        return ABSENT
    if isinstance(value, list):
        parts = (str(one.get("name", "?")) if isinstance(one, Mapping) else value_text(one) for one in value)
        return ", ".join(parts) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(one)}" for name, one in value.items()) or "none"
    return number_text(value, ".6g") if isinstance(value, float) else str(value)
