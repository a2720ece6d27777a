"""Processes that carry out one run: what they must have in common, and what is refused before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_runs import QUIET, Parent, parent_of_ranks, recipe, write_pictures, write_recipe

from stagewright.api.ranks import _facts
from stagewright.errors import RecipeError
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
        yield parent


def plan(**fields: object) -> Plan:
    info = DatasetInfo(num_train=40, num_val=10, num_test=0, classes=("a", "b"), digest="")
    return resolve(recipes.from_dict({"model": {"options": {"width": 4}}, "image_size": 16, **fields}), info)


def test_more_processes_than_lanes() -> None:
    """Of stages with different numbers of lanes, the least counts."""
    stages = [{"epochs": "1st", "batch_size": 16}, {"epochs": "1st", "batch_size": 8}]
    assert plan(stages=stages, spread=2, micro_batch_size=4).most_devices == 2


def test_a_spread_above_the_batch() -> None:
    with pytest.raises(RecipeError) as caught:
        plan(batch_size=4, spread=5)
    assert "spread 5 over batches of 4" in caught.value.given and "spread up to 4" in caught.value.allowed


def test_what_must_be_equal() -> None:
    """See World.require_equal, which names what is not."""
    found = _facts(plan(), Execution(device="cpu"))
    assert list(found) == ["plan", "threads", "device", "torch", "stagewright"] and all(found.values())
    assert found["plan"] != _facts(plan(seed=1), Execution(device="cpu"))["plan"]


@pytest.mark.long
def test_refused_in_processes(parent: Parent, tmp_path: Path) -> None:
    """Before anything is trained: more ranks than lanes, in a train and in a resume; threads that differ; a network with a
    buffer of its own; a wrong recipe, which only the first process reads. The first says why; the others, who it was."""
    pictures = write_pictures(tmp_path / "stripes", train=12, val=4)
    fields = {"stages": [{"epochs": "2st"}], "lr": 0.05, "batch_size": 8, "eval": {"every": "1st"}}
    two = write_recipe(tmp_path / "two.yaml", recipe(spread=2, **fields))
    run = tmp_path / "run"

    def refused(arguments: list[str | Path], size: int, *texts: str) -> None:
        ranks = parent.start([*arguments, *QUIET], size)
        assert ranks.wait(60) == [2] + [69] * (size - 1), ranks._errors()
        assert all(text in ranks.said(0) for text in ("error: ", "allowed:", "to do:", *texts)), ranks.said(0)
        assert all(ranks.said(rank).startswith("rank 0 (") for rank in range(1, size))
        assert all(len(ranks.said(rank).splitlines()) == 1 for rank in range(1, size))

    train = ["train", pictures, "--out", run, "--recipe"]
    refused([*train, two], 3, "3 processes, but the plan divides each update into 2 lanes", "--spread 3")
    refused([*train, two, "--spread", "9"], 2, "spread 9 over batches of 8")
    refused([*train, "no-such-recipe"], 2, "no-such-recipe")
    assert not run.exists()

    parent.run([*train, two, "--until", "1st", *QUIET], 2)
    before = (run / "steps.csv").read_text()
    refused(["resume", run], 3, "3 processes", f"stagewright resume {run} --set spread=3")
    assert (run / "steps.csv").read_text() == before
    fault = {"rank": 1, "do": "threads"}
    ranks = parent.start(["resume", run, *QUIET], 2, fault=[fault])
    assert ranks.wait(60) == [2, 2]
    for rank in range(2):
        assert "the processes differ in threads: 1 on rank 0; 2 on rank 1" in ranks.said(rank)
    assert json.loads((run / "summary.json").read_text())["status"] == "paused"

    own = {**recipe(spread=2, **fields), "model": {"name": "python:own_parts:CountingNet"}}
    counting = write_recipe(tmp_path / "own.yaml", own)
    refused(["train", pictures, "--out", tmp_path / "own", "--recipe", counting], 2, "changes its buffer steps")
    assert not (tmp_path / "own").exists()
