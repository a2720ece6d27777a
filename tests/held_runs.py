"""Small runs whose test part stays closed, and the same runs without that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_recipe import NETWORK

import stagewright as sw
from stagewright.api.run import Run
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Event
from stagewright.rundir.events import read_events

STAGES = [
    {"name": "head", "epochs": "5st", "train": "head"},
    {"name": "all", "epochs": "5st", "image_size": 20, "average": {"kind": "ema", "half_life": "2st"}},
]
PLAIN: dict[str, Any] = {
    **NETWORK,
    "data": {"val": 0.3, "test": 0.3},
    "eval": {"every": "4st", "select": "last"},
    "checkpoints": {"every": "3st", "keep": 2},
    "stages": STAGES,
}


def recipe(**fields: Any) -> Recipe:
    return recipes.from_dict({**PLAIN, **fields})


def quiet(hold_test: bool | str = False) -> Execution:
    return Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9, hold_test=hold_test)


def trained(pictures: Path, out: Path, hold_test: bool | str = False, **fields: Any) -> RunDir:
    """A finished run in ``out``."""
    run: Run = sw.train(pictures, recipe(**fields), out=out, execution=quiet(hold_test), say=lambda text: None)
    assert run.finished
    return RunDir(out)


def summary(run: RunDir) -> dict[str, Any]:
    return json.loads(run.summary.read_text())


def kinds(run: RunDir, kind: type[Event]) -> list[Any]:
    """The events of a kind, superseded ones too."""
    return [one.event for one in read_events(run.events) if isinstance(one.event, kind)]
