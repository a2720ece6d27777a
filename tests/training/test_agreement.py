"""Runs that predict in bfloat16: what is measured at their end, and that they resume to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import begin, stop_after

from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.bundle.bundle import load_bundle
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.training.agreement import _compared

QUIET = Execution(device="cpu", workers=1, pages=False, quiet=True, save_minutes=1e9)


def begun(folder: Path, pictures: Path, precision: str = "bf16", **fields: Any) -> RunDir:
    plain = {
        "model": {"name": "cifar_resnet18", "options": {"width": 8, "blocks": [1, 1]}},
        "image_size": 16,
        "batch_size": 8,
        "epochs": "12st",
        "data": {"val": 0.4, "test": 0.2},
        "average": {"kind": "ema", "half_life": "2st"},
        "eval": {"every": "4st", "precision": precision},
        "checkpoints": {"every": "4st"},
    }
    return begin(folder, pictures, recipes.from_dict({**plain, **fields}))


def go(run: RunDir, **more: Any) -> bool:
    return resume(run.root, execution=QUIET, say=lambda text: None, **more).finished


def sentences(run: RunDir) -> list[str]:
    texts = [one.event.text for one in read_events(run.events) if isinstance(one.event, Notice)]
    return [text for text in texts if "bfloat16" in text]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> RunDir:
    run = begun(tmp_path_factory.mktemp("bfloat16") / "r", picture_folder)
    assert go(run)
    return run


def test_the_run_says_how_far_it_agrees_and_the_bundle_has_the_margin(unbroken: RunDir) -> None:
    (said,) = sentences(unbroken)
    assert said.startswith("predictions in bfloat16 have the labels of float32 on ")
    margin = load_bundle(unbroken.bundle).spec.close_margin
    assert margin is not None and 0 < margin < 1


def test_a_run_in_float32_says_nothing_and_evaluates_to_other_bits(
    tmp_path: Path, picture_folder: Path, unbroken: RunDir
) -> None:
    run = begun(tmp_path / "r", picture_folder, "fp32")
    assert go(run) and sentences(run) == []
    assert load_bundle(run.bundle).spec.close_margin is None
    assert run.steps.read_bytes() == unbroken.steps.read_bytes()  # the training is the same
    assert run.metrics.read_bytes() != unbroken.metrics.read_bytes()


@pytest.mark.parametrize("step", [3, 4, 9, 12])
def test_stopped_and_resumed_it_is_the_same(tmp_path: Path, picture_folder: Path, unbroken: RunDir, step: int) -> None:
    run = begun(tmp_path / "r", picture_folder)
    go(run, arm=stop_after(step))
    assert go(run)
    assert differences(unbroken, run) == []


def test_one_half_gives_the_margin_and_the_other_is_counted() -> None:
    random = torch.Generator().manual_seed(0)
    exact = torch.randn(400, 5, generator=random)
    found = _compared(exact + 0.01 * torch.randn(400, 5, generator=random), exact)
    assert found.margin == pytest.approx(0.05, rel=0.1)
    assert found.images == 200 and found.equal == 200 and 0 < found.again < 40
