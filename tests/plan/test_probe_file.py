"""A file of ``plan --probe --json``: read again with the same values; what is damaged or of another plan is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagewright.errors import RecipeError
from stagewright.plan.cost import Costs, GradientCost, StageCost
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.probe_file import read_probe
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

INFO = DatasetInfo(num_train=1024, num_val=100, num_test=50, classes=("a", "b"), digest="d")
PARTS = GradientCost(
    lane_seconds=0.05,
    update_seconds=0.45,
    arrivals=((0.02, 10), (0.05, 4)),
    statistics_bytes=8,
    copy_seconds=0.002,
    send_seconds=0.001,
    noise_seconds=0.01,
)
COST = StageCost(0.45, 0.04, 0.43, 2.0, 1.0, 0.01, 3.0, 0.25, 1.25, 0.5, 1.5, PARTS)
COSTS = Costs(
    (replace(COST, short=replace(COST, load_seconds=None)),), 4.0, 1.0, 0.0, 99, 0.5, 1.5, 0.0, 9.0, "CPU, 2 threads"
)


def plan_of(**fields: Any) -> Plan:
    return resolve(recipes.from_dict({"batch_size": 128, "spread": 8, "epochs": "4ep", **fields}), INFO)


def printed(plan: Plan, costs: Costs = COSTS) -> dict[str, Any]:
    return json.loads(json.dumps({**plan.to_json(), "account": {}, "costs": costs.to_dict(), "pace": []}))


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(printed(plan_of())))
    assert read_probe(file, plan_of()) == COSTS
    assert read_probe(file, plan_of(epochs="9ep", lr=0.5, seed=3)) == COSTS  # lengths and rates cost nothing


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": {"name": "resnet50"}}, "another plan: model"),
        ({"batch_size": 64}, r"batch_size of stage 'main' \(128 there, 64 here\)"),
        ({"spread": 4}, r"lanes of stage 'main' \(8 there, 4 here\)"),
        ({"stages": [{"epochs": "1ep"}, {"epochs": "1ep"}]}, "1 stages there, 2 here"),
        ({"compile": True}, "compile"),
    ],
)
def test_of_another_plan(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(printed(plan_of())))
    with pytest.raises(RecipeError, match=named):
        read_probe(file, plan_of(**fields))


def _set(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]  # pyright: ignore[reportArgumentType]
        content[path[-1]] = value  # pyright: ignore[reportArgumentType]

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.pop("costs"), "it has no costs"),
        (_set([], "costs"), "it has no costs"),
        (lambda content: content["costs"].pop("device"), "device: it is missing"),
        (_set("1.0", "costs", "stages", 0, "step_seconds"), "step_seconds"),
        (_set(-1.0, "costs", "stages", 0, "step_seconds"), "no number from 0"),
        (_set(float("nan"), "costs", "finish_seconds"), "no number from 0"),
        (_set(float("inf"), "costs", "stages", 0, "short", "gradients", "lane_seconds"), "no number from 0"),
        (_set([[0.1, 1.5]], "costs", "stages", 0, "gradients", "arrivals"), "arrivals"),
        (_set([], "costs", "stages"), "the number of stages"),
        (_set("0" * 64, "digest"), "states digest 000000000000"),
        (_set(1, "format"), "plan of format 1"),
    ],
)
def test_damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str) -> None:
    content = printed(plan_of())
    change(content)
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=named) as error:
        read_probe(file, plan_of())
    assert "--probe --json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"), [("", "probe.json: "), ("[1]", "not a JSON object"), ("{", "probe.json"), (None, "no such file")]
)
def test_no_such_file(tmp_path: Path, text: str | None, named: str) -> None:
    file = tmp_path / "probe.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError, match=named):
        read_probe(file, plan_of())
