"""The base class of all parts of recipes and plans: frozen, without the numbers infinity and NaN.

Pydantic does not check numbers inside a ``dict`` of arbitrary values, so such fields have the type :data:`Options`, which
does. ``tests/test_finite.py`` checks all fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from stagewright.text import shortened


class Frozen(BaseModel):
    """A frozen pydantic model whose numbers are finite."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    for path, number in _numbers(options, ""):
        if not math.isfinite(number):
            raise ValueError(f"{path}: {number!r} is not a finite number")
    return options


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yields the path and value of every float nested in ``value``."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for at, one in enumerate(value):
            yield from _numbers(one, f"{path}[{at}]")


Options = Annotated[dict[str, Any], AfterValidator(_finite)]
"""Arguments of another library's constructor: any values, except infinity and NaN."""


def problems(error: ValidationError) -> str:
    """Returns every invalid field of ``error`` with its path, its value and what is wrong with it, separated by ``; ``."""
    return "; ".join(_problem(detail) for detail in error.errors(include_url=False))


def _problem(detail: ErrorDetails) -> str:
    place = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":  # its input is the whole part, which may be long
        return f"{place}: it is missing"
    return f"{place}: {shortened(repr(detail['input']), 100)}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
