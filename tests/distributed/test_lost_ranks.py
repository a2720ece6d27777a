"""Runs of which a rank is lost, hangs, fails or is asked to stop: all ranks end soon, and say why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rank_runs import QUIET, Parent, parent_of_ranks, recipe, unequal, write_pictures, write_recipe
from ranks import Ranks

TIMEOUT = 4
TOLD = 4.2
"""After so many seconds in a step, the others know from the beats of a rank, one every 2 s, that it is there."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_ranks(tmp_path_factory.mktemp("ranks")) as parent:
        yield parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a recipe of one short stage."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "stripes")
    fields = {"stages": [{"epochs": "8st"}], "lr": 0.05, "batch_size": 16, "spread": 4}
    write_recipe(folder / "recipe.yaml", recipe(**fields))
    return folder


def train(data: Path, run: Path) -> list[str | Path]:
    options = ["--rank-timeout", str(TIMEOUT), *QUIET]
    return ["train", data / "stripes", "--recipe", data / "recipe.yaml", "--out", run, *options]


def ended(ranks: Ranks, but: int) -> float:
    """Waits until all ranks have ended ``but`` one; returns how many seconds ago that one stopped."""
    others = [ranks.pid(rank) for rank in range(ranks.size) if rank != but]
    _until(lambda: _state(ranks.pid(but)) == "T", 60)
    since = time.monotonic()
    _until(lambda: all(_state(pid) in "ZX" for pid in others), 60)
    return time.monotonic() - since


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _until(is_true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


def says(ranks: Ranks, rank: int, text: str) -> str:
    """The only line that ``rank`` has written to standard error, which contains ``text``."""
    (line,) = ranks.said(rank).splitlines()
    assert text in line
    return line


def is_in_the_record(run: Path, sentence: str) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (stopped,) = [event for event in events if event["kind"] == "stopped"]
    assert stopped["reason"] == sentence
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"] == sentence


@pytest.mark.long
@pytest.mark.parametrize(("rank", "phase"), [(1, "training"), (0, "training"), (0, "evaluation")])
def test_a_rank_that_is_killed(parent: Parent, data: Path, tmp_path: Path, rank: int, phase: str) -> None:
    fault = {"rank": rank, "do": "SIGKILL", "phase": phase, "step": 4, "after": TOLD}
    ranks = parent.start(train(data, tmp_path / "run"), 3, fault=[fault])
    assert ranks.wait(60) == [-9 if one == rank else 69 for one in range(3)]
    lines = [says(ranks, one, f"rank {rank} (") for one in range(3) if one != rank]
    for line in lines:
        assert f"pid {ranks.pid(rank)})" in line and f"in phase {phase} at step 4, last read: " in line
    if rank:  # else the store, by which they agree on the words, is gone with it
        assert lines[0] == lines[1]
        is_in_the_record(tmp_path / "run", lines[0])
    else:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "running"


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_rank_that_is_stopped(parent: Parent, data: Path, tmp_path: Path, rank: int) -> None:
    fault = {"rank": rank, "do": "SIGSTOP", "phase": "training", "step": 4, "after": TOLD}
    ranks = parent.start(train(data, tmp_path / "run"), 3, fault=[fault])
    try:
        assert ended(ranks, but=rank) < TIMEOUT + 12
    finally:
        ranks.kill(rank, signal.SIGKILL)
    assert ranks.wait(30) == [-9 if one == rank else 69 for one in range(3)]
    lines = [says(ranks, one, f"rank {rank} (") for one in range(3) if one != rank]
    assert lines[0] == lines[1]
    assert " in phase training at step 4, last read: pictures of step 5" in lines[0]
    if rank:
        is_in_the_record(tmp_path / "run", lines[0])


@pytest.mark.long
def test_a_rank_that_continues_after_it_was_given_up(parent: Parent, data: Path, tmp_path: Path) -> None:
    """It ends too, and writes nothing into the run."""
    fault = {"rank": 0, "do": "SIGSTOP", "phase": "training", "step": 4, "after": TOLD}
    ranks = parent.start(train(data, tmp_path / "run"), 2, fault=[fault])
    ended(ranks, but=0)
    ranks.kill(0, signal.SIGCONT)
    assert ranks.wait(60) == [69, 69]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_a_rank(parent: Parent, data: Path, tmp_path: Path, rank: int) -> None:
    fault = {"rank": rank, "do": "error", "phase": "training", "step": 4}
    ranks = parent.start(train(data, tmp_path / "run"), 3, fault=[fault])
    assert ranks.wait(60) == [1 if one == rank else 69 for one in range(3)]
    assert ranks.said(rank).count("Traceback") == 1
    sentence = f"rank {rank} ({os.uname().nodename}, pid {ranks.pid(rank)}) failed in phase training at step 4: "
    sentence += "ValueError: a fault of the test"
    assert {says(ranks, one, "") for one in range(3) if one != rank} == {sentence}
    is_in_the_record(tmp_path / "run", sentence if rank else "ValueError: a fault of the test")


@pytest.mark.parametrize("read", [1, 12])
def test_a_read_that_does_not_end(parent: Parent, data: Path, tmp_path: Path, read: int) -> None:
    """As of a disk behind a network that is gone, in one rank alone: the first read, and one in mid-training."""
    os.mkfifo(tmp_path / "fifo")
    fault = {"rank": 1, "do": "slow", "read": read, "fifo": str(tmp_path / "fifo")}
    ranks = parent.start(train(data, tmp_path / "run"), 2, fault=[fault])
    assert ranks.wait(60) == [69, 69]
    line = says(ranks, 0, "rank 1 (")
    assert "has made no progress since" in line and "in phase training at step " in line
    assert says(ranks, 1, line) == line
    is_in_the_record(tmp_path / "run", line)


def test_a_full_disk_at_rank_0(parent: Parent, data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        fault = {"rank": 0, "do": "fill", "phase": "training", "step": 3, "path": str(disk)}
        ranks = parent.start(train(data, disk / "run"), 3, fault=[fault])
        assert ranks.wait(60) == [2, 69, 69]
        assert "error: " in ranks.said(0) and "No space left" in ranks.said(0)
        assert says(ranks, 1, "rank 0 (") == says(ranks, 2, "failed in phase saving at step 4: StorageError: ")
        (disk / "filler").unlink()
        parent.run(["resume", disk / "run", *QUIET], 2)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.long)])
def test_a_signal_at_one_rank_stops_all(parent: Parent, data: Path, tmp_path: Path, name: str) -> None:
    """At one step, saved; a resume on another number of ranks gives the bits of a run that was not stopped."""
    fault = {"rank": 2, "do": name, "phase": "training", "step": 3}
    parent.run(train(data, tmp_path / "run"), 4, code=75, fault=[fault])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("stopped", 4)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["reason"] for event in events if event["kind"] == "stopped"] == [f"{name} at rank 2"]
    parent.run(["resume", tmp_path / "run", *QUIET], 3)
    parent.run(train(data, tmp_path / "unbroken"), 1)
    assert unequal(tmp_path / "unbroken", tmp_path / "run") == []


def launched(arguments: list[str | Path]) -> subprocess.Popen[str]:
    """``stagewright ARGUMENTS`` in processes of their own, not forked."""
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "stagewright", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def long_run(data: Path, tmp_path: Path) -> list[str | Path]:
    """Arguments of a run of 150 steps in ``tmp_path / "run"``, of which it is seen how far it is."""
    fields = {"stages": [{"epochs": "150st"}], "lr": 0.05, "batch_size": 16, "spread": 2, "eval": {"every": "75st"}}
    plan = write_recipe(tmp_path / "long.yaml", recipe(**fields, checkpoints={"every": "5st"}))
    return ["train", data / "stripes", "--recipe", plan, "--out", tmp_path / "run", *QUIET]


def _children(launcher: subprocess.Popen[str]) -> list[int]:
    return list(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


def _ends_as_one_process(parent: Parent, arguments: list[str | Path], run: Path) -> None:
    alone = run.parent / "alone"
    parent.run([alone if one == run else one for one in arguments], 1)
    assert unequal(alone, run) == []


@pytest.mark.long
def test_the_launcher_says_which_rank_was_lost(parent: Parent, long_run: list[str | Path], tmp_path: Path) -> None:
    """What it knows itself, and the one sentence on which the other ranks agree; then a resume has the bits of one process."""
    run = tmp_path / "run"
    launcher = launched([*long_run, "--nproc", "2"])
    try:
        _until(lambda: _steps(run) >= 5, 120)
        victim = _children(launcher)[1]
        os.kill(victim, signal.SIGKILL)
        said = launcher.communicate(timeout=60)[1]
    finally:
        launcher.kill()
        launcher.communicate()
    assert launcher.returncode == 69, said
    lines = said.splitlines()
    assert len(lines) == 2
    assert f"rank 1 (host {os.uname().nodename}, pid {victim}) was ended by SIGKILL" in lines[0]
    assert lines[1].startswith(f"rank 1 ({os.uname().nodename}, pid {victim}) has ended since ")
    is_in_the_record(run, lines[1])
    parent.run(["resume", run, *QUIET], 2)
    _ends_as_one_process(parent, long_run, run)


@pytest.mark.long
def test_the_launcher_stops_and_starts_again(parent: Parent, long_run: list[str | Path], tmp_path: Path) -> None:
    """A signal to it stops all ranks, saved; after the loss of rank 0 it starts all again by itself."""
    run = tmp_path / "run"
    launcher = launched([*long_run, "--nproc", "2"])
    try:
        _until(lambda: _steps(run) >= 5, 120)
        launcher.send_signal(signal.SIGTERM)
        said = launcher.communicate(timeout=60)[1]
        assert launcher.returncode == 75 and said.count("Stopped and saved") == 1, said
        stopped_at = _steps(run)
        launcher = launched(["resume", run, "--nproc", "2", "--max-restarts", "1", *QUIET])
        _until(lambda: _steps(run) > stopped_at + 5, 120)
        os.kill(_children(launcher)[0], signal.SIGKILL)
        said = launcher.communicate(timeout=120)[1]
        assert launcher.returncode == 0 and "all are started again (restart 1 of 1)" in said, said
    finally:
        launcher.kill()
        launcher.communicate()
    _ends_as_one_process(parent, long_run, run)


def _steps(run: Path) -> int:
    """How many updates the newest checkpoint has."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_[0-9]*")), default=0)
