"""Refuses, before any image is read, what cannot be trained in lanes or by so many processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from stagewright.engine.lane_check import refuse_changed_buffers
from stagewright.engine.lanes import sums_in_order
from stagewright.errors import RecipeError, WorldError
from stagewright.model.zoo import create_with_report
from stagewright.plan.execution import Execution
from stagewright.plan.lanes import asked_spread
from stagewright.plan.recipe_lanes import recipe_lanes
from stagewright.recipe.recipe import Recipe
from stagewright.system.device import choose_device
from stagewright.system.isolation import preserve_global_state
from stagewright.system.named_functions import is_named

_CLASSES = 10
"""Number of classes of a network that is built to be looked at, before the classes are known."""


def check_processes(lanes: int, processes: int, run: Path | None = None) -> None:
    """Raises WorldError if ``processes`` are more than the ``lanes`` of an update of the plan, that of the directory ``run``."""
    if processes <= lanes:
        return
    fork = f"fork the run with more lanes (stagewright resume {run} --set spread={processes})" if run else ""
    raise WorldError(
        f"{processes} processes, but the plan divides each update into {lanes} lane{'s' if lanes > 1 else ''}",
        f"1 to {lanes} processes",
        f"start {lanes}, or {fork or f'plan with --spread {processes}'}",
    )


def check_compress(asked: bool, recipe: Recipe, device: torch.device) -> None:
    """Raises RecipeError where gradients are to be sent compressed, but are added in a fixed order."""
    if asked and sums_in_order(recipe, device):
        raise RecipeError(
            "--compress bf16 where gradients are added in a fixed order "
            + ("(deterministic: true)" if recipe.deterministic else "(on a CPU)"),
            "--compress bf16 on GPUs with deterministic: false",
            "leave it out; the same bits on any number of devices need whole gradients",
        )


def check_early(recipe: Recipe, execution: Execution, *, complete: bool) -> None:
    """Raises an error for what is known of lanes before the images are read.

    RecipeError as :func:`check_compress` and for a ``spread`` above a batch, WorldError for more processes than lanes, ModelError
    for a user's network whose buffers change in training. ``complete``: whether the batch sizes of ``recipe`` are final;
    ``auto`` chooses them later.
    """
    processes, device = execution.processes, choose_device(execution.device)
    check_compress(execution.compress and processes > 1, recipe, device)
    spread = asked_spread(recipe.spread, processes)
    if spread == 1 and recipe.micro_batch_size == "auto":
        return
    lanes = recipe_lanes(recipe, processes) if complete else {"": spread}
    fitted = recipe.micro_batch_size == "auto" and device.type == "cuda"
    if not fitted:  # else as many images as fit into memory may make more lanes
        check_processes(min(lanes.values(), default=spread), processes)
    if complete and max(lanes.values(), default=1) > 1 and is_named(recipe.model.name):
        _check_own_network(recipe, lanes)


def _check_own_network(recipe: Recipe, lanes: dict[str, int]) -> None:
    """Raises ModelError if a training step of the user's network changes a buffer. One that cannot be built for another number
    of classes is checked when the run begins."""
    spec = recipe.model
    with preserve_global_state():
        try:
            model, _ = create_with_report(spec.name, _CLASSES, image_size=recipe.image_size, options=spec.options)
        except Exception:
            return
        for stage in recipe.resolved_stages():
            trained = (stage.train or recipe.train, stage.norm or recipe.norm)
            if stage.name and lanes.get(stage.name, 1) > 1 and trained[0] != "upper" and trained[1] != "auto":
                with contextlib.suppress(RuntimeError, ValueError, TypeError):  # errors of the network's own code
                    size = stage.image_size or recipe.image_size
                    refuse_changed_buffers(model, stage.name, lanes[stage.name], trained, size)
