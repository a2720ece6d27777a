"""The one door for a recipe: what a person asks for, by name, file or object, with flags and overrides.

A request for ``auto`` becomes a recipe once data and machine are known; any other one is a recipe at once. What was given
counts twice with ``auto``: it chooses around it, and what was given has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.auto import NAME, Reason, choose, differing, expectation
from stagewright.recipe.facts import Facts, UserChoices
from stagewright.recipe.recipe import Recipe
from stagewright.system.named_functions import name_of

_CHOSEN_AROUND = ("model", "image_size", "batch_size", "epochs", "data", "seed")
"""Fields whose values auto wants to know before it chooses, or that data are read by."""


@dataclass(frozen=True)
class RecipeRequest:
    """A recipe as it is asked for. ``RecipeError`` where that is impossible, at its first use."""

    base: str | Path | Recipe = NAME
    """A shipped recipe's name, a YAML file, ``auto``, or a recipe."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Values by field (``model.name``), as the command line's common flags give them. A model or
    optimizer of another name than the recipe's has none of its options; a size that stages give themselves is refused."""
    epochs: str | None = None
    """The length of all stages together; they keep their shares."""
    overrides: tuple[str, ...] = ()
    """``a.b=c``, applied last."""

    @property
    def is_auto(self) -> bool:
        """Whether the recipe has to be chosen."""
        return not isinstance(self.base, Recipe) and str(self.base) == NAME

    @cached_property
    def early(self) -> Recipe:
        """The recipe as far as it is known before the data; all of it, unless it is chosen. Its data and seed hold in any
        case."""
        if not self.is_auto:
            return self.reapply(self.base if isinstance(self.base, Recipe) else recipes.load(str(self.base)))
        given = [f"{path}={json.dumps(value)}" for path, value in self.flags.items()]
        if self.epochs is not None:
            given.append(f"epochs={recipes.stretch(Recipe(), self.epochs).epochs}")
        given += self.overrides
        early = [
            text for text in given if text.partition("=")[0].strip().replace("[", ".").split(".")[0] in _CHOSEN_AROUND
        ]
        return recipes.override(Recipe(name=NAME), early)

    @property
    def choices(self) -> UserChoices:
        """What auto has to choose around."""
        known, model = self.early, self.early.model
        named = model.model_fields_set
        return UserChoices(
            model=model.name if "name" in named else None,
            weights=(model.weights or "none") if "weights" in named else None,
            options=dict(model.options),
            image_size=known.image_size if "image_size" in known.model_fields_set else None,
            batch_size=known.batch_size if "batch_size" in known.model_fields_set else None,
            epochs=_whole(known),
        )

    def resolve(self, facts: Facts) -> tuple[Recipe, tuple[Reason, ...]]:
        """The recipe that auto chooses for ``facts``, with what was given applied, and the reasons that still hold, one of them
        for what was given. The recipe's description holds them too."""
        chosen, reasons = choose(facts)
        final = self.reapply(chosen)
        given = tuple(path for path in differing(final, chosen) if path not in ("name", "description"))
        held = [
            reason for reason in reasons if not any(_covers(path, field) for path in given for field in reason.fields)
        ]
        if given:
            held.append(Reason(given, f"As given: {', '.join(given)}."))
        held.extend(expectation(facts, final))
        lines = [final.description.partition("\n")[0], *(f"- {reason.text}" for reason in held[1:])]
        return final.changed(description="\n".join(lines)), tuple(held)

    def reapply(self, recipe: Recipe) -> Recipe:
        """``recipe`` with flags, length and overrides applied, in this order: what was chosen earlier is not chosen again."""
        flags = dict(self.flags)
        model = flags.get("model.name")
        if model is not None and model != recipe.model.name:
            flags = {
                "model.options": {},
                "model.drop_path": None,
                **flags,
            }  # they were meant for the recipe's own model
        if flags.get("optimizer.name", recipe.optimizer.name) != recipe.optimizer.name:
            flags = {"optimizer.options": {}, **flags}
        for name in ("batch_size", "image_size"):
            if name in flags:
                self._refuse_own_sizes(recipe, name)
        recipe = recipes.override(recipe, [f"{path}={json.dumps(value)}" for path, value in flags.items()])
        if self.epochs is not None:
            recipe = recipes.stretch(recipe, self.epochs)
        return recipes.override(recipe, self.overrides)

    def _refuse_own_sizes(self, recipe: Recipe, name: str) -> None:
        own = [stage.name or str(at) for at, stage in enumerate(recipe.stages) if getattr(stage, name) is not None]
        if own:
            raise RecipeError(
                f"--{'img-size' if name == 'image_size' else 'batch-size'} on recipe "
                f"{recipe.name if isinstance(self.base, Recipe) else str(self.base)!r}, "
                f"whose stages {', '.join(own)} give their own",
                f"--set stages.{own[0]}.{name}={self.flags[name]} for each of them",
                "set the stages, or take a recipe of one size",
            )


def as_request(
    recipe: str | Path | Recipe | RecipeRequest,
    overrides: Sequence[str] = (),
    own: Mapping[str, str | Callable[..., Any] | None] | None = None,
) -> RecipeRequest:
    """A request for ``recipe`` with ``overrides`` after those that it has. ``RecipeError`` where a recipe is impossible; of
    ``auto`` as far as that is known.

    ``own`` are names by field, or functions that a module has at its top, in place of the recipe's; None leaves the recipe's.
    """
    request = recipe if isinstance(recipe, RecipeRequest) else RecipeRequest(recipe)
    given = {
        field: one if isinstance(one, str) else name_of(one, field)
        for field, one in (own or {}).items()
        if one is not None
    }
    request = replace(request, flags={**request.flags, **given}, overrides=(*request.overrides, *overrides))
    _ = request.early
    return request


def _whole(known: Recipe) -> int | None:
    """The number of epochs that was asked for, where it was given in epochs."""
    if "epochs" not in known.model_fields_set or known.epochs.unit != "epochs":
        return None
    return max(1, round(known.epochs.value))


def _covers(path: str, field: str) -> bool:
    return path == field or field.startswith(f"{path}.") or path.startswith(f"{field}.")
