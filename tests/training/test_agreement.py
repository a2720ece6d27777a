"""Runs that predict in bfloat16: what is measured at their end, and that they resume to the same bits."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stopping import begin, stop_after
from torch import Tensor

from stagewright.api.evaluate import evaluate
from stagewright.api.resume_check import differences
from stagewright.api.train import resume
from stagewright.bundle.bundle import load_bundle
from stagewright.data.batches.specs import BatchSpec
from stagewright.data.manifest import Manifest
from stagewright.model.two_precisions import TwoPrecisions
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Notice
from stagewright.rundir.events import read_events
from stagewright.rundir.summary import read_summary
from stagewright.training import evaluator
from stagewright.training.agreement import _compared
from stagewright.training.evaluator import both_precisions
from stagewright.training.session import Session

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


@pytest.fixture(scope="module", autouse=True)
def few_images_are_enough() -> Iterator[None]:
    """Lets 24 validation images be evaluated in bfloat16, of which six give the margin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "_MARGIN_IMAGES", 6)
        yield


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


def test_what_is_published_is_of_float32_and_evaluate_gives_it_again(unbroken: RunDir) -> None:
    found = evaluate(unbroken.root, device="cpu")
    kept = pq.read_table(unbroken.evaluations / "test.parquet")
    shares = np.stack(kept.column("probabilities").to_pylist())
    answers = found.result.predictions
    assert answers.probabilities is not None and np.allclose(shares, answers.probabilities, rtol=0, atol=1e-6)
    assert np.array_equal(kept.column("predicted").to_numpy(), answers.predicted)
    assert read_summary(unbroken)["top1"]["test"] == pytest.approx(found.result.top1)


def test_the_margin_is_of_images_from_all_over_the_part(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def watched(session: Session, network: TwoPrecisions, specs: Sequence[BatchSpec]) -> tuple[Tensor, Tensor]:
        seen.append([int(row) for spec in specs for row in spec.rows])
        return both_precisions(session, network, specs)

    monkeypatch.setattr(evaluator, "both_precisions", watched)
    run = begun(tmp_path / "r", picture_folder)
    assert go(run)
    manifest = Manifest.read(run.manifest)
    rows = manifest.rows("val")
    assert seen and all(len(one) == 6 and set(one) <= set(rows.tolist()) for one in seen)
    assert {int(label) for label in manifest.labels[seen[0]]} == {0, 1, 2}, "the rows are sorted by class"


def test_few_images_are_evaluated_in_float32(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_MARGIN_IMAGES", 7)
    runs = [begun(tmp_path / precision, picture_folder, precision) for precision in ("bf16", "fp32")]
    assert all(map(go, runs))
    one, other = (list(csv.DictReader(run.metrics.read_text().splitlines())) for run in runs)
    assert [row["val_loss"] for row in one] == [row["val_loss"] for row in other]


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
    assert found.margin == pytest.approx(0.06, rel=0.1)
    assert found.images == 200 and found.equal == 200 and 0 < found.again < 40
