"""Variants: what the runs of a study differ in, from its grid or its list of variants.

An axis is a field of the recipe, or a bundle of fields, with labelled values. A grid has a variant for each combination, the last
axis changing fastest.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagewright.errors import RecipeError
from stagewright.recipe.recipe import Recipe
from stagewright.study.settings import Setting, combined, is_field, settings_of, unknown_field, value_label
from stagewright.text import counted, shortened, some

MOST = 10_000
"""Most variants of a study."""
_LONGEST = 80
"""Most characters of a variant's name; folders are called by it."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,-]+")


@dataclass(frozen=True)
class Variant:
    """What a run of a study is apart from its seed."""

    name: str
    """Unique in its study, and safe as a folder's name: ``cifar_resnet18-sgd-0.01-A``."""
    labels: Mapping[str, str]
    """The label on each axis, for tables: ``{"model.name": "cifar_resnet18", "optimizer": "sgd", "lr.peak": "0.01"}``."""
    overrides: tuple[str, ...]
    """How it changes the study's recipe, as ``train --set`` takes it, in this order."""


@dataclass(frozen=True)
class _Axis:
    """A field of the recipe or a bundle of fields, with what each of its labels sets."""

    name: str
    choices: Mapping[str, tuple[Setting, ...]]


def axis_of(name: str, values: Any, where: str) -> _Axis:
    """Returns the axis of a key in ``grid`` (``where`` names the place) with its values: a list, or label: value. RecipeError for
    a key that is no field and has no labels, for no values at all, and for two labels that are the same folder."""
    place = f"{where}.{name}"
    if isinstance(values, Mapping):
        given = [(_own_label(label), value) for label, value in values.items()]
    elif isinstance(values, list) and is_field(name):
        given = [(value_label(value), value) for value in values]
    elif is_field(name):
        raise RecipeError(
            f"{place} is {shortened(repr(values), 60)}",
            "a list of values, or label: value",
            f"write {name}: [{shortened(value_label(values), 40)}, ...], or put it into set, for all runs",
        )
    else:
        raise unknown_field(name, where)
    if not given:
        raise RecipeError(f"{place} has no values", "at least one", "add values, or leave it out")
    choices: dict[str, tuple[Setting, ...]] = {}
    for label, value in given:
        if label in choices:
            raise RecipeError(
                f"{place}: two values are labelled {label!r}",
                "a label of its own for each value",
                f"write {name}: {{LABEL: value, ...}}, or leave one out",
            )
        choices[label] = _chosen(name, value, f"{place}.{label}")
    _refuse_colliding(
        choices, place, f"write {name}: {{LABEL: value, ...}} with labels that differ in letters or digits"
    )
    return _Axis(name, choices)


def _own_label(key: Any) -> str:
    """Returns the label that a person gave, which YAML may have read as a number."""
    return key if isinstance(key, str) else value_label(key)


def _chosen(name: str, value: Any, place: str) -> tuple[Setting, ...]:
    if is_field(name):
        return tuple(settings_of(name, value, place))
    if not isinstance(value, Mapping):
        raise unknown_field(name, place.rpartition(f".{name}.")[0])
    return mapped(value, place)


def mapped(value: Mapping[Any, Any], where: str) -> tuple[Setting, ...]:
    """Returns the settings of a mapping from fields to values."""
    return tuple(setting for field, one in value.items() for setting in settings_of(str(field), one, where))


def grid_variants(grid: Mapping[str, Any], common: Sequence[Setting], base: Recipe) -> tuple[Variant, ...]:
    """Returns a variant for each combination of the values in ``grid``, with the settings ``common`` to all, for the recipe
    ``base``. RecipeError for an empty grid, for too large a one, and as for :func:`axis_of`."""
    if not grid:
        raise RecipeError(
            "grid is empty", "at least one field with values", "add a field, such as lr.peak: [0.01, 0.1]"
        )
    axes = [axis_of(name, values, "grid") for name, values in grid.items()]
    count = math.prod(len(axis.choices) for axis in axes)
    _refuse_too_many(count, "the grid")
    varied = [axis.name for axis in axes if len(axis.choices) > 1] or [axis.name for axis in axes]
    found: list[Variant] = []
    for labels in itertools.product(*(axis.choices for axis in axes)):
        by_axis = {axis.name: label for axis, label in zip(axes, labels, strict=True)}
        name = safe_name([by_axis[one] for one in varied])
        found.append(_variant(name, by_axis, axes, common, base))
    _refuse_same_names(found, "grid")
    return tuple(found)


def _variant(
    name: str, labels: Mapping[str, str], axes: Sequence[_Axis], common: Sequence[Setting], base: Recipe
) -> Variant:
    chosen = [(axis.name, axis.choices[labels[axis.name]]) for axis in axes]
    return Variant(name, labels, combined([("set", common), *chosen], base))


def listed_variants(listed: Mapping[str, Any], common: Sequence[Setting], base: Recipe) -> tuple[Variant, ...]:
    """Returns the variants that a study file lists by name, each with its ``{field: value}``."""
    if not listed:
        raise RecipeError("variants is empty", "at least one", "add one, such as baseline: {}")
    _refuse_too_many(len(listed), "variants")
    found: list[Variant] = []
    for label, settings in ((_own_label(name), settings) for name, settings in listed.items()):
        where = f"variants.{label}"
        if not isinstance(settings, Mapping):
            raise RecipeError(
                f"{where} is {shortened(repr(settings), 60)}",
                "a mapping of recipe fields, {} for the recipe itself",
                f"write {label}: {{lr.peak: 0.1}}",
            )
        overrides = combined([("set", common), (where, mapped(settings, where))], base)
        found.append(Variant(safe_name([label]), {"variant": label}, overrides))
    _refuse_same_names(found, "variants")
    return tuple(found)


def chosen_variant(
    chosen: Sequence[tuple[str, str, Sequence[Setting]]], common: Sequence[Setting], base: Recipe
) -> Variant:
    """Returns the variant of a search with (axis, label, settings) for each axis. Its name has the labels, and a hash of
    everything in which it differs from the recipe."""
    overrides = combined([("set", common), *((axis, settings) for axis, _, settings in chosen)], base)
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    short = [_short_number(label) for _, label, _ in chosen]
    return Variant(safe_name([*short, digest]), {axis: label for axis, label, _ in chosen}, overrides)


def _short_number(label: str) -> str:
    try:
        return f"{float(label):.3g}"
    except ValueError:
        return label


def safe_name(parts: Sequence[str]) -> str:
    """Returns a folder's name of ``parts``: letters and digits of ASCII, ``. _ + = , -``, with ``-`` between the parts. A long
    name ends in a hash of its whole."""
    name = "-".join(_UNSAFE.sub("_", part).strip("_") or "_" for part in parts).lstrip(".-") or "_"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _refuse_colliding(labels: Mapping[str, object], place: str, remedy: str) -> None:
    taken: dict[str, str] = {}
    for label in labels:
        folder = safe_name([label]).casefold()
        if folder in taken:
            raise RecipeError(
                f"{place}: the labels {taken[folder]!r} and {label!r} both make the folder name {safe_name([label])!r}",
                "labels that differ in letters, digits, . _ + = and ,",
                remedy,
            )
        taken[folder] = label


def _refuse_same_names(variants: Sequence[Variant], place: str) -> None:
    taken: dict[str, Variant] = {}
    for one in variants:
        other = taken.setdefault(one.name.casefold(), one)
        if other is not one:
            both = " and ".join(
                some(f"{axis}: {label}" for axis, label in each.labels.items()) for each in (other, one)
            )
            raise RecipeError(
                f"{place}: {both} both make the folder name {one.name!r}",
                "labels whose combinations differ",
                "give one of them another label",
            )


def _refuse_too_many(count: int, what: str) -> None:
    if count > MOST:
        raise RecipeError(
            f"{what} has {counted(count, 'variant')}",
            f"at most {MOST:,}",
            "leave out values, or write a search, which tries some of them",
        )
