"""Forecasts from made-up costs, and the words for what sets the pace."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from stagewright.cli.cost_view import bytes_text, cost_view, in_json, money_text
from stagewright.plan.cost import Costs, StageCost, forecast, pace, pace_sentence
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=50, classes=("a", "b"), digest="d")
COST = StageCost(
    step_seconds=0.5,
    load_seconds=0.01,
    compute_seconds=0.49,
    entry_seconds=2.0,
    eval_fixed_seconds=1.0,
    eval_image_seconds=0.01,
    recalibrate_seconds=3.0,
    save_seconds=0.25,
    train_gb=1.25,
    eval_gb=0.5,
)
COSTS = Costs(
    stages=(COST,),
    startup_seconds=4.0,
    setup_seconds=1.0,
    first_image_seconds=0.002,
    checkpoint_bytes=8_527_451,
    finish_seconds=0.5,
    page_seconds=1.5,
    page_drag_seconds=0.0,
    probe_seconds=9.0,
    device="CPU, 2 threads",
)


def plan_of(**fields: Any) -> Plan:
    return resolve(recipes.from_dict({"batch_size": 100, **fields}), INFO)


def test_saves_cost_what_they_do_in_their_stage() -> None:
    """The head's optimizer keeps little: 3 saves of its stage, 1 of the other, and one more in each 0.15 minutes without."""
    stages = [{"name": "head", "train": "head", "epochs": "3ep"}, {"name": "all", "epochs": "1ep"}]
    costs = replace(COSTS, stages=(replace(COST, save_seconds=0.125), COST))
    expected = forecast(plan_of(stages=stages), costs)
    assert (expected.num_saves, expected.checkpoint_seconds) == (4, 3 * 0.125 + 0.25)
    slow = replace(costs, stages=(replace(COST, step_seconds=1.0, save_seconds=0.125), COST))
    again = forecast(plan_of(stages=stages), slow, save_minutes=0.15)
    assert (again.num_saves, again.checkpoint_seconds) == (7, 6 * 0.125 + 0.25)


def test_a_forecast_adds_up() -> None:
    """20 steps, two evaluations; averaged weights are among what an evaluation costs, and one set is judged at the end."""
    expected = forecast(plan_of(epochs="2ep", average="ema"), COSTS)
    assert expected.train_seconds == 20 * 0.5
    assert expected.eval_seconds == pytest.approx(2 * (1.0 + 100 * 0.01 + 3.0))
    assert expected.num_saves == 2 and expected.checkpoint_seconds == 0.5
    assert expected.setup_seconds == pytest.approx(1.0 + 1150 * 0.002 + 2.0)
    assert expected.finish_seconds == pytest.approx(0.5 + 1.5 + ((1.0 + 1.0) + (1.0 + 0.5)) / 2 + 3.0)
    parts = expected.train_seconds + expected.eval_seconds + expected.checkpoint_seconds
    assert expected.total_seconds == pytest.approx(4.0 + parts + expected.setup_seconds + expected.finish_seconds)
    assert expected.stages[0].total_seconds == pytest.approx(2.0 + 10.0 + 10.0)


def test_the_comparison_with_the_head_costs_its_evaluations() -> None:
    """Five sets of weights on the validation images, two on the test images, in place of one on each."""
    stages = [{"name": "head", "train": "head", "epochs": "3ep"}, {"name": "all", "epochs": "1ep"}]
    costs = replace(COSTS, stages=(COST, COST))
    off = forecast(plan_of(stages=stages, eval={"consider_head": False}), costs)
    more = 0.01 * (4 * INFO.num_val + INFO.num_test)
    assert forecast(plan_of(stages=stages), costs).finish_seconds == pytest.approx(off.finish_seconds + more)


def test_improvements_and_long_stretches_are_saved_too() -> None:
    rare = plan_of(epochs="2ep", checkpoints={"every": "2ep"}, eval={"every": "0.5ep"})
    assert forecast(rare, COSTS).num_saves == 4
    seldom = plan_of(epochs="10ep", checkpoints={"every": "10ep"}, eval={"every": "10ep"})
    assert forecast(seldom, COSTS, save_minutes=0.25).num_saves == 1 + 3  # 50 s without a save


def test_stages_too_short_to_keep_features_cost_what_they_then_cost() -> None:
    kept = replace(COST, step_seconds=0.01, short=COST)
    costs = replace(COSTS, stages=(kept,))
    assert forecast(plan_of(epochs="1ep"), costs).train_seconds == pytest.approx(10 * 0.01)
    assert forecast(plan_of(epochs="0.9ep"), costs).train_seconds == pytest.approx(9 * 0.5)


def test_pages_take_their_time_from_the_training() -> None:
    costs = replace(COSTS, page_drag_seconds=0.75)
    for epochs, pages in (("1ep", 1), ("100ep", 9), ("0.1ep", 1)):  # 5 s, 500 s and half a second of steps
        plan = plan_of(epochs=epochs)
        more = forecast(plan, costs).train_seconds - forecast(plan, COSTS).train_seconds
        assert more == pytest.approx(0.75 * pages)


def test_no_validation_pictures_no_evaluations() -> None:
    info = DatasetInfo(num_train=1000, num_val=0, num_test=0, classes=("a", "b"), digest="d")
    expected = forecast(resolve(recipes.from_dict({"batch_size": 100, "epochs": "2ep"}), info), COSTS)
    assert expected.eval_seconds == 0.0 and expected.num_saves == 2


@pytest.mark.parametrize(
    ("step", "compute", "load", "expected", "words"),
    [
        (0.50, 0.49, 0.10, "computing", "loading pictures is hidden behind it"),
        (0.60, 0.49, 0.01, "computing", "hidden"),  # what a step takes beyond computing cannot be that little loading
        (0.60, 0.40, 0.30, "both", "loading pictures takes 33 % of the time"),
        (
            0.50,
            0.20,
            0.45,
            "loading",
            "loading pictures is the bottleneck, at 200 images/s; computing alone would reach 500",
        ),
        (0.50, None, None, "unknown", "too long to measure loading"),
    ],
)
def test_what_sets_the_pace(step: float, compute: float | None, load: float | None, expected: str, words: str) -> None:
    cost = replace(COST, step_seconds=step, compute_seconds=compute, load_seconds=load)
    assert pace(cost) == expected
    assert words in pace_sentence("main", cost, 100)


def test_the_view_fits_80_columns_and_says_it_all() -> None:
    stages = [{"name": "small", "epochs": 0.5}, {"name": "full", "epochs": 0.5}]
    plan = plan_of(epochs="100ep", stages=stages)
    costs = replace(COSTS, stages=(COST, replace(COST, load_seconds=0.9, step_seconds=0.95)), others_cores=0.8)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(cost_view(plan, costs, price=2.5))
    text = console.export_text()
    table, found, rest = text.partition("On CPU, 2 threads this takes")
    assert found
    assert "…" not in text and all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "small" in table and "1.25" in table and "490 ms" in table and "loading" in table
    words = " ".join(rest.split())
    total = forecast(plan, costs).total_seconds
    assert f"At $2.5 an hour that is ${total / 3600 * 2.5:.2f}." in words
    assert "small: computing is the bottleneck" in words and "full: loading pictures is the bottleneck" in words
    assert "100 saves of 8.53 MB each take up to 42.6 MB on the disk." in words
    assert "Other processes used 0.8 processor cores" in words
    content = in_json(plan, costs, None)
    assert content["money"] is None and content["forecast"]["total_seconds"] == total


def test_amounts() -> None:
    assert [money_text(a) for a in (0.004, 0.02, 1234.5)] == ["less than $0.01", "$0.02", "$1,234.50"]
    assert [bytes_text(n) for n in (812_000, 42_637_255, 1.2e9)] == ["812 kB", "42.6 MB", "1.2 GB"]
