"""Nobody waits for ever: processes that stop, die, fail or hang, seen by those that are left."""

from __future__ import annotations

import re
from pathlib import Path

from ranks import Ranks, start_worlds

from stagewright.distributed.heartbeat import Heartbeat, explain_lost
from stagewright.distributed.world import World
from stagewright.system.signals import EXIT_LOST

SIZE = 3


def told(ranks: Ranks, lost: int, *others: int) -> str:
    """Every rank in ``others`` wrote one line that names the lost rank; returns the first one's. They are the same, except where
    the store is lost with rank 0, so that each has its own last beat."""
    lines = [ranks.said(rank).strip() for rank in others]
    for line in lines:
        assert re.fullmatch(rf"rank {lost} \(\S+, pid {ranks.pid(lost)}\) .*", line), line
    assert len(set(lines)) == 1 or lost == 0, lines
    return lines[0]


def test_processes_that_hang_are_named(tmp_path: Path) -> None:
    """Stopped; rank 0 stopped, which serves the store; a read that never ends; ranks that wait for each other."""
    fates = {
        "stopped": {"what": "stopped", "at": 1},
        "first stopped": {"what": "stopped", "at": 0},
        "read": {"what": "read", "at": 2},
        "apart": {"what": "apart", "at": 1},
    }
    with start_worlds(tmp_path / "ranks", "beating", SIZE, fates) as worlds:
        for name, lost in (("stopped", 1), ("first stopped", 0)):
            ranks, others = worlds[name], [rank for rank in range(SIZE) if rank != lost]
            for rank in others:
                ranks.until(f"{rank}.ended")
                assert (ranks.folder / f"{rank}.lost").read_text() == ranks.said(rank).strip()
            line = told(ranks, lost, *others)
            assert re.search(
                r"has been silent since \d\d:\d\d:\d\d in phase train at step \d+, last read: image-", line
            )
            ranks.kill(lost, 9)
            codes = ranks.wait()
            assert [codes[rank] for rank in others] == [EXIT_LOST] * 2
        ranks = worlds["read"]
        assert ranks.wait() == [EXIT_LOST] * SIZE
        line = told(ranks, 2, 0, 1, 2)
        assert "has made no progress since" in line and "step 60, last read: " in line and line.endswith("pipe")
        ranks = worlds["apart"]
        assert ranks.wait() == [EXIT_LOST] * SIZE
        assert "has waited for others, as do ranks 0-2, since" in told(ranks, 0, 0, 1, 2)


def test_processes_that_die_or_fail_are_named(tmp_path: Path) -> None:
    """kill -9; kill -9 of rank 0, which serves the store; an error, which the others hear of before the timeout."""
    fates = {
        "killed": {"what": "killed", "at": 1, "timeout": 60},
        "first killed": {"what": "killed", "at": 0, "timeout": 60},
        "error": {"what": "error", "at": 2, "timeout": 60},
        "first error": {"what": "error", "at": 0, "timeout": 60},
        "slow": {"what": "slow", "at": 1},
        "busy": {"what": "busy", "at": 1},
    }
    with start_worlds(tmp_path / "ranks", "beating", SIZE, fates) as worlds:
        assert worlds["killed"].wait() == [EXIT_LOST, -9, EXIT_LOST]
        assert "in phase train at step" in told(worlds["killed"], 1, 0, 2)
        assert worlds["first killed"].wait() == [-9, EXIT_LOST, EXIT_LOST]
        told(worlds["first killed"], 0, 1, 2)
        for name, lost in (("error", 2), ("first error", 0)):
            ranks, others = worlds[name], [rank for rank in range(SIZE) if rank != lost]
            codes = ranks.wait()
            assert codes[lost] == 1 and [codes[rank] for rank in others] == [EXIT_LOST] * 2
            assert told(ranks, lost, *others).endswith(
                "failed in phase train at step 60: ValueError: a number is wrong"
            )
            assert ranks.said(lost).count("ValueError: a number is wrong") == 1
        for name in ("slow", "busy"):
            assert worlds[name].wait() == [0] * SIZE, [worlds[name].said(rank) for rank in range(SIZE)]
            assert [worlds[name].said(rank) for rank in range(SIZE)] == [""] * SIZE


def test_alone_there_is_no_heartbeat() -> None:
    with Heartbeat(World.alone("cpu"), rank_timeout=0.01) as heartbeat:
        heartbeat.at("train", 1)
        heartbeat.alive("a.jpg")
        with heartbeat.busy():
            pass
        heartbeat.fail("an error")
    assert heartbeat._threads == []


def test_an_error_of_another_kind_is_not_explained() -> None:
    heartbeat = Heartbeat(World.alone("cpu"))
    assert explain_lost(ValueError("Connection closed by peer"), heartbeat) is None
    assert explain_lost(RuntimeError("shapes do not match"), heartbeat) is None
