"""The remaining time: simulates a run with known costs and compares estimates with the actual time."""

from __future__ import annotations

from typing import Any

import pytest

from stagewright.plan.cost import num_weights
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.training.progress import ProgressEstimator

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=0, classes=("a", "b"), digest="d")


def plan_of(*stages: dict[str, Any]) -> Plan:
    return resolve(recipes.from_dict({"batch_size": 10, "stages": list(stages)}), INFO)


def told(
    plan: Plan, step_seconds: dict[int, float], eval_seconds: dict[int, float], on_features: bool = False
) -> list[tuple[int, Any, float]]:
    """Returns (step, estimated seconds left, actual seconds left) at every tenth step; each stage begins with 5 s of warm-up."""
    estimator, now, seen = ProgressEstimator(), 0.0, []
    for stage in plan.stages:
        estimator.on_features = on_features and stage.train == "head"
        now += 5.0
        for step in range(stage.first_step + 1, stage.end_step + 1):
            now += step_seconds[stage.index]
            estimator.add_step(stage)
            if step % 10 == 0:
                estimator.update_speed(now)
                seen.append((step, estimator.eta_seconds(plan, step), now))
            if step in plan.eval_steps:
                estimator.add_evaluation(stage, eval_seconds[stage.index])
                estimator.end_epoch(now)
    return [(step, eta_seconds, now - at) for step, eta_seconds, at in seen]


def after(plan: Plan, step: int, costs: dict[int, float]) -> float:
    return sum(costs[plan.stage_before(at).index] for at in plan.eval_steps if at > step)


def finish(plan: Plan, costs: dict[int, float]) -> float:
    """Seconds of the finish, which evaluates the chosen weights, or all candidates against the head alone."""
    last = plan.stages[-1]
    return (5 if plan.compares_head else 1) * costs[last.index] / num_weights(last)


def test_the_time_left_is_right_where_cost_grows_with_pixels() -> None:
    plan = plan_of({"epochs": "2ep", "image_size": 32}, {"epochs": "3ep", "image_size": 64})
    seconds, evaluating = {0: 0.5, 1: 2.0}, {0: 1.0, 1: 4.0}
    for step, eta_seconds, came in told(plan, seconds, evaluating):
        if step in (10, 210):
            assert eta_seconds is None, "there is no estimate at the first fetch of a stage"
        elif step > 100 and (step < 200 or step > 300):
            warm = 5.0 if step < 200 else 0.0  # of the stage to come
            assert eta_seconds == pytest.approx(came - warm + after(plan, step, evaluating) + finish(plan, evaluating))


def test_a_stage_is_told_by_its_own_speed_however_fast_the_one_before_was() -> None:
    plan = plan_of({"epochs": "5ep", "train": "head", "image_size": 32}, {"epochs": "3ep", "image_size": 32})
    seconds, evaluating = {0: 0.01, 1: 1.0}, {0: 0.1, 1: 3.0}
    for step, eta_seconds, came in told(plan, seconds, evaluating, on_features=True):
        if step <= 500:
            assert eta_seconds is None, "on cached features, the cost of later stages is unknown"
        elif step > 610:
            assert plan.compares_head
            assert eta_seconds == pytest.approx(came + after(plan, step, evaluating) + finish(plan, evaluating))


def test_going_backwards_costs_twice_as_much_again() -> None:
    plan = plan_of({"epochs": "2ep", "train": "head", "image_size": 32}, {"epochs": "2ep", "image_size": 32})
    for step, eta_seconds, came in told(plan, {0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}):
        if 100 < step <= 200:
            assert eta_seconds == pytest.approx(came - 5.0)


def test_before_the_first_evaluation_each_image_counts_as_a_third_of_one_in_training() -> None:
    plan = plan_of({"epochs": "2ep", "image_size": 32, "average": {"kind": "ema"}})
    image_seconds = 3.0 / 10
    for step, eta_seconds, came in told(plan, {0: 3.0}, {0: 100 * 2 * image_seconds / 3}):
        if step > 10:
            images = 200 * sum(at > step for at in plan.eval_steps) + 100
            assert eta_seconds == pytest.approx(came + images * image_seconds / 3), step
    assert len(plan.eval_steps) == 2
