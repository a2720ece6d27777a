from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from sample_events import make_event

from stagewright.observers.console import Console
from stagewright.observers.report_pages import Pages
from stagewright.observers.text_log import TextLog
from stagewright.rundir.event_kinds import KINDS, Progress
from stagewright.rundir.event_text import sentence
from stagewright.system.notebook import NotebookPlace

SAID = sorted(kind for kind, one in KINDS.items() if one.in_file and kind not in ("saved", "memory"))
PROGRESS = make_event("progress")


def test_evaluation_line_says_what_a_person_wants() -> None:
    line = sentence(make_event("evaluated"))
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
    one = make_event("evaluated")
    other = make_event("evaluated", epoch=12.5, train_top1=100.0, best=False, stage_name="a-very-long-name")
    lines = [sentence(one), sentence(other)]
    assert all(lines) and {line.index(" ema ") for line in lines if line} == {lines[0].index(" ema ")}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", SAID)
def test_every_lasting_event_reaches_terminal_and_log(kind: str, tmp_path: Path) -> None:
    out = io.StringIO()
    console, log = Console(300, [("small", 0, 100), ("middle", 100, 200)], file=out), TextLog(tmp_path / "log.txt")
    for observer in (console, log):
        observer.see(make_event(kind))
        observer.close()
    words = sentence(make_event(kind))
    assert words is not None
    assert words.splitlines()[0] in out.getvalue() or (kind == "evaluated" and "66.10 %" in out.getvalue())
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(line.startswith("2026-01-02 03:04:05  ") for line in lines) and len(lines) == len(words.splitlines())


def test_progress_names_everything() -> None:
    console = Console(5000, [("small", 0, 100), ("middle", 100, 4900)], file=io.StringIO())
    assert isinstance(PROGRESS, Progress)
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
    console.see(make_event("evaluated"))
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
        pages.see(make_event("evaluated"))
    pages.see(PROGRESS)
    assert len(started) == 1
    started[0].running = False
    pages.see(make_event("evaluated"))
    assert len(started) == 2
    pages.see(make_event("evaluated", eta_seconds=1.0))
    pages.close()
    assert interrupted == [started[1]]  # what it would have shown, the last page shows
    assert len(started) == 3 and not any(one.running for one in started)


def test_no_page_is_begun_right_before_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: started.append(_))
    pages = Pages(tmp_path)
    pages.see(make_event("evaluated", eta_seconds=1.0))
    assert not started
    pages.see(make_event("evaluated", eta_seconds=100.0))
    assert len(started) == 1


def test_what_was_said_before_and_memory_are_for_the_log_alone(tmp_path: Path) -> None:
    out = io.StringIO()
    console, log = Console(300, [("a", 0, 300)], file=out), TextLog(tmp_path / "log.txt")
    events = make_event("notice", text="1,797 images in 10 classes", already_shown=True), make_event("memory")
    for event in events:
        console.see(event)
        log.see(event)
    log.close()
    assert out.getvalue() == ""
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_in_a_notebook_progress_is_one_place_in_the_cell(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Terminal codes would be shown as text there, and a line each half second would fill the cell."""
    shown: list[str] = []
    monkeypatch.setattr("stagewright.observers.console.in_notebook", lambda: True)
    monkeypatch.setattr("stagewright.observers.console._NOTEBOOK_SECONDS", 0.0)
    keep_shown(monkeypatch, shown)
    console = Console(5000, [("small", 0, 100), ("middle", 100, 4900)])
    for event in (
        PROGRESS,
        make_event("evaluating"),
        make_event("evaluated"),
        PROGRESS,
        make_event("notice", text="x"),
    ):
        console.see(event)
    console.close()
    assert "<progress" in shown[0] and "ETA" in shown[0] and "evaluating" in shown[1]
    assert all("best" in html for html in shown[2:]) and "loss 1.234" in shown[3], "the last evaluation stays in sight"
    assert len(shown) == 5 and "<progress" not in shown[4]
    assert capsys.readouterr().out == "x\n", "an evaluation is no line of its own there"


def keep_shown(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    """Lets ``shown`` have the HTML of whatever a notebook would show."""
    monkeypatch.setattr(NotebookPlace, "put", lambda self, content: shown.append(content["text/html"]))
    monkeypatch.setattr(NotebookPlace, "is_used", True)


def test_a_notebook_is_not_drawn_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("stagewright.observers.console.in_notebook", lambda: True)
    keep_shown(monkeypatch, shown)
    console = Console(5000, [("small", 0, 100), ("middle", 100, 4900)])
    for _ in range(1000):
        console.see(PROGRESS)
    assert len(shown) <= 1
