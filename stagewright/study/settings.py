"""Fields of a recipe as a study file names them, with their values; and both as the texts that ``--set`` takes.

A value for a whole part (``optimizer: {name: adam}``, ``average: ema``) sets the fields that it names; the others stay as the
recipe has them, as in a stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from stagewright.errors import RecipeError
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.recipes import part_at
from stagewright.recipe.yaml_text import YamlError, load_yaml
from stagewright.text import nearest, shortened

Setting = tuple[str, Any]
"""A field, such as ``lr.peak``, and its value."""
_NOT_HERE = {
    "seed": "seeds: [0, 1, 2] gives the seeds of all runs",
    "name": "runs take their names from the study",
    "description": "the study has a description of its own",
}
_CHOOSING = {"model.name": ("model.options", "model.drop_path"), "optimizer.name": ("optimizer.options",)}
"""Fields that choose what others are for: if a recipe's choice is changed, its values of the others are dropped."""


def steps_of(field: str) -> tuple[str, ...]:
    """Returns the path of a field: ``("stages", "0", "lr")`` for ``stages[0].lr``."""
    return tuple(field.strip().replace("[", ".").replace("]", "").split("."))


def is_field(key: str) -> bool:
    """Returns whether ``key`` begins with the name of a field of the recipe, so that it is no bundle's name."""
    return steps_of(key)[0] in Recipe.model_fields


def unknown_field(key: str, where: str) -> RecipeError:
    """Returns the error for a key that is no field of a recipe, with the nearest one; ``where`` says where it is."""
    known = list(_fields(Recipe, ""))
    return RecipeError(
        f"{where}: {key!r} is not a field of a recipe{nearest(key, known)}",
        "fields as for --set, such as lr.peak or model.name; or in grid and search the name of a bundle, "
        "whose values are label: {field: value}",
        "correct the name; docs/recipe-fields.md lists all fields",
    )


def settings_of(field: str, value: Any, where: str) -> list[Setting]:
    """Returns what ``field: value`` sets: the field, or where it is a part of the recipe the fields within that ``value`` names.
    RecipeError for fields that a study sets in another way."""
    if not is_field(field):
        raise unknown_field(field, where)
    if (instead := _NOT_HERE.get(steps_of(field)[0])) is not None:
        raise RecipeError(f"{where}: {field}", "fields that change how a run trains", instead)
    return _leaves(field, value)


def _leaves(field: str, value: Any) -> list[Setting]:
    steps = steps_of(field)
    part = part_at(steps)
    if part is part_at(steps[:-1]) or value is None:
        return [(field, value)]
    if isinstance(value, Mapping):
        return [found for name, one in value.items() for found in _leaves(f"{field}.{name}", one)]
    try:
        short = part.model_validate(value)  # such as average: ema, mix: none
    except ValidationError:
        return [(field, value)]  # the recipe explains what is wrong
    given = short.model_dump(mode="json", exclude_unset=True)
    return [(f"{field}.{name}", one) for name, one in given.items()]


def combined(sources: Sequence[tuple[str, Sequence[Setting]]], base: Recipe) -> tuple[str, ...]:
    """Returns the settings of several ``sources`` (what each is called, and its settings) as overrides of the recipe ``base``.

    Model and optimizer are chosen first. If that changes the recipe's choice, its options for the other one are dropped, as by
    ``--model``. RecipeError if two sources set the same field.
    """
    found: dict[tuple[str, ...], tuple[str, Setting]] = {}
    for source, settings in sources:
        for field, value in settings:
            steps = steps_of(field)
            if steps in found:
                other = found[steps][0]
                both = f"{source} sets {field} twice" if other == source else f"{source} and {other} both set {field}"
                raise RecipeError(both, "each field set once in a run", "leave one of them out")
            found[steps] = source, (field, value)
    resets = [setting for setting in _dropped(base, found) if steps_of(setting[0]) not in found]
    ordered = sorted(
        (one for _, one in found.values()), key=lambda one: (one[0] not in _CHOOSING, len(steps_of(one[0])))
    )
    return tuple(override_text(field, value) for field, value in (*resets, *ordered))


def _dropped(base: Recipe, found: Mapping[tuple[str, ...], tuple[str, Setting]]) -> Iterator[Setting]:
    for field, others in _CHOOSING.items():
        part, name = steps_of(field)
        chosen = getattr(base, part)
        if (part, name) not in found or found[part, name][1][1] == chosen.name:
            continue
        for other in others:
            value = getattr(chosen, other.split(".")[1])
            if value not in (None, {}):
                yield other, {} if isinstance(value, dict) else None


def override_text(field: str, value: Any) -> str:
    """Returns ``FIELD=VALUE`` as ``--set`` takes it; floats keep all their digits. RecipeError for a value that cannot be
    written so."""
    return f"{field.strip()}={_written(field, value)}"


def _written(field: str, value: Any) -> str:
    if isinstance(value, str) and value.strip() == value and _reads_as(value, value):
        return value
    for plain in (False, True):
        text = json.dumps(value, ensure_ascii=plain)
        if _reads_as(text, value):
            return text
    raise RecipeError(f"{field}: {shortened(repr(value), 100)}", "a value that YAML can express", "write another value")


def _reads_as(text: str, value: Any) -> bool:
    try:
        return load_yaml(text) == value
    except YamlError:
        return False


def value_label(value: Any) -> str:
    """Returns the label of a value that has none of its own: ``0.1``, ``none``, the last part of a path."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2] or value
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={value_label(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence):
        return ",".join(map(value_label, value)) or "none"
    return str(value)


def _fields(kind: type[BaseModel], before: str) -> Iterator[str]:
    """Yields the paths of all fields of a recipe, those of stages as of the first."""
    for name in kind.model_fields:
        path = f"{before}{name}"
        inner = part_at(steps_of(path))
        yield path
        if inner is not kind and inner is not Recipe:
            yield from _fields(inner, f"{path}.0." if name == "stages" else f"{path}.")
