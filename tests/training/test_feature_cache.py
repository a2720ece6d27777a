"""Stages that train on features of a frozen lower part: stored or computed anew, stopped and resumed, the bits are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import begin, last_checkpoint, stop_after

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.data.batches.batch import Batch
from stagewright.data.batches.specs import has_fixed_views, train_specs
from stagewright.data.dataset import load_dataset
from stagewright.engine.frozen_features import CachedFeatures
from stagewright.errors import ModelError, RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Computing, Event
from stagewright.training import feature_cache
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)


def test_a_damaged_picture_keeps_its_name() -> None:
    kept = CachedFeatures(np.array([3, 5, 9]), torch.arange(3.0)[:, None], {5: "OSError: broken"})
    labels, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    batch = kept.replace_images(Batch(0, torch.empty(4, 3, 0, 0), labels, valid, (), rows=np.array([9, 5, 3, 5])))
    assert batch.images[:, 0].tolist() == [2.0, 1.0, 0.0, 1.0]
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.bad_rows == ((5, "OSError: broken"),) * 2


def recipe(**fields: Any) -> Any:
    plain = {
        "model": {"name": "torchvision:mobilenet_v2"},
        "image_size": 32,
        "batch_size": 12,
        "augment": {"crop": "none", "flip": 0},
        "average": {"kind": "ema", "half_life": "4st"},
        "eval": {"every": "4st"},
        "checkpoints": {"every": "6st"},
        "stages": [
            {"name": "head", "epochs": "9st", "train": "head", "lr": 0.3},
            {"name": "all", "epochs": "4st", "lr": 0.01, "augment": {"flip": 0.5}},
        ],
        "data": {"val": 0.2, "test": 0.1},
    }
    return recipes.from_dict({**plain, **fields})


def go(run: RunDir, arm: Any = None, execution: Execution = QUIET) -> bool:
    return resume(run.root, execution=execution, say=lambda text: None, arm=arm).finished


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begin(tmp_path_factory.mktemp("features") / "r", picture_folder, recipe())
    assert go(run)
    return run


def test_a_head_on_features_learns_as_on_pictures(tmp_path: Path, picture_folder: Path, unbroken: RunDir) -> None:
    plain = begin(tmp_path / "plain", picture_folder, recipe())

    def never(session: Session) -> None:
        session.features.cuts = {}  # type: ignore[misc]

    assert go(plain, never)
    losses = [
        [float(line.split(",")[5]) for line in run.steps.read_text().splitlines()[1:]] for run in (plain, unbroken)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    assert "are computed once" in unbroken.events.read_text() and "are computed once" not in plain.events.read_text()
    weights = [last_checkpoint(run.checkpoints).tensors["model"] for run in (plain, unbroken)]
    assert weights[0].keys() == weights[1].keys()


def test_its_steps_read_no_picture(tmp_path: Path, picture_folder: Path) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe(stages=[{"epochs": "60st", "train": "head"}]))
    sessions: list[Session] = []
    assert go(run, sessions.append)
    assert sessions[0].batches.train_times.images == 0
    assert sessions[0].state.step == 60


@pytest.mark.parametrize("step", [1, 4, 8, 9, 10, 12])
def test_stopped_and_resumed_it_is_the_same(tmp_path: Path, picture_folder: Path, unbroken: RunDir, step: int) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe())

    assert not go(run, stop_after(step)) and go(run)
    assert differences(unbroken, run) == []


def test_a_stop_while_features_are_computed_is_heeded(tmp_path: Path, picture_folder: Path, unbroken: RunDir) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe())

    class AtOnce:
        session: Session

        def see(self, event: Event) -> None:
            if isinstance(event, Computing):
                self.session.stop.requested = True

        def close(self) -> None: ...

    watcher = AtOnce()
    arm = lambda session: setattr(watcher, "session", session)  # noqa: E731
    assert not resume(run.root, execution=QUIET, say=lambda text: None, arm=arm, observers=[watcher]).finished
    assert last_checkpoint(run.checkpoints).step == 0
    assert go(run)
    assert differences(unbroken, run) == []


def test_only_stages_that_see_pictures_alike_are_meant(picture_folder: Path) -> None:
    info = load_dataset(str(picture_folder), recipe().data).manifest.info()
    for fields, alike in (
        ({}, True),
        ({"augment": {"crop": "none", "flip": 0.5}}, False),
        ({"augment": {"crop": "pad", "flip": 0}}, False),
        ({"augment": {"crop": "none", "flip": 0, "copies": 1}}, False),
        ({"augment": {"crop": "none", "flip": 0, "rotation": 5}}, False),
        ({"augment": {"crop": "none", "flip": 0, "policy": "randaugment"}}, False),
        ({"mix": {"mixup": 0.2}}, False),
        ({"mix": {"mixup": 0.2, "probability": 0.0}}, True),
    ):
        plan = resolve(recipe(**fields), info)
        assert has_fixed_views(plan.stages[0]) is alike, fields


VIEWS = {
    "stages": [
        {"name": "head", "epochs": "4st", "train": "head", "lr": 0.3},
        {
            "name": "upper",
            "epochs": "9st",
            "train": "last:4",
            "norm": "frozen",
            "cache": {"views": 2},
            "lr": 0.01,
            "augment": {"crop": "random_resized", "flip": 0.5, "brightness": 0.3},
        },
    ],
}


@pytest.fixture(scope="module")
def with_views(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begin(tmp_path_factory.mktemp("views") / "r", picture_folder, recipe(**VIEWS))
    assert go(run)
    return run


@pytest.mark.parametrize("fields", [{}, {"sampling": "balanced"}])
def test_stored_views_change_no_bit(tmp_path: Path, picture_folder: Path, fields: dict[str, Any]) -> None:
    made = recipe(**{**VIEWS, **fields})
    stored, anew = (begin(tmp_path / name, picture_folder, made) for name in ("stored", "anew"))
    seen: list[Session] = []
    assert go(stored, seen.append) and go(anew, seen.append, replace(QUIET, cache_features=False))
    assert differences(stored, anew) == []
    assert seen[0].batches.train_times.images == 0 < seen[1].batches.train_times.images
    losses = [line.split(",")[5] for line in stored.steps.read_text().splitlines()[1:]]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("step", [1, 4, 5, 9, 12])
def test_views_stopped_and_resumed_are_the_same(
    tmp_path: Path, picture_folder: Path, with_views: RunDir, step: int
) -> None:
    run = begin(tmp_path / "r", picture_folder, recipe(**VIEWS))
    assert not go(run, stop_after(step)) and go(run)
    assert differences(with_views, run) == []


def test_views_in_a_file_change_no_bit(
    tmp_path: Path, picture_folder: Path, with_views: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "MOST_IN_MEMORY", 1000)
    run = begin(tmp_path / "r", picture_folder, recipe(**VIEWS))
    assert go(run)
    assert differences(with_views, run) == []
    assert not [path for path in run.root.rglob("*") if path.name.startswith("tmp")]


def test_a_view_is_what_its_pass_would_have_drawn(picture_folder: Path) -> None:
    made = recipe(**VIEWS)
    manifest = load_dataset(str(picture_folder), made.data).manifest
    plan = resolve(made, manifest.info())
    stage = plan.stages[1]
    drawn = {
        (int(row), int(view)): box
        for spec in train_specs(plan, manifest, stage.first_step)
        if spec.views is not None
        for row, view, box in zip(spec.rows, spec.views, spec.geometry.boxes.tolist(), strict=True)
    }
    free = resolve(recipe(stages=[VIEWS["stages"][0], {**VIEWS["stages"][1], "cache": None}]), manifest.info())
    for spec in train_specs(free, manifest, stage.first_step):
        for row, box in zip(spec.rows.tolist(), spec.geometry.boxes.tolist(), strict=True):
            if spec.step - stage.first_step < stage.num_images // stage.batch_size:  # the first pass
                assert drawn[row, 0] == box


def test_a_network_that_cannot_be_cut_is_refused_before_training(tmp_path: Path, picture_folder: Path) -> None:
    stages = [{"epochs": "3st", "train": ["features.0.*", "classifier.*"], "cache": {"views": 2}}]
    run = begin(tmp_path / "r", picture_folder, recipe(stages=stages))
    with pytest.raises(ModelError, match="cannot be cut"):
        go(run)


def test_what_a_cached_stage_cannot_do_is_refused() -> None:
    for fields, words in (
        ({"train": "all"}, "all blocks train"),
        ({"mix": {"mixup": 0.2}}, "mixing works on images"),
        ({"augment": {"crop": "none", "flip": 0, "copies": 1}}, "fixed views"),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe(stages=[{"train": "last:1", "cache": {"views": 2}, **fields}])
