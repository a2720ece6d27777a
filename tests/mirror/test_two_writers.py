"""Two machines at one mirror: the first sleeps, the second takes over; when the first wakes, it uploads nothing and ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mirror_runs import lacks, mirror_recipe, same_results, start, until
from object_server import ObjectServer
from rank_runs import QUIET, Parent

from stagewright.mirror.names import complete_steps
from stagewright.mirror.owner import read_owner
from stagewright.mirror.remote import names_in
from stagewright.rundir import checkpoint
from stagewright.storage.objects import open_store
from stagewright.system.signals import EXIT_LOST


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_first_of_two_writers_ends_when_it_wakes(
    size: int, bucket: str, object_server: ObjectServer, parent: Parent, pictures: Path, tmp_path: Path
) -> None:
    recipe, url = mirror_recipe(tmp_path, 20, saves="2st", eval={"every": "40st"}), f"{bucket}/run"
    store = open_store(url)
    first = start(parent, pictures, recipe, tmp_path / "first", url, size)
    until(lambda: any(step >= 4 for step in complete_steps(names_in(store, url))), what="the first one uploads")
    for rank in range(size):
        os.kill(first.pid(rank), signal.SIGSTOP)
    second = start(parent, pictures, recipe, tmp_path / "second", url)
    until(
        lambda: _number(url) == 2 and (tmp_path / "second" / "events.jsonl").exists(), what="the second one takes over"
    )
    until(lambda: max(checkpoint.steps(tmp_path / "second" / "checkpoints"), default=0) >= 8, what="it goes on")
    object_server.requests(clear=True)
    for rank in range(size):
        os.kill(first.pid(rank), signal.SIGCONT)
    began = time.monotonic()
    codes = first.wait(60)
    assert time.monotonic() - began < 30 and codes[0] == EXIT_LOST, (codes, first.said(0))
    said = first.said(0)
    assert f"was taken over by process {second.pid(0)} on " in said and str(tmp_path / "first") in said
    assert second.wait(120) == [0], second.said(0)
    assert lacks(tmp_path / "second") == []
    assert 4 <= checkpoint.steps(tmp_path / "first" / "checkpoints")[-1] < 40, (
        "it saves and ends, it does not train to the end"
    )
    if size > 1:  # what the first has saved goes on without the mirror, to the same bits
        parent.run(("resume", tmp_path / "first", "--mirror", "none", *QUIET), 1)
        assert same_results(tmp_path / "first", tmp_path / "second") == []
    names = [name for name in names_in(store, url) if "state" in name]
    assert {name.split("/")[1] for name in names} == {
        checkpoint.name_of(step) for step in complete_steps(names_in(store, url))
    }


def _number(url: str) -> int:
    seen = read_owner(open_store(url), url)
    return 0 if seen is None else seen[0].number
