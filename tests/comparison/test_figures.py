"""Figures of a comparison: which there are, and which rows none surpasses for less."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from compared_runs import some_right, write_run

from stagewright.comparison.compared import compare
from stagewright.comparison.figures import draw, pareto


def test_no_other_is_better_for_less() -> None:
    costs, scores = np.array([1.0, 2.0, 2.0, 3.0, 3.0, 4.0]), np.array([50.0, 60.0, 55.0, 60.0, 70.0, 70.0])
    assert pareto(costs, scores).tolist() == [True, True, False, False, True, False]
    assert pareto(np.array([1.0, 1.0]), np.array([5.0, 5.0])).tolist() == [True, True]


def test_costs_are_drawn_where_they_differ(tmp_path: Path) -> None:
    every = []
    for name, share, seconds in (("a", 0.8, 10.0), ("b", 0.5, 30.0)):
        for seed in range(2):
            right = some_right(share, seed)
            every.append(write_run(tmp_path / f"{name}-s{seed}", seed, right, recipe={"model": {"name": name}}))
        content = {"macs": 1000, "epoch_seconds": seconds, "device": "CPU, 2 threads"}
        (tmp_path / f"{name}-s0" / "costs.json").write_text(json.dumps(content))
    found = compare(every)
    assert [one.name for one in draw(found)] == ["intervals", "epoch_seconds"]
    (tmp_path / "b-s0" / "costs.json").write_text(json.dumps({"macs": 2000, "epoch_seconds": "slow"}))
    again = compare(every)
    assert [one.name for one in draw(again)] == ["intervals", "macs"]
    assert any("costs.json" in line for line in again.rows[1].problems)
