"""The plan that a probe carries out."""

from __future__ import annotations

from typing import Any

from stagewright.data.batches.specs import has_fixed_views
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.probe_plan import STEPS, ProbePlan, probe_plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=100, classes=("a", "b"), digest="d")


def rehearsed(*stages: dict[str, Any], **fields: Any) -> tuple[Plan, ProbePlan]:
    plan = resolve(recipes.from_dict({"stages": [{"epochs": "2ep", **stage} for stage in stages], **fields}), INFO)
    return plan, probe_plan(plan, has_fixed_views)


def test_stages_that_cost_the_same_are_measured_once() -> None:
    """Lengths, rates, smoothing, decay and strength of mixing cost nothing; shapes, parts, mixing at all and averages do."""
    _, found = rehearsed(
        {"lr": 0.1},
        {"epochs": "9ep", "lr": 0.01, "label_smoothing": 0.2, "weight_decay": 0.0, "momentum": 0.5},
        {"image_size": 32},
        {"batch_size": 8},
        {"train": "last:1"},
        {"mix": {"mixup": 0.2}},
        {"mix": {"mixup": 0.9}},
        {"average": "ema"},
        {"clip_norm": 1.0},
    )
    assert found.long == found.short == (0, 0, 1, 2, 3, 4, 4, 5, 6)


def test_rehearsed_stages_are_long_and_leave_the_weights_where_they_are() -> None:
    plan, found = rehearsed(
        {"lr": {"schedule": "one_cycle", "peak": 9.0, "momentum": [0.8, 0.9]}},
        {"image_size": 32, "lr": {"schedule": "swa", "peak": 3.0, "warmup": "1ep"}},
    )
    assert [stage.first_step for stage in found.plan.stages] == [0, STEPS]
    assert found.plan.total_steps == 2 * STEPS and not found.plan.eval_steps and not found.plan.save_steps
    for step in (0, STEPS - 1, STEPS, 2 * STEPS - 1):
        assert 0 < found.plan.hyper(step).lr < 1e-9
    assert found.plan.digest != plan.digest
    assert [stage.image_size for stage in found.plan.stages] == [stage.image_size for stage in plan.stages]


def test_a_frozen_stage_that_sees_pictures_alike_stands_there_twice() -> None:
    """As it is where features of its body can pay, and as it is where it shows too few pictures for that."""
    alike = {"train": "head", "augment": {"crop": "none", "flip": 0.0}}
    _, found = rehearsed(alike, {"train": "head"}, {})
    assert found.long == (0, 2, 3) and found.short == (1, 2, 3)
    shown = [stage.num_steps * stage.batch_size >= stage.num_images for stage in found.plan.stages]
    assert shown == [True, False, True, True]
