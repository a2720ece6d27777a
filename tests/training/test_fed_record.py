"""What a stage was fed is recorded once, is what the plan says, changes nothing of the training, and cannot end it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stopping import begin, stop_after

from stagewright.api.report import write_report
from stagewright.api.train import resume
from stagewright.data.images.decode import FileImages
from stagewright.data.manifest import Manifest
from stagewright.engine.fed import fed_at, levels
from stagewright.errors import CheckpointError, RecipeError, StorageError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.training import fed_record
from stagewright.training.session import Session

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
RECIPE = recipes.from_dict(
    {
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        "batch_size": 10,
        "lr": 0.01,
        "stages": [
            {"name": "cut", "epochs": "3st", "image_size": 16, "mix": {"cutmix": 1.0}},
            {"name": "plain", "epochs": "2st", "image_size": 24, "augment": {"policy": "randaugment"}},
        ],
        "data": {"val": 0.2, "test": 0.1},
    }
)


def recording(stop: int | None = None) -> Callable[[Session], Any]:
    """Arms a session so that it records, as it does with pages, but no page is written."""

    def arm(session: Session) -> Any:
        session.execution = replace(session.execution, pages=True)
        return stop_after(stop)(session) if stop else None

    return arm


def go(run: RunDir, arm: Any = None) -> bool:
    return resume(run.root, execution=QUIET, say=lambda text: None, arm=arm).finished


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begin(tmp_path_factory.mktemp("fed") / "plain", picture_folder, RECIPE)
    assert go(run)
    return run


def test_each_stage_is_recorded_and_nothing_else_changes(tmp_path: Path, picture_folder: Path, plain: RunDir) -> None:
    run = begin(tmp_path / "run", picture_folder, RECIPE)
    assert not go(run, recording(stop=1))
    assert sorted(path.name for path in run.fed.iterdir()) == ["0.json"]
    first = (run.fed / "0.json").stat().st_mtime_ns
    assert go(run, recording())
    assert (run.fed / "0.json").stat().st_mtime_ns == first, "written once"
    assert not plain.fed.exists() and run.steps.read_bytes() == plain.steps.read_bytes()
    manifest, plan = Manifest.read(run.manifest), run.read_plan()
    for stage in plan.stages:
        said = json.loads((run.fed / f"{stage.index}.json").read_text())
        fed = fed_at(plan, manifest, FileImages(manifest.root, manifest.paths), stage.first_step)
        assert (said["step"], said["kind"], said["share"]) == (stage.first_step, fed.draw.kind, fed.mixed.lam)
        assert [one["path"] for one in said["images"]] == manifest.paths.take(fed.rows[:8]).to_pylist()
        assert [one["other"] for one in said["images"]] == manifest.labels[fed.partners[:8]].tolist()
        for one, pixels in zip(said["images"], levels(fed.mixed.images, fed.numerics), strict=False):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(one["file"])))), pixels)


def test_a_full_disk_does_not_end_the_run_here(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise StorageError(f"{path}: no space left", "a disk with space", "free some")

    monkeypatch.setattr(fed_record, "write_json", full)
    run = begin(tmp_path / "run", picture_folder, RECIPE)
    assert go(run, recording())


def test_the_report_makes_what_is_missing_and_maps(plain: RunDir) -> None:
    page = write_report(plain.root, saliency_maps=True).read_text()
    assert sorted(path.name for path in plain.fed.iterdir()) == ["0.json", "1.json"]
    assert "What each stage was fed" in page and "Grad-CAM" in page and 'class="heat"' in page
    assert "Grad-CAM" not in write_report(plain.root).read_text()
    with pytest.raises(RecipeError, match="-1 MB of pictures"):
        write_report(plain.root, picture_bytes=-1e6)


def test_maps_of_a_run_that_has_not_finished(tmp_path: Path, picture_folder: Path) -> None:
    run = begin(tmp_path / "run", picture_folder, RECIPE)
    assert not go(run, stop_after(4))
    with pytest.raises(CheckpointError, match="no predictions of a finished model"):
        write_report(run.root, saliency_maps=True)
    page = write_report(run.root).read_text()
    assert "What each stage was fed" in page and sorted(path.name for path in run.fed.iterdir()) == ["0.json", "1.json"]
