"""Ending a run after the head, where nothing better could be told apart from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stopping import begin, stop_after

from stagewright.api.resume_check import differences
from stagewright.api.run import Run
from stagewright.api.train import resume
from stagewright.engine.build import build_state
from stagewright.engine.state import Score, TrainState
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import EndedEarly, Event, Saved
from stagewright.rundir.events import read_events
from stagewright.system.device import choose_device
from stagewright.training.early_stopping import reason_to_end

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
FIELDS: dict[str, Any] = {
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 8,
    "batch_size": 8,
    "lr": {"schedule": "constant", "peak": 0.1},
    "augment": {"crop": "none", "flip": 0},
    "eval": {"every": "6st"},
    "checkpoints": {"every": "6st", "keep": 1},
    "stop": {"head_suffices": True},
    "stages": [{"name": "head", "epochs": "12st", "train": "head"}, {"name": "all", "epochs": "6st", "train": "all"}],
}


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that the average brightness tells apart, with 60 validation images."""
    folder, random = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 30)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for at in range(count):
                pixels = random.integers(0, 60, (8, 8, 3)) + 190 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{at:02d}.png")
    return folder


def begun(folder: Path, pictures: Path, **fields: Any) -> RunDir:
    return begin(folder, pictures, recipes.from_dict({**FIELDS, **fields}))


def go(run: RunDir, **more: Any) -> Run:
    return resume(run.root, execution=QUIET, say=lambda text: None, **more)


class _KilledAfterSaving:
    """Ends the process's part of the run right after a checkpoint was saved, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def see(self, event: Event) -> None:
        if isinstance(event, Saved) and event.step == self.step:
            raise KeyboardInterrupt

    def close(self) -> None: ...


def test_a_run_ends_where_the_head_suffices(tmp_path: Path, shades: Path) -> None:
    whole = begun(tmp_path / "whole", shades)
    assert go(whole).finished
    (ended,) = (one.event for one in read_events(whole.events) if isinstance(one.event, EndedEarly))
    assert ended.step == 12 and "the head alone makes" in ended.reason and "60 validation pictures" in ended.reason
    found = json.loads(whole.summary.read_text())
    assert found["status"] == "finished" and found["step"] == 12 and found["ended_early"]
    assert found["chosen"]["stage"] == "head" and found["chosen"]["step"] <= 12 and found["finalists"] == []
    assert found["top1"]["val"] > 90

    broken = begun(tmp_path / "broken", shades)
    for step in (11, 12):
        go(broken, arm=stop_after(step))
    assert go(broken).finished
    assert differences(whole, broken) == []

    killed = begun(tmp_path / "killed", shades)
    with pytest.raises(KeyboardInterrupt):
        go(killed, observers=[_KilledAfterSaving(12)])
    assert checkpoint.steps(killed.checkpoints)[-1] == 12 and not killed.bundle.exists()
    assert go(killed).finished
    assert differences(whole, killed) == []
    assert (whole.bundle / "weights.safetensors").read_bytes() == (killed.bundle / "weights.safetensors").read_bytes()


def test_it_goes_on_where_the_recipe_does_not_ask(tmp_path: Path, shades: Path) -> None:
    run = begun(tmp_path / "run", shades, stop={}, eval={"every": "6st", "select": "last"})
    assert go(run).finished
    found = json.loads(run.summary.read_text())
    assert found["step"] == 18 and not found["ended_early"] and len(found["finalists"]) == 5


def _plan(num_val: int, **stop: Any) -> Plan:
    recipe = recipes.from_dict({**FIELDS, "stop": {"head_suffices": True, **stop}})
    return resolve(
        recipe, DatasetInfo(num_train=32, num_val=num_val, num_test=0, classes=("dark", "light"), digest="0" * 64)
    )


@pytest.fixture(scope="module")
def state() -> TrainState:
    return build_state(_plan(100), choose_device("cpu"))[0]


@pytest.mark.parametrize(
    ("images", "wrong", "step", "evaluated", "ends"),
    [
        *[(100, wrong, 12, 12, wrong < 6) for wrong in (0, 1, 5, 6, 50)],
        *[(50, 0, 12, 12, True), (49, 0, 12, 12, False)],
        *[(100_003, 5, 12, 12, True), (100_003, 6, 12, 12, False)],
        *[(100, 0, 6, 6, False), (100, 0, 11, 6, False), (100, 0, 12, 6, False), (100, 0, 18, 18, False)],
    ],
)
def test_fewer_than_6_errors_at_its_end(
    state: TrainState, images: int, wrong: int, step: int, evaluated: int, ends: bool
) -> None:
    state.step, state.evaluated_step = step, evaluated
    state.latest = Score(evaluated, "raw", 100.0 * ((images - wrong) / images))
    reason = reason_to_end(_plan(images), state)
    assert (reason is not None) == ends
    if reason is not None:
        assert f"{wrong:,} error" in reason


def test_without_validation_images_it_has_no_effect() -> None:
    with pytest.raises(RecipeError, match=r"stop\.head_suffices=true without validation pictures"):
        _plan(0)
