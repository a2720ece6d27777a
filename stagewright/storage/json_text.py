"""Reads JSON that a stranger may have written: UTF-8, each key once, of limited depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stagewright.text import printable, shortened

ABSENT: Any = None
"""The default of a field of :class:`Fields` that may be missing."""


class Fields(BaseModel):
    """The fields of a JSON object with their types, which are exact: ``"8"``, ``8.0`` and ``true`` are no integers."""

    model_config = ConfigDict(strict=True)


_MOST_DEPTH = 100


def parse_object(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in ``data``; ValueError for everything else, as for :func:`parse_json`."""
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def parse_json(data: bytes) -> Any:
    """Returns the JSON value in ``data``; NaN and Infinity are numbers, as Python writes them.

    ValueError for anything else, for equal keys in one object, of which other readers silently use the last, for other encodings
    than UTF-8, and for values nested deeper than 100 levels.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(content)
    return content


_TOO_DEEP = f"values are nested deeper than {_MOST_DEPTH} levels"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_MOST_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def fitting(content: Mapping[str, Any], kind: type[Fields]) -> tuple[dict[str, Any], list[str]]:
    """Returns ``content`` without the values that do not have the type of their field in ``kind``, and a sentence on each of
    those. Fields that ``kind`` does not have remain; whoever uses a field must have it in ``kind``."""
    found, problems = dict(content), []
    for field, adapter in _fields(kind).items():
        if field in found:
            try:
                adapter.validate_python(found[field], strict=True)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = printable(".".join([field, *(str(part) for part in first["loc"])]))
                value = shortened(printable(repr(first["input"])), 60)
                problems.append(f"{place} is {value}: {first['msg'].lower()}")
                del found[field]
    return found, problems


def misfit(content: Mapping[str, Any], kind: type[Fields]) -> str:
    """Returns what keeps ``content`` from being a ``kind``: a field of another type or a missing one; "" if nothing does."""
    found, problems = fitting(content, kind)
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in found]
    return next(iter([*problems, *(f"{name} is missing" for name in missing)]), "")


@cache
def _fields(kind: type[Fields]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: TypeAdapter(hints[name]) for name in kind.model_fields}
