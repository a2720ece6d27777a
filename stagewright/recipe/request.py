"""A requested recipe, by name, file or object, with flags and overrides; all commands get their recipe through this module.

A request for ``auto`` becomes a recipe when data and machine are known; any other request is a recipe at once. With ``auto``
the user's values are used twice: auto chooses the other values to fit them, and they are applied to the result again.
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
from stagewright.recipe.auto import NAME, Reason, changed_fields, choose
from stagewright.recipe.facts import Facts, UserChoices
from stagewright.recipe.recipe import Recipe
from stagewright.system.named_functions import name_of

_CHOSEN_AROUND = ("model", "image_size", "batch_size", "epochs", "data", "seed", "spread")
"""Fields that auto needs before it chooses, or that are needed before or while the data are read."""


@dataclass(frozen=True)
class RecipeRequest:
    """A recipe as the user requests it. An invalid request raises RecipeError at its first use."""

    base: str | Path | Recipe = NAME
    """The name of a shipped recipe, a YAML file, ``auto``, or a recipe."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Values by field (``model.name``), from flags of the command line. If the model or optimizer differs from the recipe's, the
    recipe's options of it are dropped. A size that stages set themselves is refused."""
    epochs: str | None = None
    """The total length of all stages; they keep their proportions."""
    overrides: tuple[str, ...] = ()
    """Overrides of the form ``a.b=c``, applied last."""

    @property
    def is_auto(self) -> bool:
        """Whether auto has to choose the recipe."""
        return not isinstance(self.base, Recipe) and str(self.base) == NAME

    @cached_property
    def preliminary(self) -> Recipe:
        """The recipe as far as it is known before the data are read: complete, or for ``auto`` only the user's values. Its
        ``data`` and ``seed`` are final in both cases."""
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
        """The user's values, to which auto fits the others."""
        known, model = self.preliminary, self.preliminary.model
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
        """Returns the recipe that auto chooses for ``facts``, with the user's values applied, and the reasons that still hold,
        including one for the user's values. The recipe's description contains the reasons too."""
        chosen, reasons = choose(facts)
        final = self.reapply(chosen)
        given = tuple(path for path in changed_fields(final, chosen) if path not in ("name", "description"))
        held = [
            reason for reason in reasons if not any(_covers(path, field) for path in given for field in reason.fields)
        ]
        if given:
            held.append(Reason(given, f"As given: {', '.join(given)}."))
        lines = [final.description.partition("\n")[0], *(f"- {reason.text}" for reason in held[1:])]
        return final.changed(description="\n".join(lines)), tuple(held)

    def reapply(self, recipe: Recipe) -> Recipe:
        """Returns ``recipe`` with flags, length and overrides applied, in this order. It does not choose anything again."""
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
                f"whose stages {', '.join(own)} set this themselves",
                f"--set stages.{own[0]}.{name}={self.flags[name]} for each of these stages",
                "set the stages, or take a recipe with a single size",
            )


def recipe_flags(  # the flags of the command line that set a field of the recipe, and those of Python alone
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    batch_size: int | None = None,
    lr: str | float | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    loss: str | Callable[..., object] | None = None,
    optimizer: str | Callable[..., object] | None = None,
    spread: int | None = None,
) -> dict[str, Any]:
    """Returns the values that were given, by field of the recipe, for :attr:`RecipeRequest.flags`; None is not given.

    ``model``, ``loss`` and ``optimizer`` are names, or functions at the top level of a module, which the recipe then names.
    RecipeError for an ``lr`` that is neither ``auto`` nor a number, and for a function that cannot be named.
    """
    named = {"model.name": model, "loss": loss, "optimizer.name": optimizer}
    flags = {
        **{field: name_of(one, field) if callable(one) else one for field, one in named.items()},
        "model.weights": None if weights is None else str(weights),
        "batch_size": batch_size,
        "lr.peak": None if lr is None else _peak(lr),
        "image_size": image_size,
        "seed": seed,
        "spread": spread,
    }
    return {field: value for field, value in flags.items() if value is not None}


def as_request(
    recipe: str | Path | Recipe | RecipeRequest,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    epochs: str | float | None = None,
) -> RecipeRequest:
    """Returns a request for ``recipe`` with ``flags`` (:func:`recipe_flags`), ``epochs`` and ``overrides`` added to its own.
    RecipeError if the recipe is invalid; for ``auto`` only the user's values are checked."""
    request = recipe if isinstance(recipe, RecipeRequest) else RecipeRequest(recipe)
    request = replace(
        request,
        flags={**request.flags, **(flags or {})},
        epochs=request.epochs if epochs is None else str(epochs),
        overrides=(*request.overrides, *overrides),
    )
    _ = request.preliminary
    return request


def _peak(given: str | float) -> float | str:
    if given == "auto":
        return "auto"
    try:
        return float(given)
    except (TypeError, ValueError):
        raise RecipeError(f"--lr {given}", "a number above 0, or auto", "write for example --lr 0.1") from None


def _whole(known: Recipe) -> int | None:
    """Returns the requested number of epochs, at least 1, or None if no length was given in epochs."""
    if "epochs" not in known.model_fields_set or known.epochs.unit != "epochs":
        return None
    return max(1, round(known.epochs.value))


def _covers(path: str, field: str) -> bool:
    """Whether one of two field paths is equal to the other or contains it."""
    return path == field or field.startswith(f"{path}.") or path.startswith(f"{field}.")
