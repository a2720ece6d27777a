"""Says for which kind of data, model or stage a field of a recipe holds, and finds fields that were set without an effect.

A field declares it in its annotation: ``Annotated[float, When(schedule="one_cycle")]`` holds where the field ``schedule`` of the
same part is ``one_cycle``, ``Annotated[str, Only("table")]`` where DATA is a table. The generated page of all fields shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stagewright.recipe.duration import Duration

ON = "on"
"""The value of :class:`When` for a field that is switched on: not 0, none, false or empty."""


@dataclass(frozen=True)
class Only:
    """The field holds for one kind of use, which is known with DATA or the command (``table``, ``names``, ``training``) or with
    all stages (``head``)."""

    use: str

    def words(self) -> str:
        """For the page of the fields."""
        return {
            "table": "DATA is a table",
            "names": "DATA is a table, or a pattern reads names of files",
            "training": "training",
            "head": "the first stages train only the head (train: head) and a later one trains more",
        }[self.use]


class When:
    """The field holds where other fields of its part have these values; of several on one field, any is enough."""

    def __init__(self, **values: str | tuple[str, ...]) -> None:
        self.values = {name: (value,) if isinstance(value, str) else value for name, value in values.items()}

    def holds(self, part: BaseModel) -> bool:
        """Whether all values are those of ``part``."""
        return all(
            any(is_on(getattr(part, name)) if value == ON else getattr(part, name) == value for value in allowed)
            for name, allowed in self.values.items()
        )

    def words(self, prefix: str = "") -> str:
        """The condition: ``schedule is one_cycle or swa``."""
        return " and ".join(
            f"{prefix}{name} is {' or '.join('on' if value == ON else value for value in allowed)}"
            for name, allowed in self.values.items()
        )


def is_on(value: object) -> bool:
    """Whether the value of a field switches something on."""
    if isinstance(value, Duration):
        return value.value > 0
    return bool(value) and value != "none"


def conditions(part: type[BaseModel], name: str) -> list[When | Only]:
    """Returns what the field ``name`` of ``part`` declares; [] if it always holds."""
    return [one for one in part.model_fields[name].metadata if isinstance(one, When | Only)]


def fields_for(part: type[BaseModel], use: str) -> frozenset[str]:
    """Returns the fields of ``part`` that hold only for ``use``."""
    return frozenset(name for name in part.model_fields if Only(use) in conditions(part, name))


def why_without_effect(part: BaseModel, name: str, prefix: str = "", absent: Collection[str] = ()) -> str | None:
    """Returns where the field ``name`` would hold and what is there instead, or None if it holds in ``part``.

    ``prefix`` is the path of the part, such as ``lr.``; ``absent`` are the uses (:class:`Only`) that the recipe is not for.
    """
    declared = conditions(type(part), name)
    for one in declared:
        if isinstance(one, Only) and one.use in absent:
            return f"it holds where {one.words()}"
    found = [one for one in declared if isinstance(one, When)]
    if not found or any(one.holds(part) for one in found):
        return None
    others = {other: None for one in found for other in one.values}
    now = ", ".join(f"{prefix}{other} is {_shown(getattr(part, other))}" for other in others)
    return f"it holds where {' or '.join(one.words(prefix) for one in found)}, but {now}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def written_without_effect(
    part: BaseModel, raw: Mapping[str, Any], prefix: str = "", absent: Collection[str] = ()
) -> dict[str, str]:
    """Returns the fields of ``part`` that a file has set to another value than their default without an effect, with the reason.

    ``raw`` is what the file says. A part with all its fields was written by a program, as a record of the values, so that it
    requests nothing. ``absent`` as in :func:`why_without_effect`.
    """
    found: dict[str, str] = {}
    fields = type(part).model_fields
    for name, value in raw.items():
        if name not in fields:
            continue
        inner: object = getattr(part, name)
        if isinstance(inner, BaseModel) and isinstance(value, Mapping):
            found |= written_without_effect(inner, value, f"{prefix}{name}.", absent)
        elif len(raw) < len(fields) and inner != fields[name].get_default(call_default_factory=True):
            why = why_without_effect(part, name, prefix, absent)
            if why is not None:
                found[f"{prefix}{name}"] = why
    return found
