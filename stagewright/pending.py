"""Pending: a recipe that auto chooses once data and machine are known; until then it stands where a Recipe would.

What was given on the command line counts twice: auto chooses around it, and it has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagewright import recipes
from stagewright.auto import NAME, Reason, choose, differing, expectation
from stagewright.facts import Asked, Facts
from stagewright.recipe import Data, Recipe

_LOOKED_AT = ("model", "image_size", "batch_size", "epochs", "data", "seed")
"""Fields whose values auto wants to know before it chooses, or that data are read by."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A recipe to be chosen. ``data`` and ``seed`` are those that it will have."""

    data: Data
    seed: int
    asked: Asked
    finish: Callable[[Recipe], Recipe]
    """Applies flags and overrides to a chosen recipe."""

    def settled(self, facts: Facts) -> tuple[Recipe, tuple[Reason, ...]]:
        """The recipe for ``facts`` with everything given applied, and the reasons that still hold, one of them for what was
        given. The recipe's description holds them too."""
        chosen, reasons = choose(facts)
        final = self.finish(chosen)
        given = tuple(path for path in differing(final, chosen) if path not in ("name", "description"))
        told = [
            reason for reason in reasons if not any(_covers(path, field) for path in given for field in reason.fields)
        ]
        if given:
            told.append(Reason(given, f"As given: {', '.join(given)}."))
        told.extend(expectation(facts, final))
        lines = [final.description.partition("\n")[0], *(f"- {reason.text}" for reason in told[1:])]
        return final.changed(description="\n".join(lines)), tuple(told)

    def again(self, settled: Recipe) -> Recipe:
        """A recipe that was settled before, with what is given now applied: nothing is chosen anew."""
        return self.finish(settled)


def pending(given: Sequence[str], finish: Callable[[Recipe], Recipe]) -> Pending:
    """A Pending around ``given``, flags and overrides in the form ``a.b=c``; ``finish`` applies them, and others.

    RecipeError where one of those that matter before the choice is wrong; the others are looked at after it.
    """
    early = [text for text in given if text.partition("=")[0].strip().replace("[", ".").split(".")[0] in _LOOKED_AT]
    known = recipes.override(Recipe(name=NAME), early)
    model = known.model
    named = model.model_fields_set
    asked = Asked(
        model=model.name if "name" in named else None,
        weights=(model.weights or "none") if "weights" in named else None,
        options=dict(model.options),
        image_size=known.image_size if "image_size" in known.model_fields_set else None,
        batch_size=known.batch_size if "batch_size" in known.model_fields_set else None,
        epochs=_whole(known),
    )
    return Pending(known.data, known.seed, asked, finish)


def wanted(recipe: str | Path | Recipe | Pending, overrides: Sequence[str] = ()) -> Recipe | Pending:
    """The recipe of a name, a file or an object with ``overrides`` applied; of ``auto`` one that is pending."""
    if isinstance(recipe, Pending):
        first = recipe.finish
        return replace(recipe, finish=lambda chosen: recipes.override(first(chosen), overrides))
    if isinstance(recipe, Recipe):
        return recipes.override(recipe, overrides)
    if str(recipe) == NAME:
        return pending(overrides, lambda chosen: recipes.override(chosen, overrides))
    return recipes.load(str(recipe), overrides)


def _whole(known: Recipe) -> int | None:
    """The number of epochs that was asked for, where it was given in epochs."""
    if "epochs" not in known.model_fields_set or known.epochs.unit != "epochs":
        return None
    return max(1, round(known.epochs.value))


def _covers(path: str, field: str) -> bool:
    return path == field or field.startswith(f"{path}.") or path.startswith(f"{field}.")
