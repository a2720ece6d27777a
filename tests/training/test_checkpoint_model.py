"""The model of a run that has not finished: which weights it has, and that they are those that a finish would write."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import begin, crash_after, stop_after

import stagewright as sw
from stagewright.api.finish import finish
from stagewright.api.run import Run
from stagewright.api.train import resume
from stagewright.errors import CheckpointError, DataError
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.training.checkpoint_model import load_checkpoint_model

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)
CPU = torch.device("cpu")


def begun(folder: Path, pictures: Path, **fields: Any) -> RunDir:
    plain: dict[str, Any] = {
        "model": {"name": "cifar_resnet18", "options": {"width": 4}},
        **{"image_size": 16, "batch_size": 8, "epochs": "12st", "data": {"val": 0.3, "test": 0.2}},
        **{"lr": {"schedule": "constant", "peak": 0.02}, "eval": {"every": "3st"}},
        "checkpoints": {"every": "3st", "keep": 1},
    }
    return begin(folder, pictures, recipes.from_dict({**plain, **fields}))


def stopped_at(step: int, folder: Path, pictures: Path, **fields: Any) -> RunDir:
    """A run whose newest checkpoint is of ``step`` and was not evaluated."""
    run = begun(folder, pictures, **fields)
    assert not resume(run.root, execution=QUIET, say=lambda text: None, arm=stop_after(step)).finished
    return run


def crashed_behind(step: int, folder: Path, pictures: Path, **fields: Any) -> RunDir:
    """A run whose newest checkpoint is of ``step`` and was evaluated."""
    run = begun(folder, pictures, **fields)
    with pytest.raises(RuntimeError, match="power cut"):
        resume(run.root, execution=QUIET, say=lambda text: None, arm=crash_after(step + 1))
    return run


EMA = {"average": {"kind": "ema", "half_life": "2st"}}
SWA = {"average": {"kind": "swa", "every": "2st", "recalibrate": 16}}


@pytest.mark.parametrize("fields", [{}, EMA, SWA], ids=["raw", "ema", "swa"])
@pytest.mark.parametrize("rule", ["best", "last"])
def test_it_is_what_a_finish_writes(fields: dict[str, Any], rule: str, picture_folder: Path, tmp_path: Path) -> None:
    """Weights are equal to the bit; batch norms that are estimated again, nearly."""
    run = crashed_behind(6, tmp_path / "r", picture_folder, eval={"every": "3st", "select": rule}, **fields)
    files = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    there, text = load_checkpoint_model(run, CPU)
    assert files == {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}, "it only reads"
    made = finish(run.root, execution=QUIET, say=lambda text: None)
    written = made.model
    for name in ("weights", "step", "stopped_at", "read_as", "plan_digest"):
        assert there.spec.training[name] == written.spec.training[name], name
    assert there.preprocessing == written.preprocessing and there.classes == written.classes
    assert f"the {there.spec.training['weights']} weights of step {there.spec.training['step']}" in text
    for name, tensor in written.model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(there.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(there.model.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in there.model.parameters()) and not there.model.training


def test_one_line_says_which(picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = crashed_behind(6, tmp_path / "r", picture_folder)
    best = checkpoint.load(run.checkpoints / "step_000006").tensors["best"]
    handle = Run(run.root)
    with caplog.at_level(logging.WARNING):
        assert handle.model is handle.model and not handle.finished
    assert [record.getMessage() for record in caplog.records] == [
        f"{run.root} is at 50 % of its plan (step 6 of 12): using the raw weights of step {best['step']}, "
        f"val top-1 {best['top1']:.2f} %"
    ]
    assert len(list(handle.model.predict(picture_folder))) == 60
    report = sw.evaluate(run.root, split="val")
    assert report.top1 == pytest.approx(best["top1"])
    notes = sw.evaluate(run.root, picture_folder).notes
    assert any("trained on" in note for note in notes), "it finds the run's own images"


def test_before_the_first_evaluation_it_is_the_newest(picture_folder: Path, tmp_path: Path) -> None:
    for step, fields in ((2, {}), (2, EMA)):
        run = stopped_at(step, tmp_path / f"r{len(fields)}", picture_folder, **fields)
        bundle, text = load_checkpoint_model(run, CPU)
        assert bundle.spec.training["step"] == step and text.endswith(f"weights of step {step}")
        assert bundle.spec.training["weights"] == ("ema" if fields else "raw")


def test_the_newest_is_used_where_the_best_is_damaged(picture_folder: Path, tmp_path: Path) -> None:
    run = stopped_at(8, tmp_path / "r", picture_folder)
    best = checkpoint.load(run.checkpoints / "step_000008").tensors["best"]["step"]
    assert best < 8
    shutil.rmtree(run.checkpoints / checkpoint.name_of(best))
    bundle, text = load_checkpoint_model(run, CPU)
    assert bundle.spec.training["step"] == 8 and "weights of step 8" in text
    (run.checkpoints / "step_000008" / "state.pt").write_bytes(b"no")
    for path in run.checkpoints.glob("step_*"):
        (path / "state.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_checkpoint_model(run, CPU)


def test_a_best_one_that_is_removed_meanwhile_is_looked_for_again(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on: between reading the newest state and the best weights it finds better ones."""
    run = stopped_at(8, tmp_path / "r", picture_folder)
    later = stopped_at(12, tmp_path / "later", picture_folder, checkpoints={"every": "3st", "keep": 9})
    assert run.read_plan().digest == later.read_plan().digest
    load = checkpoint.load

    def removed_meanwhile(path: Path) -> checkpoint.Checkpoint:
        monkeypatch.setattr(checkpoint, "load", load)
        shutil.rmtree(run.checkpoints)
        shutil.copytree(later.checkpoints, run.checkpoints)
        return load(path.with_name("step_000099"))

    monkeypatch.setattr(checkpoint, "load", removed_meanwhile)
    bundle, text = load_checkpoint_model(run, CPU)
    best = checkpoint.load(later.checkpoints / "step_000012").tensors["best"]
    assert bundle.spec.training["step"] == best["step"] and "step 12 of 12" in text


def test_averages_that_need_images_say_so_where_they_are_gone(picture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_folder, tmp_path / "pictures")
    run = stopped_at(6, tmp_path / "r", tmp_path / "pictures", eval={"every": "12st"}, stages=[{"train": "all", **SWA}])
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="of which batch norms are estimated"):
        load_checkpoint_model(run, CPU)
