"""What all parts of recipes and plans share: they are frozen, and hold no number that is not finite.

A leaf. A field with a type of its own that is no part (a ``dict`` of anything) takes :data:`Options`, so that infinity and NaN
cannot come in there either; ``tests/test_finite.py`` walks through the fields and finds those that let one through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """A frozen piece of plain data whose numbers are finite."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    for path, number in _numbers(options, ""):
        if not math.isfinite(number):
            raise ValueError(f"{path}: {number!r} is not a finite number")
    return options


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """The floats nested in ``value``, each with its place."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for at, one in enumerate(value):
            yield from _numbers(one, f"{path}[{at}]")


Options = Annotated[dict[str, Any], AfterValidator(_finite)]
"""Arguments of somebody else's constructor: anything but numbers that are not finite."""


def problems(error: ValidationError) -> str:
    """Each wrong field of ``error`` with its place, value and what is wrong with it."""
    found = (
        f"{'.'.join(map(str, detail['loc']))}: {detail['input']!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
        for detail in error.errors()
    )
    return "; ".join(found)
