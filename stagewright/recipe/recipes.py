"""The shipped recipes (YAML in shipped/), and reading, overriding and writing recipes.

Every error of a recipe becomes a RecipeError that gives the field's path (``stages[2].batch_size``), the value and
what is allowed there; unknown keys come with the nearest known one.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stagewright.errors import RecipeError, nearest
from stagewright.recipe.duration import FORMS, Duration
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.yaml_text import YamlError, decode_text, load_yaml, write_yaml
from stagewright.storage.files import read_own, user_path

_SHIPPED = resources.files("stagewright.recipe") / "shipped"
RENAMED = {
    "at_seam": "on_enter, which is keep_optimizer or reset_optimizer",
    "ease": "lr_factor",
    "ease_windows": "lr_factor_windows",
}
"""Keys of recipes of earlier versions, and what took their place. They are refused, with the new name."""
AUTO = "auto"
"""The name of the recipe that is none yet: :mod:`stagewright.recipe.auto` chooses one when data and machine are known."""


def shipped() -> list[str]:
    """Names of the recipes that come with stagewright, sorted."""
    files = _SHIPPED.iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def text(name_or_file: str) -> str:
    """The YAML of a shipped recipe or of a file, with its comments; RecipeError where there is neither."""
    if name_or_file in shipped():
        return (_SHIPPED / f"{name_or_file}.yaml").read_text("utf-8")
    if name_or_file == AUTO:
        raise RecipeError(
            "the recipe auto is chosen for given pictures, so there is none to read without them",
            f"{', '.join(shipped())} or a YAML file",
            "stagewright plan DATA shows what it chooses and why; the run's recipe.yaml then is an ordinary one",
        )
    path = user_path(name_or_file)
    if os.path.isfile(path):
        try:
            return decode_text(read_own(path))
        except YamlError as error:
            raise RecipeError(f"{path}: {error}", "YAML in UTF-8", "save it as UTF-8") from None
    looks_like_file = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    raise RecipeError(
        f"--recipe {name_or_file!r} is " + ("no file" if looks_like_file else "no shipped recipe and no file"),
        f"{', '.join([AUTO, *shipped()])} or a YAML file" + nearest(name_or_file, [AUTO, *shipped()]),
        "stagewright recipes lists them; stagewright recipes show NAME prints one to start from",
    )


def load(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """The shipped recipe or recipe file, with ``a.b=c`` overrides applied; RecipeError for everything wrong in it."""
    try:
        raw = load_yaml(text(name_or_file))
    except YamlError as error:
        patterns = "; patterns that begin with ! stand in quotes" if "tag" in str(error) else ""
        given = f"{name_or_file} is not YAML that is read here: {error}"
        raise RecipeError(given, "a mapping of recipe fields, each key once", f"mend that line{patterns}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{name_or_file} holds a {type(raw).__name__}", "a mapping of recipe fields", "mend the file")
    return override(from_dict(raw), overrides)


def from_dict(raw: Mapping[str, Any]) -> Recipe:
    """The recipe of plain data; RecipeError lists every wrong field with its path."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explained(error) from None


def to_yaml(recipe: Recipe) -> str:
    """YAML that reads back as an equal recipe, every default written out; texts of several lines stay as such."""
    return write_yaml(recipe.to_dict())


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """``recipe`` with overrides such as ``optimizer.weight_decay=0.05`` or ``stages.0.epochs=3ep``; values are YAML."""
    if not overrides:
        return recipe
    content = recipe.model_dump(mode="json", exclude_unset=True)
    for text_ in overrides:
        path, equals, value = text_.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--set {text_!r}", "FIELD=VALUE, e.g. optimizer.weight_decay=0.05", "add the value")
        steps = path.strip().replace("[", ".").replace("]", "").split(".")
        _assign(content, steps, _value(steps, value, text_), text_)
    return from_dict(content)


def _value(path: Sequence[str], text: str, override_: str) -> Any:
    """The value that ``text`` gives the field at ``path``; a field of text takes it as typed (``0``, ``on``, ``Class: kind``)."""
    try:
        value = load_yaml(text)
    except YamlError as error:
        if _is_text(path):
            return text.strip()
        raise RecipeError(f"--set {override_!r}: {text!r} is not YAML: {error}", "a YAML value", "quote it") from None
    return text.strip() if value is not None and not isinstance(value, str) and _is_text(path) else value


def _is_text(path: Sequence[str]) -> bool:
    """Whether the recipe field at ``path`` takes text and nothing else."""
    model: type[BaseModel] = Recipe
    for part in path[:-1]:
        if part in model.model_fields:
            model = _part_in(model.model_fields[part].annotation) or model
    field = model.model_fields.get(path[-1])
    return field is not None and set(typing.get_args(field.annotation) or (field.annotation,)) <= {str, types.NoneType}


def stretch(recipe: Recipe, epochs: str) -> Recipe:
    """``recipe`` with a total length of ``epochs`` (``30`` and ``30ep`` are epochs), its stages keeping their shares."""
    try:
        return recipe.with_epochs(Duration.parse(f"{epochs}ep" if epochs.replace(".", "", 1).isdigit() else epochs))
    except ValidationError as error:
        raise _explained(error) from None
    except ValueError as error:
        raise RecipeError(f"--epochs {epochs}: {error}", FORMS, "set the stages' own epochs with --set") from None


def _assign(content: Any, path: list[str], value: Any, text_: str) -> None:
    """Sets ``content[path]``; a stage is named by its number or its name."""
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
        f"--set: {'.'.join(path)} is {value!r}, which has no fields of its own",
        "a field that has",
        f"set {part} itself",
    )


def _stage_number(stages: list[Any], part: str, text_: str) -> int:
    names = [stage.get("name") for stage in stages]
    if part in names:
        return names.index(part)
    if not part.isdigit() or int(part) >= len(stages):
        allowed = f"a stage's number 0 .. {len(stages) - 1}" + "".join(f", {name}" for name in names if name)
        raise RecipeError(f"--set {text_!r}: no stage {part!r}", allowed, "name a stage there is")
    return int(part)


def _explained(error: ValidationError) -> RecipeError:
    problems = [_problem(detail) for detail in error.errors()]
    given = "\n".join(dict.fromkeys(f"recipe: {given}" for given, _ in problems))  # each form of a field has its own
    allowed = "; ".join(dict.fromkeys(allowed for _, allowed in problems if allowed))
    return RecipeError(given, allowed, "mend the field; stagewright recipes show standard prints every form in use")


def _problem(detail: ErrorDetails) -> tuple[str, str]:
    """(field path, value and what is wrong; what is allowed) of one pydantic error."""
    where = [part for part in detail["loc"] if isinstance(part, int) or not _is_form(part)]
    if detail["type"] == "extra_forbidden" and where[-1:] != [detail["loc"][-1]]:
        where.append(detail["loc"][-1])  # a stranger's key may look like a form
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    if detail["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        if (renamed := RENAMED.get(str(where[-1]))) is not None:
            return f"{path}: this field is now called {renamed}", ""
        return f"{path}: unknown field{nearest(str(where[-1]), known)}", f"here: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return (f"{path}: {message}" if path and not message.startswith(path) else message), ""
    return f"{path}: {detail['input']!r} is not allowed", f"{path}: {message[0].lower()}{message[1:]}"


def _is_form(part: str) -> bool:
    """Whether pydantic means one of the forms that a field has, and no field: ``float``, ``constrained-float``, ``list[str]``."""
    return part in ("str", "float", "int", "bool") or "[" in part or "-" in part


def _fields_at(path: Sequence[str | int]) -> list[str]:
    """Names of the fields of the recipe part that stands at ``path``."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _part_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The recipe part inside ``Part``, ``Part | None`` or ``tuple[Part, ...]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((part for part in map(_part_in, typing.get_args(annotation)) if part is not None), None)
