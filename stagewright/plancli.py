"""Commands for before a run: what it would do, and whether it would survive."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stagewright.options import (
    AsJson,
    BatchSize,
    Data,
    Device,
    Epochs,
    ImgSize,
    LearningRate,
    Model,
    Overrides,
    RecipeName,
    Seed,
    Weights,
    Workers,
    recipe_of,
    speaker,
)


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    app.command()(plan)
    app.command("resume-check")(resume_check)


def plan(
    data: Data,
    recipe: RecipeName = "quick",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: AsJson = False,
    steps: Annotated[bool, typer.Option("--steps", help="With --json: every step's hyper-parameters too.")] = False,
) -> None:
    """Print what would happen, and exit."""
    from rich.console import Console

    from stagewright.planview import plan_view
    from stagewright.session import Execution
    from stagewright.training import prepare

    chosen = recipe_of(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed)
    _, made = prepare(data, chosen, Execution(device=device, quiet=as_json), speaker(as_json))
    if as_json:
        content = made.to_json()
        print(json.dumps({**content, "hyper": list(made.steps())} if steps else content, indent=1))
    else:
        Console().print(plan_view(made))


def resume_check(
    data: Data,
    recipe: RecipeName = "quick",
    overrides: Overrides = None,
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Length of the rehearsal, shared by the recipe's stages.")] = 24,
    kills: Annotated[int, typer.Option(help="Random steps at which it is killed.")] = 3,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Fire drill: kill a real run at random steps, in evaluation and at a stage change, and compare bits."""
    from stagewright.resume_check import check

    chosen = recipe_of(recipe, overrides, model, None, None, None, None, None, seed)
    if not check(data, chosen, steps=steps, kills=kills, device=device, workers=workers, say=print):
        raise typer.Exit(1)
