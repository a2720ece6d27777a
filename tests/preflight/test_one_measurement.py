"""One measurement of a run's costs: what it finds for every kind of run, and that it leaves no trace. Times are not tested."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from held_runs import trained
from small_recipe import NETWORK

from stagewright.api.prepare import prepare
from stagewright.data.manifest import Manifest
from stagewright.errors import ModelError
from stagewright.model.zoo import create_model
from stagewright.plan.cost import Costs, StageCost
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.preflight import one_measurement
from stagewright.preflight.one_measurement import images_per_second, measure_once
from stagewright.recipe import recipes
from stagewright.recipe.request import as_request
from stagewright.rundir.directory import RunDir

QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True)


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> RunDir:
    """A finished run of its own."""
    return RunDir(Path(shutil.copytree(small_run, tmp_path / "run")))


def begun(pictures: Path, root: Path, **settings: Any) -> tuple[RunDir, Plan]:
    """A run that has not made a step."""
    wanted = {**NETWORK, "epochs": "4st", "data": {"val": 0.4, "test": 0.2}, **settings}
    dataset, plan = prepare(pictures, as_request(recipes.from_dict(wanted)), QUIET, lambda text: None)
    run = RunDir.create(root)
    run.write_start(plan, dataset.manifest, {})
    return run, plan


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_measured_and_nothing_stays(finished: RunDir) -> None:
    before, state = contents(finished.root), torch.get_rng_state()
    found = measure_once(finished, QUIET, 0.3)
    assert contents(finished.root) == before and torch.equal(torch.get_rng_state(), state)
    plan = finished.read_plan()
    model = create_model(plan.recipe.model.name, 3, image_size=16, options=plan.recipe.model.options)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    assert found.image_size == 16 and found.macs is not None and found.macs > 100_000
    for name in ("train_images_per_second", "train_gb", "latency_ms", "images_per_second"):
        assert getattr(found, name) > 0, name
    assert found.epoch_seconds == pytest.approx(plan.dataset.num_train / (found.train_images_per_second or 0))
    assert found.training_problem is found.inference_problem is found.macs_problem is None
    assert (found.precision, found.torch, found.rounds) == ("fp32", torch.__version__, 1)


@pytest.mark.parametrize("lost", ["all", "one"])
def test_without_its_pictures_a_run_has_no_figures_of_training(
    finished: RunDir, picture_folder: Path, tmp_path: Path, lost: str
) -> None:
    pictures = tmp_path / "pictures"
    if lost == "one":
        shutil.copytree(picture_folder, pictures)
        (pictures / "down" / "03.png").unlink()
    replace(Manifest.read(finished.manifest), root=str(pictures)).write(finished.manifest)
    found = measure_once(finished, QUIET, 0.1)
    assert found.train_images_per_second is found.epoch_seconds is found.train_gb is None
    assert found.training_problem is not None
    assert (str(pictures) if lost == "all" else "03.png") in found.training_problem
    assert found.latency_ms is not None and found.images_per_second is not None and found.macs is not None


def test_what_is_not_asked_for_is_not_measured(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError

    for name in ("probe", "count_macs", "verify_images"):
        monkeypatch.setattr(one_measurement, name, refuse)
    threads = torch.get_num_threads()
    found = measure_once(finished, replace(QUIET, threads=2), 0.1, counts=False, trains=False)
    assert torch.get_num_threads() == threads and (found.threads, found.device) == (2, "CPU, 2 threads")
    assert found.macs is found.train_images_per_second is None and found.latency_ms is not None


def test_macs_that_cannot_be_counted_are_a_sentence(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise ModelError("no formula for aten.mv", "operators with one", "register one")

    monkeypatch.setattr(one_measurement, "count_macs", refuse)
    found = measure_once(finished, QUIET, 0.1, trains=False)
    assert found.macs is None and found.macs_problem == "no formula for aten.mv" and found.parameters is not None


def test_the_weights_of_its_beginning_may_be_gone(picture_folder: Path, tmp_path: Path) -> None:
    network = {**NETWORK["model"], "weights": str(tmp_path / "gone.pth")}
    # With bfloat16, which auto is on some processors, the weights would be missed: see the test after this one.
    run, _ = begun(picture_folder, tmp_path / "run", model=network, eval={"precision": "fp32"})
    found = measure_once(run, QUIET, 0.1)
    assert found.training_problem is None and found.train_images_per_second is not None
    assert found.latency_ms is not None and found.inference_problem is None


def test_in_bfloat16_what_is_computed_again_counts(picture_folder: Path, tmp_path: Path) -> None:
    done = trained(picture_folder, tmp_path / "done", eval={"precision": "bf16"}, data={"val": 0.4, "test": 0.2})
    found = measure_once(done, QUIET, 0.1, trains=False)
    assert (found.eval_precision, found.inference_problem) == ("bf16", None) and found.images_per_second is not None
    run, _ = begun(picture_folder, tmp_path / "run", eval={"precision": "bf16"})
    found = measure_once(run, QUIET, 0.1, trains=False)
    assert (found.precision, found.eval_precision) == ("fp32", "bf16") and found.latency_ms is not None
    assert found.inference_problem is not None and "without weights or pictures" in found.inference_problem
    few, _ = begun(picture_folder, tmp_path / "few", eval={"precision": "bf16"}, data={"val": 0.1, "test": 0.2})
    found = measure_once(few, QUIET, 0.1, trains=False)
    assert found.eval_precision == "fp32" and found.inference_problem is None  # as its model predicts in the end


def test_the_size_is_that_of_the_chosen_weights(picture_folder: Path, tmp_path: Path) -> None:
    stages = [{"epochs": "2st"}, {"epochs": "2st", "image_size": 24}]
    run, plan = begun(picture_folder, tmp_path / "run", stages=stages)
    size = one_measurement._evaluated_stage  # pyright: ignore[reportPrivateUsage]
    assert size(run, plan).image_size == 24
    for chosen, expected in ((2, 16), (3, 24), (4, 24), (10**9, 24)):
        run.summary.write_text(json.dumps({"chosen": {"step": chosen, "weights": "raw"}}))
        assert size(run, plan).image_size == expected
    head = {"weights": "raw", "step": 4, "coefficient": 1.0, "loss": 1.0, "top1": 1.0}
    run.summary.write_text(json.dumps({"chosen": {"step": 2, "weights": "head"}, "finalists": [head]}))
    assert size(run, plan).image_size == 24
    run.summary.write_text("{")
    assert size(run, plan).image_size == 24


def test_the_speed_of_a_plan_is_that_of_all_its_stages(picture_folder: Path, tmp_path: Path) -> None:
    stages = [{"epochs": "2st"}, {"epochs": "6st", "batch_size": 4}]
    _, plan = begun(picture_folder, tmp_path / "run", stages=stages)
    of_stage: dict[str, Any] = {field.name: 0.0 for field in fields(StageCost)} | {"short": None}
    of_run: dict[str, Any] = {field.name: 0.0 for field in fields(Costs)}
    first = StageCost(**{**of_stage, "step_seconds": 1.0, "entry_seconds": 3.0})
    costs = Costs(**{**of_run, "stages": (first, StageCost(**{**of_stage, "step_seconds": 0.5}))})
    assert images_per_second(plan, costs) == (2 * 8 + 6 * 4) / (2 * 1.0 + 3.0 + 6 * 0.5)
