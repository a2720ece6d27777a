"""Every shipped recipe's tiny version, run whole; and what of a recipe becomes small, and what stays."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

import stagewright as sw
from stagewright.cli import main
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.tiny import STEPS, describe, shrunk, tiny
from stagewright.rundir.event_kinds import StageBegun
from stagewright.rundir.events import read_events

INFO = DatasetInfo(num_train=64, num_val=32, num_test=32, classes=("a", "b", "c"), digest="tiny")


SOON = ("finetune", "quick")
"""Those of the shipped recipes whose tiny run is no long test."""


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in recipes.shipped()]
)
def test_a_tiny_run_goes_through_every_stage(name: str, picture_folder: Path, tmp_path: Path) -> None:
    stages = recipes.load(name).resolved_stages()
    heard: list[str] = []
    run = sw.train(
        picture_folder,
        name,
        tiny=True,
        out=tmp_path / "run",
        execution=Execution(device="cpu", workers=0, quiet=True),
        say=heard.append,
    )
    assert run.finished and run.summary["total_steps"] == sum(
        STEPS if stage.fit == "updates" else 1 for stage in stages
    )
    assert any(line.startswith("Tiny: 4 steps a stage") for line in heard)
    began = [one.event.name for one in read_events(run.path / "events.jsonl") if isinstance(one.event, StageBegun)]
    assert began == [stage.name for stage in stages]
    rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))
    averages = [stage.average.kind for stage in stages if stage.average is not None]
    assert [row["stage_name"] for row in rows] == began
    assert [row["average"] or "none" for row in rows] == averages
    assert (run.path / "report.html").is_file()
    answers = list(run.model.predict(sorted(picture_folder.glob("*/00.png")), topk=1))
    assert [answer.classes[0][0] in run.model.classes for answer in answers] == [True] * 3


@pytest.mark.parametrize("name", recipes.shipped())
def test_what_stages_differ_in_they_still_differ_in(name: str) -> None:
    whole = recipes.load(name)
    small = tiny(whole)
    assert recipes.from_dict(json.loads(json.dumps(small.to_dict()))) == small
    assert small.model.model_copy(update={"weights": whole.model.weights}) == whole.model
    assert (small.optimizer, small.augment, small.mix, small.loss) == (
        whole.optimizer,
        whole.augment,
        whole.mix,
        whole.loss,
    )
    for a, b in zip(whole.resolved_stages(), small.resolved_stages(), strict=True):
        assert a.average is not None and b.average is not None and a.lr_scale == b.lr_scale
        same = ("name", "train", "augment", "mix", "data_fraction", "label_smoothing", "clip_norm", "on_enter")
        assert [getattr(a, field) for field in same] == [getattr(b, field) for field in same]
        assert a.average.kind == b.average.kind
        assert (a.lr is None) == (b.lr is None) and (a.lr is None or a.lr.schedule == b.lr.schedule)  # pyright: ignore[reportOptionalMemberAccess]
    for field in ("image_size", "batch_size"):
        before = [getattr(stage, field) for stage in whole.resolved_stages()]
        after = [getattr(stage, field) for stage in small.resolved_stages()]
        assert [a < b for a in before for b in before] == [a < b for a in after for b in after]
        assert max(after) <= {"image_size": 64, "batch_size": 16}[field]
        assert min(after) >= {"image_size": 32, "batch_size": 4}[field]
    assert tiny(whole) == small


def test_hybrid_becomes_small_in_proportion() -> None:
    plan = resolve(tiny(recipes.load("hybrid")), INFO)
    assert [stage.image_size for stage in plan.stages] == [32, 48, 64, 64]  # of 128, 160, 224, 224
    assert [stage.batch_size for stage in plan.stages] == [16, 12, 8, 8]  # of 1024, 768, 512, 512
    assert [stage.num_images for stage in plan.stages] == [32, 48, 64, 64]
    base = 0.4 * 16 / 1024
    assert [stage.peak_lr / base for stage in plan.stages] == pytest.approx([1.0, 0.7, 0.5, 0.25])
    assert plan.eval_steps == plan.save_steps == (4, 8, 12, 16)


def recipe_with(**fields: object) -> Recipe:
    return recipes.from_dict({"epochs": "60ep", "image_size": 224, "batch_size": 256, **fields})


def test_lengths_shrink_with_the_stages_they_lie_in() -> None:
    stages = [{"epochs": "20ep"}, {"epochs": "40ep", "average": {"kind": "swa", "every": "10ep"}}]
    small = tiny(
        recipe_with(
            stages=stages,
            lr={"schedule": "piecewise", "warmup": "10ep", "milestones": {"20ep": 0.1, "50ep": 0.01}},
            average={"kind": "ema", "half_life": "10ep"},
        )
    )
    assert str(small.lr.warmup) == "2st"  # half of the first stage
    assert small.lr.milestones == {"4st": 0.1, "7st": 0.01}  # its end, and three quarters of the second
    first, second = (stage.average for stage in small.resolved_stages())
    assert first is not None and second is not None
    assert (str(first.half_life), str(second.every)) == ("2st", "1st")
    assert (first.recalibrate, second.recalibrate) == (None, 32)


def test_shares_stay_and_unknown_ratios_are_one_step() -> None:
    small = tiny(recipe_with(lr={"warmup": 0.1}, average={"kind": "ema", "half_life": "5000img"}))
    half_life = small.resolved_stages()[0].average
    assert str(small.lr.warmup) == "0.1" and half_life is not None and str(half_life.half_life) == "1st"


def test_learning_rates_follow_the_batch_once() -> None:
    assert tiny(recipe_with(lr=0.1)).lr.peak == pytest.approx(0.1 * 16 / 256)
    scaled = tiny(recipe_with(lr={"peak": 0.1, "batch": 256}))
    assert scaled.lr.peak == 0.1 and resolve(scaled, INFO).stages[0].peak_lr == pytest.approx(0.1 * 16 / 256)
    own = tiny(recipe_with(stages=[{"lr": 0.2}]))
    assert resolve(own, INFO).stages[0].peak_lr == pytest.approx(0.2 * 16 / 256)
    assert tiny(recipe_with(lr="auto")).lr.peak == 1e-3


def test_what_would_keep_a_tiny_run_from_its_end_is_left_out() -> None:
    whole = recipe_with(
        model={"name": "resnet18", "weights": "default"}, stop={"patience": 1}, compile=True, precision="fp16"
    )
    small = tiny(whole)
    assert (small.model.weights, small.stop.patience, small.compile, small.precision) == (None, None, False, "auto")
    assert "pretrained weights are not used" in describe(whole)
    kept = recipe_with(model={"name": "resnet18", "weights": "mine.pth"})
    assert tiny(kept).model.weights == "mine.pth" and "weights" not in describe(kept)


def test_shrunk_values_fit_keep_their_order_and_never_grow() -> None:
    for a in range(4, 300, 7):
        for b in range(a, 600, 13):
            for c in (b, b + 1, 2 * b):
                found = shrunk([a, b, c, 0], 64, 32, 16)
                assert all(found[value] <= value for value in found)
                assert list(found.values()) == sorted(set(found.values()))
                assert found[c] <= 64
    assert list(shrunk([224, 192, 176, 160, 144, 128], 64, 32, 16).values()) == [36, 40, 44, 52, 56, 64]
    assert shrunk([8, 28], 64, 32, 16) == {8: 8, 28: 28}


def test_plan_takes_the_flag(
    picture_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stagewright", "plan", str(picture_folder), "-r", "standard", "--tiny", "--json"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["recipe"]["name"] == "standard-tiny" and content["total_steps"] == 2 * STEPS
    assert sum(content["dataset"][f"num_{split}"] for split in ("train", "val", "test")) <= 60
