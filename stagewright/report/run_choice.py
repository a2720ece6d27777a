"""Chooses and sorts the rows of a list of runs, as ``stagewright runs`` is asked to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from stagewright.errors import RecipeError
from stagewright.report.runs import RunRow, Runs
from stagewright.text import nearest

Value = str | float | None

FIELDS: dict[str, Callable[[RunRow], Value]] = {
    "name": lambda row: row.name,
    "status": lambda row: row.status,
    "data": lambda row: row.data,
    "recipe": lambda row: row.recipe,
    "model": lambda row: row.model,
    "size": lambda row: row.image_size,
    "seed": lambda row: row.seed,
    "score": lambda row: None if row.score is None else row.score.percent,
    "time": lambda row: row.seconds,
    "when": lambda row: row.created,
}
"""What a list can be sorted and filtered by: texts, or numbers (pixels, percent, seconds)."""
_LARGEST_FIRST = ("score", "when")
_CONDITION = re.compile(r"(\w+)\s*(<=|>=|=|<|>)\s*(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda one, other: one < other,
    ">": lambda one, other: one > other,
    "<=": lambda one, other: one <= other,
    ">=": lambda one, other: one >= other,
}


def sorted_runs(listed: Runs, field: str, *, reverse: bool = False) -> Runs:
    """Returns ``listed`` by ``field`` of :data:`FIELDS`: scores and dates from the largest, the others from the smallest, with
    ``reverse`` the other way round; runs without a value come last. RecipeError for another field."""
    value = _field(field, "--sort")
    known = [row for row in listed if value(row) not in (None, "")]
    missing = [row for row in listed if value(row) in (None, "")]
    known.sort(key=lambda row: _comparable(value(row)), reverse=(field in _LARGEST_FIRST) != reverse)
    return replace(listed, rows=(*known, *missing))


def filtered_runs(listed: Runs, conditions: Sequence[str]) -> Runs:
    """Returns those of ``listed`` that fulfil all ``conditions``.

    A condition is a text that is part of name, status, data, recipe or model; or FIELD=PATTERN with ``*`` and ``?``; or, for a
    number, FIELD with <, <=, > or >= and a number. Upper and lower case do not matter. RecipeError for an unknown field and for
    a number that is none.
    """
    tests = [_condition(text) for text in conditions]
    return replace(listed, rows=tuple(row for row in listed if all(test(row) for test in tests)))


def _condition(text: str) -> Callable[[RunRow], bool]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        part = text.strip().casefold()
        return lambda row: any(
            part in word.casefold() for word in (row.name, row.status, row.data, row.recipe, row.model)
        )
    name, sign, wanted = match.groups()
    value = _field(name, f"--filter {text!r}:")
    if sign == "=":
        return lambda row: fnmatchcase(_text(value(row)).casefold(), wanted.casefold())
    try:
        limit = float(wanted)
    except ValueError:
        raise RecipeError(
            f"--filter {text!r}: {wanted!r} is not a number",
            "a number: pixels for size, percent for score, seconds for time",
            "write for example --filter 'score>60'",
        ) from None
    compare = _COMPARE[sign]
    return lambda row: isinstance(found := value(row), int | float) and compare(found, limit)


def _field(name: str, what: str) -> Callable[[RunRow], Value]:
    if name not in FIELDS:
        raise RecipeError(
            f"{what} {name!r} is not a field of the list{nearest(name, FIELDS)}", ", ".join(FIELDS), "use one of them"
        )
    return FIELDS[name]


def _comparable(value: Value) -> tuple[float, str]:
    return (0.0, value.casefold()) if isinstance(value, str) else (value or 0.0, "")


def _text(value: Value) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
