"""Lengths of training in the notation of recipes: ``30ep``, ``500st``, ``20000img``, ``0.9`` (a share of the run).

Only the plan turns them into steps, since it knows the sizes of batch and data set.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

Unit = Literal["epochs", "steps", "images", "run"]

_SUFFIX: dict[str, Unit] = {"ep": "epochs", "st": "steps", "img": "images", "": "run"}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(ep|st|img|)\s*", re.IGNORECASE)
FORMS = "30ep (epochs), 500st (steps), 20000img (images) or a fraction of the run from 0 to 1 such as 0.9"


@dataclass(frozen=True)
class Duration:
    """A length of training: ``value`` in ``unit``. Units are epochs (passes over a stage's images, may be fractional),
    optimizer steps, images, or a fraction of the run. ValueError if ``value`` is not finite."""

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a length of {self.value} {self.unit} is not finite; write {FORMS}")

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Parses ``'30ep'``, ``'500st'``, ``'20000img'`` or ``0.9``; ValueError lists the allowed forms.

        A number above 1 without a unit is refused, because it could mean epochs or steps.
        """
        if isinstance(text, Duration):
            return text
        match = _TEXT.fullmatch(str(text)) if isinstance(text, str | int | float) and text is not True else None
        if match is None:
            raise ValueError(f"{text!r} is not a duration; write {FORMS}")
        value, unit = float(match[1]), _SUFFIX[match[2].lower()]
        if not math.isfinite(value):
            raise ValueError(f"{text!r} is not finite; write {FORMS}")
        if unit == "run" and value > 1:
            raise ValueError(f"{text!r} has no unit; write {match[1]}ep for epochs or {match[1]}st for steps")
        if unit in ("steps", "images") and value != int(value):
            raise ValueError(f"{text!r}: the number of {unit} must be a whole number")
        return cls(value, unit)

    def __str__(self) -> str:
        suffix = next(key for key, unit in _SUFFIX.items() if unit == self.unit)
        return f"{self.number!r}{suffix}"

    @property
    def number(self) -> float | int:
        """The value, as an integer if it is a whole number."""
        return int(self.value) if self.value == int(self.value) else self.value

    def to_value(self) -> str | float | int:
        """Returns the value for YAML: a number for a fraction of the run, else text such as ``30ep``."""
        return self.number if self.unit == "run" else str(self)

    def scaled(self, factor: float) -> Duration:
        """Returns this length times ``factor``; steps and images are rounded to whole numbers, at least 1."""
        value = self.value * factor
        return Duration(max(1.0, round(value)) if self.unit in ("steps", "images") else value, self.unit)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.to_value)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "number"], "description": FORMS}
