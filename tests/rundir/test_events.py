"""The event log and the CSV files keyed by step: their content after any interruption, and calls of observers."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_events import make_event

from stagewright.errors import CheckpointError, StorageError
from stagewright.rundir.event_kinds import KINDS, BadImages, Evaluated, Event, Notice, Rejected, Result, Resumed, Saved
from stagewright.rundir.events import EventLog, comparable, live_events, read_events
from stagewright.rundir.step_table import Cell, StepLog, read_rows
from stagewright.storage.append_file import AppendFile


class Seer:
    """Keeps what it is told; throws at kinds in ``throws``."""

    def __init__(self, *throws: str) -> None:
        self.seen: list[Event] = []
        self.throws, self.closed = throws, False

    def see(self, event: Event) -> None:
        self.seen.append(event)
        if event.kind in self.throws:
            raise RuntimeError(f"no {event.kind} please")

    def close(self) -> None:
        self.closed = True
        if "close" in self.throws:
            raise RuntimeError("no closing please")

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.seen]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def resumed(step: int) -> Resumed:
    return Resumed(step=step, checkpoint=None, rejected=())


def write(path: Path, *events: tuple[str, int], resume_step: int | None = None) -> None:
    log = EventLog(path, resumed=None if resume_step is None else resumed(resume_step))
    for kind, step in events:
        log.emit(make_event(kind, step=step))
    log.close()


def short(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in events]


def shared(path: Path) -> list[tuple[str, int]]:
    """What counts in the log and is compared between runs."""
    return [(event["kind"], event["step"]) for event in comparable(live_events(path))]


def kinds(path: Path) -> list[str]:
    return [one.event.kind for one in read_events(path)]


def test_an_event_is_a_line_with_a_clock(path: Path) -> None:
    log = EventLog(path)
    log.emit(Saved(step=7, checkpoint="step_000007", peak_gb=1.5))
    log.emit(BadImages(step=8, rows=(1, 2), paths=("a/\udcff.jpg", "b/größe.png"), reasons=("torn", "empty")))
    log.sync()
    first, second = path.read_text().splitlines()
    event = json.loads(first)
    assert event.pop("clock").keys() == {"at", "peak_gb"}
    assert event == {"kind": "saved", "step": 7, "checkpoint": "step_000007"}
    assert json.loads(second)["paths"] == ["a/\udcff.jpg", "b/größe.png"]
    assert json.loads(second)["clock"]["at"].endswith("+00:00")
    log.close()


def test_floats_come_back_to_the_bit_even_where_not_finite(path: Path) -> None:
    given = [0.1, 1e-320, -0.0, math.inf, math.nan]
    log = EventLog(path)
    for value in given:
        log.emit(make_event("evaluated", train_loss=value))
    log.close()
    losses = [one.event.train_loss for one in read_events(path) if isinstance(one.event, Evaluated)]
    assert [struct.pack("d", loss) for loss in losses] == [struct.pack("d", value) for value in given]


def test_observers_see_everything_and_the_log_keeps_what_lasts(path: Path) -> None:
    seer = Seer()
    log = EventLog(path, [seer])
    for kind in ("started", "progress", "stage", "evaluating", "computing", "evaluated"):
        log.emit(make_event(kind))
    log.close()
    assert seer.kinds == ["started", "progress", "stage", "evaluating", "computing", "evaluated"]
    assert seer.closed
    assert kinds(path) == ["started", "stage", "evaluated"]


def test_an_observer_can_change_nothing(path: Path) -> None:
    """Neither by an assignment, nor within a mapping, nor by force: each has an object of its own."""
    refused: list[str] = []

    class Vandal(Seer):
        def see(self, event: Event) -> None:
            deeds: list[Callable[[Any], None]] = [
                lambda event: setattr(event, "chosen", "raw"),
                lambda event: event.results.clear(),
                lambda event: event.results.__setitem__("raw", None),
                lambda event: setattr(event.results["raw"], "top1", 100.0),
            ]
            for deed in deeds:
                try:
                    deed(event)
                except (AttributeError, TypeError) as error:
                    refused.append(type(error).__name__)
            object.__setattr__(event, "results", {})

    results = {"raw": Result(loss=0.1, top1=1.0, top5=None, images=1, unreadable=0)}
    event, seer = make_event("evaluated", results=results, chosen="raw"), Seer()
    log = EventLog(path, [Vandal(), seer])
    log.emit(event)
    results.clear()  # what the caller has is the caller's, too
    log.close()
    assert refused == ["FrozenInstanceError", "AttributeError", "AttributeError", "FrozenInstanceError"]
    wanted = {"raw": Result(loss=0.1, top1=1.0, top5=None, images=1, unreadable=0)}
    for one in (event, seer.seen[0], read_events(path)[0].event):
        assert isinstance(one, Evaluated)
        assert one.results == wanted


def test_an_observer_that_throws_is_named_once_and_switched_off(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Seer(), Seer("stage")
    log = EventLog(path, [bad, good])
    for kind, step in (("started", 0), ("stage", 3), ("evaluated", 4)):
        log.emit(make_event(kind, step=step))
    log.close()
    assert bad.kinds == ["started", "stage"]
    assert good.kinds == ["started", "notice", "stage", "evaluated"]
    notice = read_events(path)[2].event
    assert isinstance(notice, Notice)
    assert notice.step == 3
    assert notice.text == "Seer failed and is switched off: RuntimeError: no stage please"
    assert caplog.text.count("Traceback") == 1
    assert shared(path) == [("stage", 3), ("evaluated", 4)]


def test_observers_that_throw_at_each_others_notices(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seers = [Seer("stage", "notice"), Seer("stage", "notice"), Seer("close")]
    log = EventLog(path, seers)
    log.emit(make_event("stage"))
    log.close()
    assert kinds(path) == ["stage", "notice", "notice"]
    assert [seer.closed for seer in seers] == [False, False, True]
    assert "Seer failed on closing" in caplog.text


def test_a_new_run_does_not_write_into_an_old_log(path: Path) -> None:
    path.touch()
    write(path, ("started", 0))
    with pytest.raises(CheckpointError, match=r"events\.jsonl already holds the events of a run") as error:
        EventLog(path)
    assert "a new run directory" in error.value.allowed
    assert "stagewright resume" in error.value.remedy


def test_a_resume_supersedes_what_lies_past_its_step(path: Path) -> None:
    write(path, ("started", 0), ("stage", 0), ("evaluated", 5), ("saved", 5), ("stage", 6), ("evaluated", 7))
    write(path, ("stage", 6), ("evaluated", 10), ("saved", 10), ("evaluated", 15), resume_step=5)
    write(path, ("evaluated", 15), resume_step=10)
    assert short(live_events(path)) == [
        *(("started", 0), ("stage", 0), ("evaluated", 5), ("saved", 5)),
        *(("resumed", 5), ("stage", 6), ("evaluated", 10), ("saved", 10)),
        *(("resumed", 10), ("evaluated", 15)),
    ]
    write(path, ("stage", 6), ("evaluated", 7), resume_step=5)  # the checkpoint of step 10 was damaged
    assert shared(path) == [("stage", 0), ("evaluated", 5), ("stage", 6), ("evaluated", 7)]
    flags = [one.superseded for one in read_events(path)]
    assert flags == [False] * 4 + [True] * 2 + [False] + [True] * 6 + [False] * 3


def test_a_resume_says_what_it_resumed_from(path: Path) -> None:
    write(path, ("started", 0))
    rejected = (Rejected(name="step_000009", reason="torn"),)
    log = EventLog(path, resumed=Resumed(step=4, checkpoint="step_000004", rejected=tuple(rejected)))
    log.close()
    event = live_events(path)[-1]
    assert event == Resumed(step=4, time=event.time, checkpoint="step_000004", rejected=rejected)


def test_a_resume_from_nothing_starts_over(path: Path) -> None:
    write(path, ("started", 0), ("stage", 0), ("evaluated", 1))
    write(path, ("stage", 0), ("evaluated", 1), resume_step=0)
    write(path.with_name("lost.jsonl"), ("stage", 0), ("evaluated", 1), resume_step=0)
    assert comparable(live_events(path)) == comparable(live_events(path.with_name("lost.jsonl")))


def test_what_a_lost_process_wrote_at_the_very_step_of_its_checkpoint_is_not_there_twice(path: Path) -> None:
    """Saved at 5, and killed either before or after the event of the stage that begins with step 5."""
    for already in ([], [("stage", 5)], [("stage", 5), ("bad_image", 5)]):
        path.unlink(missing_ok=True)
        write(path, ("stage", 0), ("saved", 5), *already)
        seer = Seer()
        log = EventLog(path, [seer], resumed=resumed(5))
        for kind in ("stage", "bad_image", "saved"):
            log.emit(make_event(kind, step=5))
        log.close()
        assert shared(path) == [("stage", 0), ("stage", 5), ("bad_image", 5)]
        assert seer.kinds == ["resumed", "stage", "bad_image", "saved"]
    write(path, ("stage", 0), resume_step=7)
    log = EventLog(path, resumed=resumed(7))
    log.emit(make_event("stage", step=5, name="another"))
    log.close()
    assert len(comparable(live_events(path))) == 4


def test_a_torn_last_line_is_cut_and_said(path: Path) -> None:
    write(path, ("started", 0), ("stage", 0))
    with path.open("ab") as file:
        file.write(b'{"kind": "evaluated", "st')
    assert short(live_events(path)) == [("started", 0), ("stage", 0)]
    write(path, ("evaluated", 3), resume_step=0)
    assert short(live_events(path)) == [("started", 0), ("stage", 0), ("resumed", 0), ("notice", 0), ("evaluated", 3)]
    notice = read_events(path)[3].event
    assert isinstance(notice, Notice)
    assert notice.text == "cut 25 bytes of an unfinished last line from events.jsonl"


def test_a_damaged_line_in_the_middle_is_left_out_and_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, ("started", 0), ("stage", 0), ("evaluated", 3))
    lines = path.read_bytes().split(b"\n")
    for damage in (b"\x00" * 9, b'{"kind": "st', b"[]", b"17", b'{"step": 1}', b"\xff", b"[" * 100_000):
        path.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
        caplog.clear()
        assert short(live_events(path)) == [("started", 0), ("evaluated", 3)]
        assert "line 2 is damaged" in caplog.text


def test_comparable_leaves_out_what_depends_on_time_and_interruptions(path: Path) -> None:
    log = EventLog(path)
    for kind in KINDS:
        log.emit(make_event(kind, step=1))
    log.close()
    compared = comparable(live_events(path))
    assert [event["kind"] for event in compared] == [
        *("stage", "evaluated", "bad_image", "skipped", "rolled_back", "suspect", "ended_early", "finished")
    ]
    assert all("clock" not in event for event in compared)


def full_disk(keep: int) -> Callable[..., int]:
    """Returns an os.write that writes ``keep`` bytes of its argument and then raises "disk full"."""
    write, state = os.write, {"calls": 0}

    def call(descriptor: int, data: bytes) -> int:
        state["calls"] += 1
        if state["calls"] == 1 and keep:
            return write(descriptor, bytes(data[:keep]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return call


@pytest.mark.parametrize("keep", [0, 10])
def test_a_full_disk_tears_no_line(path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    log, rows = EventLog(path), StepLog(path.with_name("steps.csv"), ["step", "loss"])
    log.emit(make_event("started"))
    rows.append([[1, 0.5]])
    before = path.read_bytes(), rows.path.read_bytes()
    for deed in (lambda: log.emit(make_event("stage")), lambda: rows.append([[2, 1 / 3], [3, 1 / 3]])):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full_disk(keep))
            with pytest.raises(StorageError, match="cannot be written: No space left on device") as error:
                deed()
        assert "a disk with free space" in error.value.allowed
        assert "nothing saved so far is lost" in error.value.remedy
    assert (path.read_bytes(), rows.path.read_bytes()) == before
    rows.append([[2, 0.25]])
    assert rows.rows()[-1] == {"step": "2", "loss": "0.25"}
    log.close()
    rows.close()


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError,
        match=r"none/steps\.csv cannot be written: No such file or directory; the folder",
    ):
        StepLog(tmp_path / "none" / "steps.csv", ["step"])


HEADER = ("step", "stage", "loss")


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[StepLog]:
    with StepLog(tmp_path / "steps.csv", HEADER) as log:
        yield log


def test_cells(steps: StepLog) -> None:
    rows: list[list[Cell]] = [
        [1, "warm, up", 0.1],
        [cast(int, np.int64(2)), "two\nlines", np.float64(1 / 3)],
        [2, None, math.nan],
        [3, True, math.inf],
        [4, 'a "b"', -0.0],
        [5, False, 1e-320],
    ]
    steps.append(rows)
    steps.sync()
    assert steps.path.read_text() == (
        'step,stage,loss\n1,"warm, up",0.1\n2,two lines,0.3333333333333333\n2,,nan\n'
        '3,true,inf\n4,"a ""b""",-0.0\n5,false,1e-320\n'
    )
    assert steps.rows()[0] == {"step": "1", "stage": "warm, up", "loss": "0.1"}
    assert [row["stage"] for row in read_rows(steps.path)] == ["warm, up", "two lines", "", "true", 'a "b"', "false"]


@settings(deadline=None)
@given(st.floats(allow_nan=False))
def test_every_float_reads_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("floats") / "steps.csv"
    with StepLog(path, ["step", "loss"]) as log:
        log.append([[1, value]])
    assert struct.pack("d", float(read_rows(path)[0]["loss"])) == struct.pack("d", value)


def test_rows_that_cannot_be_meant(steps: StepLog) -> None:
    steps.append([[5, "a", 1.0]])
    before = steps.path.read_bytes()
    for rows, error, match in (
        ([[6, "a"]], ValueError, r"steps\.csv has 3 columns, the row 2"),
        ([[6, "a", 1.0], [4, "a", 1.0]], ValueError, r"steps\.csv: step 4 after step 6"),
        ([[4, "a", 1.0]], ValueError, r"steps\.csv: step 4 after step 5"),
        ([["6", "a", 1.0]], TypeError, "integer"),
        ([[6, "a", np.float32(1)]], TypeError, "integer"),
    ):
        with pytest.raises(error, match=match):
            steps.append(cast(list[list[Cell]], rows))
    assert steps.path.read_bytes() == before


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("step,loss\n1,0.5\n")
    with pytest.raises(CheckpointError, match="has the columns step,loss") as error:
        StepLog(path, HEADER)
    assert error.value.allowed == "step,stage,loss"
    assert "start a new run" in error.value.remedy
    assert path.read_text() == "step,loss\n1,0.5\n"


def rows_of(steps: range) -> list[list[Cell]]:
    return [[step, f"stage{step % 3}", 1 / (step + 1)] for step in steps]


TAILS = {
    "nothing": b"",
    "torn": b"13,sta",
    "torn number": b"1",
    "zeros": b"\x00" * 300,
    "zeros and a newline": b"\x00" * 300 + b"\n",
    "a short row": b"13,stage1\n",
    "an empty line": b"\n",
    "words": b"hello,world,again\n",
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("step", [0, 1, 7, 12, 13, 99])
def test_truncating_gives_the_bytes_of_a_run_that_ended_there(tmp_path: Path, tail: str, step: int) -> None:
    unbroken, broken = tmp_path / "a.csv", tmp_path / "b.csv"
    with StepLog(unbroken, HEADER) as log:
        log.append(rows_of(range(1, 21)))
    with StepLog(broken, HEADER) as log:
        log.append(rows_of(range(1, 13)))
    with broken.open("ab") as file:
        file.write(TAILS[tail])
    with StepLog(broken, HEADER) as log:
        log.truncate_after(step)
        last = min(step, 12)
        assert [int(row["step"]) for row in log.rows()] == list(range(1, last + 1))
        log.append(rows_of(range(last + 1, 21)))
    assert broken.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("length", range(len("step,stage,loss\n1,s,2.5\n")))
def test_a_file_cut_at_any_byte_goes_on(tmp_path: Path, length: int) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(b"step,stage,loss\n1,s,2.5\n"[:length])
    with StepLog(path, HEADER) as log:
        assert log.rows() == []
        log.append([[1, "s", 2.5]])
    assert path.read_bytes() == b"step,stage,loss\n1,s,2.5\n"


def test_a_big_file_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StepLog(tmp_path / "steps.csv", HEADER) as log:
        log.append(rows_of(range(1, 60_001)))
    with StepLog(log.path, HEADER) as log:
        read: list[int] = []
        pread = os.pread

        def counted(descriptor: int, count: int, offset: int) -> bytes:
            read.append(count)
            return pread(descriptor, count, offset)

        monkeypatch.setattr(os, "pread", counted)
        log.truncate_after(59_000)
        assert sum(read) < 200_000 < log.path.stat().st_size / 5
        assert log.rows()[-1]["step"] == "59000"
        # Far enough back that the search crosses many blocks, each boundary within a line.
        log.truncate_after(10)
    expected = tmp_path / "expected.csv"
    with StepLog(expected, HEADER) as log:
        log.append(rows_of(range(1, 11)))
    assert (tmp_path / "steps.csv").read_bytes() == expected.read_bytes()


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lines = [b"a" * 200_000, b"b" * 65_535, b"c" * 65_536, b"", b"d"]
    path.write_bytes(b"\n".join(lines) + b"\ntorn")
    file = AppendFile(path)
    assert file.cut_bytes == 4
    for line in reversed(lines):
        assert file.last_line() == line
        file.cut_while(lambda last, line=line: last == line)
    assert path.read_bytes() == b""
    file.close()


def test_rows_of_a_running_file_leave_out_the_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(b"step,loss\n1,0.5\n2,0.2")
    assert read_rows(path) == [{"step": "1", "loss": "0.5"}]
    assert path.read_bytes().endswith(b"0.2")
    path.write_bytes(b"ste")
    assert read_rows(path) == []
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "none.csv")


RUN = """
import os, sys
from pathlib import Path
from stagewright.rundir.event_kinds import ChosenWeights, EndedEarly, Finished, Resumed, StageBegun
from stagewright.rundir.events import EventLog
from stagewright.rundir.step_table import StepLog

folder, first, total, die = Path(sys.argv[1]), *map(int, sys.argv[2:])
with StepLog(folder / "steps.csv", ["step", "loss"]) as rows:
    rows.truncate_after(first)
    again = Resumed(step=first, checkpoint=None, rejected=()) if (folder / "events.jsonl").exists() else None
    events = EventLog(folder / "events.jsonl", resumed=again)
    for step in range(first, total):
        if step % 4 == 0:
            events.emit(StageBegun(step=step, stage=step // 4, name="a", trainable=1, frozen=0))
        rows.append([[step + 1, 1 / (step + 1)]])
        if (step + 1) % 3 == 0:
            events.emit(EndedEarly(step=step + 1, reason=str(1 / (step + 1))))
        if step + 1 == die:
            os.kill(os.getpid(), 9)
    events.emit(Finished(step=total, chosen=ChosenWeights(step=1, weights="raw"), val_top1=None, test_top1=None))
    events.close()
"""


def test_killed_and_resumed_gives_the_same_events_and_bytes(tmp_path: Path) -> None:
    def go(name: str, *parts: tuple[int, int]) -> tuple[list[dict[str, Any]], bytes]:
        (tmp_path / name).mkdir()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        for first, die in parts:
            arguments = [sys.executable, "-c", RUN, str(tmp_path / name), str(first), "14", str(die)]
            done = subprocess.run(arguments, env=env, timeout=60, check=False)
            assert done.returncode == (-signal.SIGKILL if die else 0)
        return comparable(live_events(tmp_path / name / "events.jsonl")), (tmp_path / name / "steps.csv").read_bytes()

    unbroken = go("unbroken", (0, 0))
    assert len(unbroken[0]) == 9
    assert go("broken", (0, 2), (0, 9), (4, 6), (6, 12), (12, 0)) == unbroken


def test_neither_room_imports_torch() -> None:
    modules = "stagewright.rundir.events, stagewright.system.signals, stagewright.plan.schedule"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False).returncode == 0


def test_a_file_that_the_system_hands_out_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short read of a network file system truncated metrics.csv (found by tests/test_storm.py)."""
    rows = StepLog(path.with_name("steps.csv"), ["step", "loss"])
    rows.append([[step, step / 7] for step in range(1, 200)])
    rows.close()
    whole, pread = rows.path.read_bytes(), os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, at: pread(descriptor, max(1, count // 2), at))
    again = StepLog(rows.path, ["step", "loss"])
    assert rows.path.read_bytes() == whole
    again.truncate_after(150)
    assert again.rows()[-1]["step"] == "150"
    again.close()
