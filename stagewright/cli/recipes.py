"""The commands ``recipes`` and ``recipes show``."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from stagewright.cli.arguments import StrictTyper
from stagewright.cli.completion import recipe_names

recipes_app = StrictTyper(
    help="List the shipped recipes, or show one.", rich_markup_mode=None, invoke_without_command=True
)


@recipes_app.callback()
def recipes_list(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        from stagewright.cli.plan_view import recipe_list

        print(recipe_list(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(autocompletion=recipe_names, help="A recipe's name or file.")],
) -> None:
    """Print a recipe's YAML, with its source and expected results."""
    from stagewright.recipe import auto, recipes

    if name == recipes.AUTO:
        print(auto.EXPLANATION, end="")
        return
    recipes.load(name)  # raises for an invalid recipe
    print(recipes.text(name), end="")
