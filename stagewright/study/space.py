"""The space of a search: the dimensions along which a sampler chooses, each a field of the recipe or a bundle of fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stagewright.errors import RecipeError
from stagewright.recipe.recipe import Recipe
from stagewright.study.settings import Setting, is_field, settings_of, unknown_field, value_label
from stagewright.study.variants import Variant, axis_of, chosen_variant
from stagewright.text import nearest, shortened

_FORMS = ("range", "log", "int", "choice")
_HELP = "range: [0, 0.4] (evenly), log: [0.003, 0.3] (by factors), int: [2, 8] (whole numbers), or choice: [a, b]"
_INSIDE = 0.381966
"""A place between both ends that falls on no round number."""


@dataclass(frozen=True)
class Dimension:
    """What a sampler chooses: a number between ``low`` and ``high``, or one of ``labels``."""

    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    """Both ends are included."""
    log: bool = False
    """Whether factors count, not differences."""
    labels: tuple[str, ...] = ()
    """The labels of a ``choice``."""
    choices: tuple[tuple[Setting, ...], ...] = ()
    """What each of ``labels`` sets."""

    def examples(self) -> list[Any]:
        """Returns values that a sampler may choose, the most usual first: one within and both ends, or all labels of a choice."""
        if self.kind == "choice":
            return list(self.labels)
        if self.kind == "int":
            return sorted({int(self.low), int(self.high)})
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inside = low + _INSIDE * (high - low)
        return [math.exp(inside) if self.log else inside, self.low, self.high]


def dimension_of(name: str, given: Any) -> Dimension:
    """Returns the dimension of a key in ``search.space``; RecipeError names what is wrong with it."""
    place = f"search.space.{name}"
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in _FORMS:
        wrong = [str(form) for form in given] if isinstance(given, Mapping) else []
        hint = "".join(nearest(form, _FORMS) for form in wrong[:1] if form not in _FORMS)
        raise RecipeError(f"{place} is {shortened(str(given), 60)}{hint}", f"one of {_HELP}", "write one of these")
    form, values = next(iter(given.items()))
    if form == "choice":
        axis = axis_of(name, values, "search.space")
        return Dimension("choice", labels=tuple(axis.choices), choices=tuple(axis.choices.values()))
    if not is_field(name):
        raise unknown_field(name, "search.space")
    low, high = _ends(place, form, values)
    settings_of(name, low, place)
    kind = "int" if form == "int" else "float"
    return Dimension(kind, low, high, log=form == "log")


def _ends(place: str, form: str, values: Any) -> tuple[float, float]:
    whole = form == "int"
    fits = (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(one, int if whole else int | float) and not isinstance(one, bool) for one in values)
        and all(math.isfinite(one) for one in values)
    )
    if not fits or values[0] >= values[1] or (form == "log" and values[0] <= 0):
        raise RecipeError(
            f"{place}: {form} {shortened(value_label(values), 60)}",
            f"two {'whole ' if whole else ''}numbers [low, high], low below high"
            + (", both above 0" if form == "log" else ""),
            f"write for example {form}: [{'1, 8' if whole else '0.003, 0.3'}]",
        )
    low, high = values
    return (low, high) if whole else (float(low), float(high))


def variant_at(
    space: Mapping[str, Dimension], values: Mapping[str, Any], common: Sequence[Setting], base: Recipe
) -> Variant:
    """Returns the variant with ``values`` along the dimensions of ``space``: numbers, and labels of choices. ValueError if a
    dimension has no value, or one that is not in it."""
    if values.keys() != space.keys():
        raise ValueError(f"values for {sorted(values)}; the dimensions are {sorted(space)}")
    chosen: list[tuple[str, str, Sequence[Setting]]] = []
    for name, dimension in space.items():
        value = values[name]
        if dimension.kind == "choice":
            chosen.append((name, str(value), dimension.choices[dimension.labels.index(value)]))
            continue
        number = int(value) if dimension.kind == "int" else float(value)
        if number != value or not dimension.low <= number <= dimension.high:
            raise ValueError(f"{name}: {value!r} is not in [{dimension.low}, {dimension.high}]")
        chosen.append((name, repr(number), [(name, number)]))
    return chosen_variant(chosen, common, base)


def corner_values(space: Mapping[str, Dimension]) -> list[dict[str, Any]]:
    """Returns values along all dimensions that show whether all of them can be used: each of :meth:`Dimension.examples` once, the
    other dimensions at their first."""
    examples = {name: dimension.examples() for name, dimension in space.items()}
    usual = {name: values[0] for name, values in examples.items()}
    return [usual, *(usual | {name: value} for name, values in examples.items() for value in values[1:])]
