"""The spot drill: a machine is taken at a random moment, with its disk; another one goes on from the mirror, with the same
bits."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from mirror_runs import kill_all, lacks, mirror_recipe, same_results, start, until
from object_server import ObjectServer
from rank_runs import QUIET, Parent

from stagewright.rundir.event_kinds import Resumed
from stagewright.rundir.events import read_events


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_a_run_that_loses_its_machine_again_and_again(
    seed: int, bucket: str, object_server: ObjectServer, parent: Parent, pictures: Path, tmp_path: Path
) -> None:
    """Three machines are taken at random moments of the mirror: in the middle of an upload, between state and meta.json, ..."""
    recipe, draw = mirror_recipe(tmp_path), random.Random(seed)
    parent.run(("train", pictures, "-r", recipe, "--out", tmp_path / "unbroken", *QUIET), 1)
    url = f"{bucket}/drill"

    def taken(out: Path, size: int) -> None:
        """The life of one machine, from its start to the moment when it is taken, with its disk."""
        object_server.requests(clear=True)
        ranks = start(parent, pictures, recipe, out, url, size)
        moment = draw.randint(25, 80)  # requests since the start: about as many as half of the run makes
        until(lambda: object_server.num_requests() >= moment, 90)
        kill_all(ranks)
        ranks.wait()
        assert not (out / "model" / "model.json").exists(), "the moment must lie within the run"
        shutil.rmtree(out.parent)

    for machine in range(3):
        taken(tmp_path / f"machine-{machine}" / "run", draw.choice([1, 2, 3] if seed else [1, 2]))
    out, size = tmp_path / "last" / "run", draw.choice([1, 2, 3] if seed else [1, 2])
    ranks = start(parent, pictures, recipe, out, url, size)
    assert ranks.wait() == [0] * size, ranks.said(0)
    assert same_results(tmp_path / "unbroken", out) == [] and lacks(out) == []
    events = [one.event for one in read_events(out / "events.jsonl")]
    went_on = [event.checkpoint for event in events if isinstance(event, Resumed)]
    assert any(went_on), "at least one machine must have gone on from the mirror"
