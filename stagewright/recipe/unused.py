"""Refuses settings that a user requested and that have no effect in the recipe: one door for overrides, flags and files.

Which fields hold where is declared with the fields (:mod:`stagewright.recipe.holds`). In addition, what every stage sets itself
makes the recipe's own value useless. Values of shipped recipes and defaults are never refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from stagewright.errors import RecipeError
from stagewright.recipe.holds import why_without_effect, written_without_effect
from stagewright.recipe.recipe import Recipe, Stage, num_head_stages

_MERGED = ("lr", "mix", "augment", "average")
"""Parts of a recipe that a stage overrides field by field."""
_INHERITED = frozenset(Stage.model_fields) & frozenset(Recipe.model_fields) - {"name", "epochs", *_MERGED}
"""Fields of a recipe whose value holds for the stages that do not set it."""
_FROM_OPTIMIZER = ("weight_decay", "momentum", "clip_norm", "on_enter")
"""Fields of ``optimizer`` that a stage may set itself."""


def refuse_unused(recipe: Recipe, paths: Iterable[Sequence[str]]) -> None:
    """Raises RecipeError if the fields at ``paths`` (``("lr", "div")``, ``("stages", "0", "epochs")``), which a user has set,
    have no effect in ``recipe``."""
    _refuse({".".join(path): why for path in paths if (why := _why(recipe, tuple(path))) is not None})


def refuse_unused_in_file(recipe: Recipe, raw: Mapping[str, Any]) -> None:
    """Raises RecipeError if the file of ``recipe``, with the content ``raw``, sets fields to values that have no effect
    anywhere. What stages set is not checked.
    """
    found: dict[str, str] = {}
    for name, value in raw.items():
        part = getattr(recipe, name, None)
        if isinstance(part, BaseModel) and isinstance(value, Mapping):
            written = written_without_effect(part, value, f"{name}.", _absent(recipe))
            found |= {path: why for path, why in written.items() if _why(recipe, tuple(path.split("."))) is not None}
    _refuse(found)


def _refuse(found: Mapping[str, str]) -> None:
    if found:
        raise RecipeError(
            "\n".join(f"{path} has no effect: {why}" for path, why in found.items()),
            "settings that change something",
            "leave it out, or set what it depends on too",
        )


def _why(recipe: Recipe, path: tuple[str, ...]) -> str | None:
    """Returns why the field at ``path`` has no effect in ``recipe``, or None if it has one."""
    if path[0] == "stages":
        return _why_in_stage(recipe, path)
    if path == ("epochs",):
        if not recipe.timed:
            return "no stage has a length: each is one update, which finds an optimum"
        absolute = all(stage.epochs is not None and stage.epochs.unit != "run" for stage in recipe.timed)
        return "every stage gives its own length; --epochs scales them all" if absolute else None
    if len(path) == 1 and path[0] in _INHERITED:
        return _why_overridden(recipe, path[0])
    part = getattr(recipe, path[0], None)
    if len(path) != 2 or not isinstance(part, BaseModel) or path[1] not in type(part).model_fields:
        return None
    if path[0] in _MERGED:
        return _why_in_merged(recipe, path[0], path[1])
    if path[0] == "optimizer" and path[1] in _FROM_OPTIMIZER:
        return _why_overridden(recipe, path[1])
    return why_without_effect(part, path[1], f"{path[0]}.", _absent(recipe))


def _absent(recipe: Recipe) -> tuple[str, ...]:
    """The uses (:class:`stagewright.recipe.holds.Only`) that the stages of ``recipe`` do not have."""
    return () if num_head_stages([stage.train for stage in recipe.resolved_stages()]) else ("head",)


def _why_overridden(recipe: Recipe, name: str) -> str | None:
    if any(getattr(stage, name) is None for stage in recipe.stages):
        return None
    return f"every stage sets its own {name}: stages.{recipe.stages[0].name or 0}.{name}=VALUE changes one"


def _why_in_stage(recipe: Recipe, path: tuple[str, ...]) -> str | None:
    if len(path) != 4 or path[2] not in _MERGED or not path[1].isdigit():
        return None
    part = getattr(recipe.resolved_stages()[int(path[1])], path[2])
    if not isinstance(part, BaseModel) or path[3] not in type(part).model_fields:
        return None
    return why_without_effect(part, path[3], f"{'.'.join(path[:3])}.")


def _why_in_merged(recipe: Recipe, name: str, field: str) -> str | None:
    """A field of ``lr``, ``mix``, ``augment`` or ``average`` has an effect if it has one in a stage that does not set it."""
    first_reason = None
    for stage, resolved in zip(recipe.stages, recipe.resolved_stages(), strict=True):
        own = getattr(stage, name)
        if own is not None and field in own.model_fields_set:
            continue
        # Without a schedule of its own, the stage uses the recipe's.
        part = getattr(resolved, name) or getattr(recipe, name)
        why = why_without_effect(part, field, f"{name}.")
        if why is None:
            return None
        first_reason = first_reason or why
    return first_reason or f"every stage sets its own {name}.{field}"
