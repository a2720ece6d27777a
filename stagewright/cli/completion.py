"""What the shell completes for the tab key: names of recipes and models, fields of recipes, runs. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOST_FOLDERS = 1000


def recipe_names(incomplete: str) -> list[str]:
    """Returns the recipes whose names begin with ``incomplete``; none for a path, which the shell completes itself."""
    from stagewright.recipe.recipes import AUTO, shipped

    return [name for name in (AUTO, *shipped()) if name.startswith(incomplete)]


def study_names(incomplete: str) -> list[str]:
    """Returns the shipped studies whose names begin with ``incomplete``; none for a path, which the shell completes itself."""
    from stagewright.study.study_file import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def recipe_fields(incomplete: str) -> list[str]:
    """Returns the fields for ``--set`` that begin with ``incomplete``, each up to its ``=``; of the stages the numbers 0 to 3."""
    from stagewright.recipe.recipe import Recipe

    return [f"{path}=" for path in _paths(Recipe) if path.startswith(incomplete)]


def run_directories(incomplete: str) -> list[str]:
    """Returns the runs whose paths begin with ``incomplete``: in that folder or, before one is named, in ``runs/``."""
    folder, _, _ = incomplete.rpartition("/")
    places = [folder or ("/" if incomplete.startswith("/") else ".")] + ([] if folder else ["runs"])
    found = [path for place in places for path in _runs_in(place)]
    return sorted(path for path in found if path.startswith(incomplete))


def _runs_in(place: str) -> Iterator[str]:
    """Yields the paths of the first runs in a folder, as a person would type them."""
    try:
        names = sorted(os.listdir(Path(place).expanduser()))[:_MOST_FOLDERS]
    except OSError:
        return
    for name in names:
        path = name if place == "." else os.path.join(place, name)
        if os.path.isfile(os.path.join(os.path.expanduser(path), "plan.json")):
            yield path


def _paths(kind: Any, before: str = "") -> Iterator[str]:
    """Yields the paths of all fields of a recipe, as ``optimizer.weight_decay`` and ``stages.0.epochs``."""
    from pydantic import BaseModel

    for name, one in kind.model_fields.items():
        inner = [part for part in _classes(one.annotation) if issubclass(part, BaseModel)]
        numbers = [f".{number}" for number in range(4)] if _is_list(one.annotation) else [""]
        if not inner:
            yield before + name
        for part in inner:
            for number in numbers:
                yield from _paths(part, f"{before}{name}{number}.")


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (list, tuple)


def _classes(annotation: Any) -> Iterator[type[Any]]:
    """Yields the classes in an annotation, as of ``list[Stage] | None``."""
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _classes(part)
