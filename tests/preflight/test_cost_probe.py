"""The probe: that it measures everything, for every kind of stage, and leaves no trace. Times themselves are not tested."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stagewright.api.prepare import prepare
from stagewright.cli.main import app
from stagewright.data.dataset import Dataset
from stagewright.errors import StorageError
from stagewright.plan.budget import Budget, fit
from stagewright.plan.cost import Costs, forecast
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.preflight.cost_probe import _Bench, probe  # pyright: ignore[reportPrivateUsage]
from stagewright.recipe import recipes
from stagewright.recipe.request import as_request

QUIET = Execution(device="cpu", workers=0, pages=False, quiet=True)
SMALL: dict[str, Any] = {
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 16,
    "batch_size": 8,
    "data": {"val": 0.2, "test": 0.2},
}


def prepared(pictures: Path, **fields: Any) -> tuple[Dataset, Plan]:
    return prepare(
        pictures, as_request(recipes.from_dict({**SMALL, "epochs": "2ep", **fields})), QUIET, lambda text: None
    )


def probed(
    pictures: Path, folder: Path, execution: Execution = QUIET, seconds: float = 0.2, **fields: Any
) -> tuple[Costs, Plan]:
    dataset, plan = prepared(pictures, **fields)
    return probe(plan, dataset, execution, folder, seconds=seconds), plan


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return state[1].tolist()


def test_everything_is_measured_and_nothing_stays(picture_folder: Path, tmp_path: Path) -> None:
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    stages = [{"epochs": 0.5}, {"epochs": 0.3, "image_size": 24}, {"epochs": 0.2}]
    costs, plan = probed(picture_folder, tmp_path / "runs", seconds=6.0, stages=stages, average="ema", decode="exact")
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert numpy_state() == states[1]
    first, larger, last = costs.stages
    assert first is last and first != larger
    for cost in costs.stages:
        assert cost.short is None and cost.entry_seconds >= 0 and cost.recalibrate_seconds == 0.0
        assert min(cost.step_seconds, cost.save_seconds, cost.eval_image_seconds, cost.train_gb, cost.eval_gb) > 0
        assert cost.load_seconds is not None and cost.compute_seconds is not None and cost.load_seconds > 0
    assert min(costs.setup_seconds, costs.finish_seconds, costs.probe_seconds) > 0
    assert costs.page_seconds == 0.0 and costs.checkpoint_bytes > 100_000
    assert costs.first_image_seconds > 0  # these few small pictures stay decoded
    assert json.loads(json.dumps(costs.to_dict()))["stages"][0]["step_seconds"] == first.step_seconds
    assert forecast(plan, costs).total_seconds > 0


def test_pages_are_measured_where_they_are_written(picture_folder: Path, tmp_path: Path) -> None:
    costs, _ = probed(picture_folder, tmp_path, replace(QUIET, pages=True))
    assert costs.page_seconds > 0.1


def test_averages_whose_batch_norm_is_estimated_anew(picture_folder: Path, tmp_path: Path) -> None:
    """Measured on a few pictures, counted for as many as the recipe asks for, of which there are only so many."""
    costs, plan = probed(picture_folder, tmp_path, average={"kind": "swa", "every": "1st"})
    assert plan.stages[0].num_images == 36 and costs.stages[0].recalibrate_seconds > 0
    without, _ = probed(picture_folder, tmp_path, average={"kind": "swa", "every": "1st", "recalibrate": 0})
    assert without.stages[0].recalibrate_seconds == 0.0


def test_a_frozen_body_is_measured_with_its_features_and_without(picture_folder: Path, tmp_path: Path) -> None:
    stages = [{"epochs": 0.5, "train": "head", "augment": {"crop": "none", "flip": 0}}, {"epochs": 0.5}]
    costs, plan = probed(picture_folder, tmp_path, stages=stages, average="ema", epochs="8ep")
    head, whole = costs.stages
    assert head.short is not None and whole.short is None
    assert head.of(plan.stages[0]) is head  # four passes are enough for features to pay
    assert head.short.of(plan.stages[0]).step_seconds > head.step_seconds


def test_the_optimum_of_a_head_is_measured(picture_folder: Path, tmp_path: Path) -> None:
    head = {"train": "head", "fit": "optimum", "augment": {"crop": "none"}, "batch_size": 4}
    costs, plan = probed(picture_folder, tmp_path, stages=[head, {"epochs": "2ep"}], average="ema")
    optimum, whole = costs.stages
    assert optimum.short is None and optimum.of(plan.stages[0]) is optimum
    assert min(optimum.step_seconds, optimum.entry_seconds, optimum.save_seconds, optimum.eval_image_seconds) > 0
    assert optimum.step_seconds > whole.step_seconds and plan.stages[0].batch_size == 36
    assert forecast(plan, costs).stages[0].train_seconds == optimum.step_seconds
    budget = Budget.parse("30m")
    longer = fit(plan, costs, budget).plan
    assert longer.stages[0].num_steps == 1 and longer.stages[1].num_steps > plan.stages[1].num_steps


def test_weights_that_diverge_while_they_are_measured(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are timed on one batch again and again, which says nothing of the run: what comes of it must not end the probe."""
    separate_times = _Bench.separate_times

    def spoilt(bench: _Bench, *given: Any) -> Any:
        seconds = separate_times(bench, *given)
        with torch.no_grad():
            next(bench.session.state.model.parameters()).fill_(torch.nan)
        return seconds

    monkeypatch.setattr(_Bench, "separate_times", spoilt)
    costs, _ = probed(picture_folder, tmp_path, average="ema")
    assert costs.stages[0].eval_image_seconds > 0 and costs.finish_seconds > 0


def test_without_pictures_to_evaluate(picture_folder: Path, tmp_path: Path) -> None:
    costs, plan = probed(picture_folder, tmp_path, data={"val": 0.0, "test": 0.0}, execution=replace(QUIET, workers=2))
    assert costs.stages[0].eval_image_seconds == 0.0
    assert forecast(plan, costs).eval_seconds == 0.0


def test_what_would_fail_a_run_fails_the_probe(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plan = prepared(picture_folder)
    monkeypatch.setattr("stagewright.storage.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match="are free"):
        probe(plan, dataset, QUIET, tmp_path, seconds=0.2)
    assert list(tmp_path.iterdir()) == []


def test_plan_probe_on_the_command_line(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps({**SMALL, "epochs": "2ep"}))
    command = [
        "plan",
        str(picture_folder),
        "-r",
        "r.yaml",
        "--device",
        "cpu",
        "-j",
        "0",
        "--probe",
        "--probe-seconds",
        "0.2",
    ]
    done = CliRunner().invoke(app, [*command, "--price", "3"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "this takes" in words and "At $3 an hour that is" in words and "on the disk" in words
    content = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert content["forecast"]["total_seconds"] > 0 and len(content["costs"]["stages"]) == 1 and content["digest"]
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml"}


def test_devices_on_the_command_line(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured now, or on another machine and read from what was printed there, the forecasts are the same."""
    monkeypatch.chdir(tmp_path)
    stages = [{"name": "low", "epochs": "1ep"}, {"name": "high", "image_size": 24, "epochs": "1ep", "train": "last:1"}]
    (tmp_path / "r.yaml").write_text(json.dumps({**SMALL, "stages": stages, "spread": 4}))
    common = ["plan", str(picture_folder), "-r", "r.yaml", "--device", "cpu", "-j", "0", "--devices", "1,2,2x2,3,8"]
    printed = CliRunner().invoke(app, [*common, "--probe", "--probe-seconds", "0.2", "--price", "36", "--json"])
    content = json.loads(printed.stdout)
    sizes = []
    for stage in content["costs"]["stages"]:
        parts = stage["gradients"]
        sizes.append(sum(size for _, size in parts["arrivals"]))
        assert parts["lane_seconds"] > 0 and parts["statistics_bytes"] > 0
        assert [at for at, _ in parts["arrivals"]] == sorted(at for at, _ in parts["arrivals"])
    assert sizes[0] > sizes[1] > 0  # of the second stage's network only the upper part is trained
    rows = content["devices"]
    assert [(row["devices"], row["count"], row["problem"]) for row in rows] == [
        *(("1", 1, None), ("2", 2, None), ("2x2", 4, None), ("3", 3, None)),
        ("8", 8, "stage 'low' has 4 lanes"),
    ]
    assert rows[3]["uneven"] == ["low", "high"] and rows[0]["expected"] == content["forecast"]
    assert rows[0]["dollars"] == pytest.approx(content["money"])
    (tmp_path / "probe.json").write_text(printed.stdout)
    known = [*common, "--from", "probe.json", "--price", "36"]
    assert json.loads(CliRunner().invoke(app, [*known, "--json"]).stdout)["devices"] == rows
    text = " ".join(CliRunner().invoke(app, known).output.split())
    assert "8 devices: not possible, as stage 'low' has 4 lanes; --spread plans more." in text
    assert "some devices wait for others: 3 (low, high)." in text and "Between hosts 10 Gbit/s" in text
    faster = CliRunner().invoke(app, [*known, "--wire", "100G", "--epochs", "9ep"])
    assert faster.exit_code == 0 and "Between hosts 100 Gbit/s" in faster.output  # another length costs the same a step
    other = CliRunner().invoke(app, [*known, "--batch-size", "16"])
    assert "batch_size of stage 'low' (8 there, 16 here)" in str(other.exception)
