"""The lanes of a recipe before its data are read."""

from __future__ import annotations

from stagewright.plan.plan import Measured
from stagewright.plan.resolve import stage_lanes
from stagewright.recipe.recipe import Recipe


def recipe_lanes(recipe: Recipe, processes: int) -> dict[str, int]:
    """Returns the number of lanes of each stage that trains by updates, by its name, for a run that ``processes`` begin. With
    ``micro_batch_size: auto`` it is the least: memory may make more. RecipeError for a batch with fewer images than lanes."""
    measured = Measured(spread=processes if recipe.spread == 1 else None)
    found: dict[str, int] = {}
    for stage in recipe.resolved_stages():
        assert stage.batch_size and stage.name
        batch = stage.batch_size
        micro = batch if recipe.micro_batch_size == "auto" else min(recipe.micro_batch_size, batch)
        if stage.fit == "updates":
            found[stage.name] = stage_lanes(recipe, measured, stage.name, batch, micro)
    return found
