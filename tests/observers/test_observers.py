from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.observers.console import Console
from stagewright.observers.report_pages import Pages
from stagewright.observers.text_log import TextLog
from stagewright.rundir.event_text import sentence

CLOCK = {"at": "2026-01-02T03:04:05.678+00:00", "epoch_seconds": 12.34, "images_per_second": 1234.5, "eta_seconds": 190}
EVENTS: dict[str, dict[str, Any]] = {
    "started": {"step": 0, "clock": {**CLOCK, "device_name": "CPU, 2 threads"}},
    "stage": {"step": 100, "stage": 1, "name": "middle", "trainable": 11_173_962, "frozen": 1_000},
    "evaluated": {
        **{"step": 200, "stage": 1, "stage_name": "middle", "epoch": 3.0, "train_loss": 1.23456, "train_top1": 61.2345},
        "results": {"raw": {"loss": 1.1111, "top1": 65.0}, "ema": {"loss": 1.0, "top1": 66.1}},
        **{"chosen": "ema", "best": True},
    },
    "resumed": {"step": 150, "checkpoint": "step_000150", "rejected": [{"name": "step_000200", "reason": "torn"}]},
    "bad_image": {"step": 151, "rows": [3], "paths": ["cat/a.jpg"], "reasons": ["truncated"]},
    "skipped": {"step": 152, "reason": "fp16 overflow"},
    "notice": {"step": 0, "text": "two\nlines"},
    "stopped": {"step": 160, "reason": "SIGTERM"},
    "finished": {"step": 300, "chosen": {"step": 200, "weights": "ema"}, "val_top1": 66.1, "test_top1": None},
}
PROGRESS = {
    **{"kind": "progress", "step": 1234, "stage": 1, "loss": 1.2345, "top1": 71.234, "lr": 0.0123, "memory_gb": 3.21},
    **{"images_per_second": 1234.5, "eta_seconds": 720.0, "clock": CLOCK},
}


def event(kind: str) -> dict[str, Any]:
    return {"kind": kind, "clock": CLOCK, **EVENTS[kind]}


def test_evaluation_line_says_what_a_person_wants() -> None:
    line = sentence(event("evaluated"))
    assert line is not None
    for part in (
        "epoch   3.00",
        "middle",
        "train 1.235",
        "61.2 %",
        "val 1.111",
        "65.00 %",
        "ema 1.000",
        "66.10 %",
        "best",
    ):
        assert part in line, line
    assert "12 s" in line and "1,234 img/s" in line and "ETA 3 min" in line


def test_columns_stay_aligned() -> None:
    one, other = event("evaluated"), event("evaluated")
    other.update(epoch=12.5, train_top1=100.0, best=False, stage_name="a-very-long-name")
    lines = [sentence(one), sentence(other)]
    assert all(lines) and {line.index(" ema ") for line in lines if line} == {lines[0].index(" ema ")}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", EVENTS)
def test_every_lasting_event_reaches_terminal_and_log(kind: str, tmp_path: Path) -> None:
    out = io.StringIO()
    console, log = Console(300, [("small", 0, 100), ("middle", 100, 200)], file=out), TextLog(tmp_path / "log.txt")
    for observer in (console, log):
        observer.see(json.loads(json.dumps(event(kind))))
        observer.close()
    words = sentence(event(kind))
    assert words is not None and words.splitlines()[0] in out.getvalue()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(line.startswith("2026-01-02 03:04:05  ") for line in lines) and len(lines) == len(words.splitlines())


def test_progress_names_everything() -> None:
    console = Console(5000, [("small", 0, 100), ("middle", 100, 4900)], file=io.StringIO())
    assert console.progress_text(PROGRESS) == (
        "stage 2/2 middle · step 1,234/5,000 · loss 1.234 · top-1 71.2 % · 1,234 img/s · 3.2 GB · LR 0.0123 · ETA 12 min"
    )


def test_no_progress_lines_flood_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(5000, [("small", 0, 100), ("middle", 100, 4900)], file=out)
    for at in range(100):
        now[0] = float(at)
        console.see(PROGRESS)
    assert len(out.getvalue().splitlines()) == 3


def test_quiet_is_quiet() -> None:
    out = io.StringIO()
    console = Console(300, [("a", 0, 300)], quiet=True, file=out)
    console.see(event("evaluated"))
    console.see(PROGRESS)
    console.close()
    assert out.getvalue() == ""


def test_pages_never_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeProcess] = []

    class FakeProcess:
        running = True

        def __init__(self, *_: Any, **__: Any) -> None:
            assert not any(one.running for one in started)
            started.append(self)

        def poll(self) -> int | None:
            return None if self.running else 0

        def wait(self, seconds: float | None = None) -> int:
            self.running = False
            return 0

        def send_signal(self, number: int) -> None:
            interrupted.append(self)

    interrupted: list[FakeProcess] = []
    monkeypatch.setattr("subprocess.Popen", FakeProcess)
    pages = Pages(tmp_path, min_seconds=0.0)
    for _ in range(3):
        pages.see(event("evaluated"))
    pages.see(PROGRESS)
    assert len(started) == 1
    started[0].running = False
    pages.see(event("evaluated"))
    assert len(started) == 2
    pages.see({**event("evaluated"), "clock": {"eta_seconds": 1.0}})
    pages.close()
    assert interrupted == [started[1]]  # what it would have shown, the last page shows
    assert len(started) == 3 and not any(one.running for one in started)


def test_no_page_is_begun_right_before_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: started.append(_))
    pages = Pages(tmp_path)
    pages.see({**event("evaluated"), "clock": {"eta_seconds": 1.0}})
    assert not started
    pages.see({**event("evaluated"), "clock": {"eta_seconds": 100.0}})
    assert len(started) == 1
