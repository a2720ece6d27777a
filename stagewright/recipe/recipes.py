"""Reads, overrides and writes recipes: the shipped ones (YAML in shipped/) and those in files.

Every invalid recipe raises a RecipeError with the field's path (``stages[2].batch_size``), its value and what is allowed;
for unknown keys it also names the most similar known key.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stagewright.errors import RecipeError
from stagewright.recipe.duration import FORMS, Duration
from stagewright.recipe.name_pattern import NamePattern
from stagewright.recipe.recipe import Data, Recipe
from stagewright.recipe.unused import refuse_unused, refuse_unused_in_file
from stagewright.recipe.yaml_text import YamlError, decode_text, load_yaml, write_yaml
from stagewright.storage.files import read_own, user_path
from stagewright.text import nearest, shortened

_SHIPPED = resources.files("stagewright.recipe") / "shipped"
RENAMED = {
    "at_seam": "on_enter, which is keep_optimizer or reset_optimizer",
    "ease": "lr_factor",
    "ease_windows": "lr_factor_windows",
}
"""Recipe keys of earlier versions, with their new names. They are refused; the error gives the new name."""
AUTO = "auto"
"""The name that requests a recipe chosen by :mod:`stagewright.recipe.auto` when data and machine are known."""


def shipped() -> list[str]:
    """Returns the sorted names of the recipes that are part of stagewright."""
    files = _SHIPPED.iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def text(name_or_file: str) -> str:
    """Returns the YAML of a shipped recipe or of a file, including comments; RecipeError if neither exists."""
    if name_or_file in shipped():
        return (_SHIPPED / f"{name_or_file}.yaml").read_text("utf-8")
    if name_or_file == AUTO:
        raise RecipeError(
            "the recipe auto is chosen for a data set, so it cannot be read without one",
            f"{', '.join(shipped())} or a YAML file",
            "stagewright plan DATA shows what auto chooses and why; the run's recipe.yaml is then an ordinary recipe",
        )
    path = user_path(name_or_file)
    if (found := file_text(path)) is not None:
        return found
    raise RecipeError(
        f"--recipe {name_or_file!r}: {not_found(path, 'recipe')}",
        f"{', '.join([AUTO, *shipped()])} or a YAML file" + nearest(name_or_file, [AUTO, *shipped()]),
        "stagewright recipes lists the shipped ones; stagewright recipes show NAME prints one as a starting point",
    )


def file_text(path: Path) -> str | None:
    """Returns the text of a YAML file, None if there is no such file; RecipeError if it is not in UTF-8."""
    if not os.path.isfile(path):
        return None
    try:
        return decode_text(read_own(path))
    except YamlError as error:
        raise RecipeError(f"{path}: {error}", "YAML in UTF-8", "save the file as UTF-8") from None


def not_found(path: Path, kind: str) -> str:
    """Returns what is wrong with the name of a file, or of something shipped of ``kind``, that does not exist."""
    looks_like_file = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    return "no such file" if looks_like_file else f"no shipped {kind} and no file has this name"


def load(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Returns a shipped recipe or one from a file, with ``a.b=c`` overrides applied; RecipeError lists all invalid fields."""
    try:
        raw = load_yaml(text(name_or_file))
    except YamlError as error:
        patterns = "; patterns that begin with ! must be quoted" if "tag" in str(error) else ""
        given = f"{name_or_file} is not valid YAML: {error}"
        raise RecipeError(given, "a mapping of recipe fields, each key once", f"correct that line{patterns}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{name_or_file} contains a {type(raw).__name__}", "a mapping of recipe fields", "correct the file"
        )
    recipe = from_dict(raw)
    if name_or_file not in shipped():
        refuse_unused_in_file(recipe, raw)
    return override(recipe, overrides)


def from_dict(raw: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of plain data (dicts, lists, numbers, texts); RecipeError lists all invalid fields with their
    paths."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explained(error) from None


def to_yaml(recipe: Recipe) -> str:
    """Returns YAML that reads back as an equal recipe, including all defaults; texts of several lines are written as blocks."""
    return write_yaml(recipe.to_dict())


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Returns ``recipe`` with overrides such as ``optimizer.weight_decay=0.05`` or ``stages.0.epochs=3ep`` applied; values are
    YAML. RecipeError for an invalid one, and for one that has no effect in the result."""
    changed = apply(recipe, overrides)
    names = {stage.name: str(at) for at, stage in enumerate(changed.stages)}
    refuse_unused(
        changed,
        [
            (path[0], names.get(path[1], path[1]), *path[2:]) if path[0] == "stages" and len(path) > 1 else path
            for path in fields_set(overrides)
        ],
    )
    return changed


def fields_set(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the paths of the fields that ``overrides`` set; RecipeError for an invalid one."""
    return [path for text_ in overrides for path in _fields_of(*_parsed(text_))]


def apply(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Returns ``recipe`` with ``overrides`` applied as by :func:`override`, for callers whose overrides nobody has requested: one
    without an effect is allowed."""
    if not overrides:
        return recipe
    content = recipe.model_dump(mode="json", exclude_unset=True)
    for text_ in overrides:
        path, value = _parsed(text_)
        _assign(content, path, value, shortened(text_, 200))
    return from_dict(content)


def _parsed(text_: str) -> tuple[list[str], Any]:
    """Returns path and value of an override."""
    path, equals, value = text_.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {text_!r}", "FIELD=VALUE, e.g. optimizer.weight_decay=0.05", "add the value")
    if not value.strip():  # from a shell variable that is not set; as YAML it would be null and switch the field off
        raise RecipeError(f"--set {text_!r} has no value", "FIELD=VALUE; null switches a field off", "add the value")
    steps = path.strip().replace("[", ".").replace("]", "").split(".")
    return steps, _value(steps, value, shortened(text_, 200))


def _fields_of(path: list[str], value: Any) -> list[tuple[str, ...]]:
    """Returns the paths of the fields that an override sets: several if ``value`` is a mapping for a part such as ``lr``."""
    if isinstance(value, dict) and part_at(path) is not part_at(path[:-1]):
        return [inner for key, one in value.items() for inner in _fields_of([*path, str(key)], one)]
    return [tuple(path)]


def data_settings(overrides: Sequence[str]) -> Data:
    """Returns how DATA is read: the defaults with ``data.FIELD=VALUE`` overrides applied, for commands without a recipe.
    RecipeError for an invalid override and for one of another part of a recipe."""
    for text_ in overrides:
        if not text_.strip().startswith("data."):
            raise RecipeError(
                f"--set {text_!r}", "here only fields of data, e.g. data.label=species", "write it as data.FIELD=VALUE"
            )
    return override(Recipe(), overrides).data


def _value(path: Sequence[str], text: str, override_: str) -> Any:
    """Returns the value of ``text`` for the field at ``path``; a text field takes it as typed, also ``0`` and ``Class: kind``."""
    try:
        value = load_yaml(text)
    except YamlError as error:
        if _is_text(path, text):
            return text.strip()
        raise RecipeError(
            f"--set {override_!r}: {shortened(text, 200)!r} is not YAML: {error}", "a YAML value", "quote it"
        ) from None
    return text.strip() if value is not None and not isinstance(value, str) and _is_text(path, text) else value


def _is_text(path: Sequence[str], text: str) -> bool:
    """Whether the recipe field at ``path`` takes text and nothing else, or nothing but a pattern, and ``text`` is no mapping."""
    field = part_at(path[:-1]).model_fields.get(path[-1])
    kinds = _kinds(field.annotation) if field is not None else {object}
    return kinds <= {str, types.NoneType} or (NamePattern in kinds and not text.strip().startswith("{"))


def _kinds(annotation: Any) -> set[Any]:
    """Returns the types of a union."""
    if typing.get_origin(annotation) is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return set().union(*map(_kinds, typing.get_args(annotation)))
    return {annotation}


def stretch(recipe: Recipe, epochs: str) -> Recipe:
    """Returns ``recipe`` with a total length of ``epochs`` (``30`` and ``30ep`` are epochs); stages keep their proportions.
    RecipeError if the length is invalid or has another unit than the stages."""
    try:
        return recipe.with_epochs(Duration.parse(f"{epochs}ep" if epochs.replace(".", "", 1).isdigit() else epochs))
    except ValidationError as error:
        raise _explained(error) from None
    except ValueError as error:
        raise RecipeError(f"--epochs {epochs}: {error}", FORMS, "set the epochs of each stage with --set") from None


def _assign(content: Any, path: list[str], value: Any, text_: str) -> None:
    """Sets ``content[path]`` to ``value``; a stage is given by its number or its name."""
    *way, leaf = path
    for at, part in enumerate(way):
        if isinstance(content, list):
            content = content[_stage_number(content, part, text_)]
        else:
            if content.get(part) is None and part == "stages":
                content[part] = [{}]
            if not isinstance(content.get(part), dict | list):
                content[part] = {} if content.get(part) is None else _as_mapping(part, content[part], way[: at + 1])
            content = content[part]
    if isinstance(content, list):
        content[_stage_number(content, leaf, text_)] = value
    else:
        content[leaf] = value


def _as_mapping(part: str, value: Any, path: list[str]) -> dict[str, Any]:
    raise RecipeError(
        f"--set: {'.'.join(path)} is {value!r}, which has no fields",
        "a part of the recipe that has fields, such as optimizer or lr",
        f"set {part} itself",
    )


def _stage_number(stages: list[Any], part: str, text_: str) -> int:
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    if part in names:
        return names.index(part)
    if not part.isdigit() or int(part) >= len(stages):
        allowed = f"a stage's number 0 .. {len(stages) - 1}" + "".join(f", {name}" for name in names if name)
        raise RecipeError(f"--set {text_!r}: there is no stage {part!r}", allowed, "name an existing stage")
    return int(part)


def _explained(error: ValidationError) -> RecipeError:
    problems = [_problem(detail) for detail in error.errors()]
    given = "\n".join(dict.fromkeys(f"recipe: {given}" for given, _ in problems))  # one error for each type of a union
    allowed = "; ".join(dict.fromkeys(allowed for _, allowed in problems if allowed))
    return RecipeError(
        given, allowed, "correct the field; stagewright recipes show standard prints a recipe with all fields"
    )


def _problem(detail: ErrorDetails) -> tuple[str, str]:
    """Returns (field path, value and what is wrong; what is allowed) for one pydantic error."""
    where = [part for part in detail["loc"] if isinstance(part, int) or not _is_form(part)]
    if detail["type"] == "extra_forbidden" and where[-1:] != [detail["loc"][-1]]:
        where.append(detail["loc"][-1])  # an unknown key may look like a form
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    if detail["type"] == "extra_forbidden":
        known = list(part_at(where[:-1]).model_fields)
        if (renamed := RENAMED.get(str(where[-1]))) is not None:
            return f"{path}: this field is now called {renamed}", ""
        return f"{path}: unknown field{nearest(str(where[-1]), known)}", f"here: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return (f"{path}: {message}" if path and not message.startswith(path) else message), ""
    return f"{path}: {detail['input']!r} is not allowed", f"{path}: {message[0].lower()}{message[1:]}"


def _is_form(part: str) -> bool:
    """Whether ``part`` of an error's location is not a field but one type of a union: ``float``, ``constrained-float``,
    ``list[str]``."""
    return part in ("str", "float", "int", "bool") or "[" in part or "-" in part


def part_at(path: Sequence[str | int]) -> type[BaseModel]:
    """Returns the class of the recipe part at ``path``; list indices and unknown names in it are skipped."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _part_in(model.model_fields[part].annotation) or model
    return model


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the class of a recipe part in ``Part``, ``Part | None`` or ``tuple[Part, ...]``, or None if there is none."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((part for part in map(_part_in, typing.get_args(annotation)) if part is not None), None)
