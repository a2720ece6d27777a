"""The commands of docs/systems.md are ones that the program takes, and its recipes are the shipped ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from stagewright import cli, recipes
from stagewright.options import recipe_of
from stagewright.plan import DatasetInfo, Measured
from stagewright.resolve import resolve

DOCS = Path(__file__).parent.parent / "docs"
SYSTEMS = (DOCS / "systems.md").read_text()
INFO = DatasetInfo(num_train=50_000, num_val=5_000, num_test=5_000, classes=("a", "b"), digest="x")


def commands() -> list[str]:
    blocks = re.findall(r"(?m)(?:^    .*\n)+", SYSTEMS)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("stagewright train")]


@pytest.mark.parametrize("text", commands())
def test_commands_of_the_systems_make_plans(text: str) -> None:
    command = typer.main.get_command(cli.app).get_command(None, "train")  # type: ignore[attr-defined]
    given = command.make_context("train", shlex.split(text)[2:]).params
    fields = ("recipe", "overrides", "model", "weights", "epochs", "batch_size", "lr", "img_size", "seed")
    recipe = recipe_of(*(given[field] for field in fields))
    assert resolve(recipe, INFO, measured=Measured(lr=0.1)).total_steps > 0


def test_every_system_has_its_command_and_every_recipe_there_is_shipped() -> None:
    named = set(re.findall(r"-r ([\w-]+)", SYSTEMS))
    assert len(commands()) >= 12 and named <= set(recipes.shipped())
    assert {"camera-trap-swin", "imagenet-resnet50", "cifar-resnet", "standard", "progressive", "hybrid"} <= named


def test_the_table_of_recipes_is_complete() -> None:
    listed = re.findall(r"(?m)^\| `([\w-]+)` \|", (DOCS / "recipes.md").read_text().split("## The shipped recipes")[1])
    assert sorted(listed) == sorted([recipes.AUTO, *recipes.shipped()])
