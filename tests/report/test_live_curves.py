"""The curves that a notebook draws again: at evaluations, not so often that training waits, whole at the end, elsewhere never."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sample_events import make_event

from stagewright.report import live_curves
from stagewright.report.live_curves import LiveCurves
from stagewright.system.notebook import NotebookPlace

EVALUATED = make_event("evaluated")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(live_curves, "in_notebook", lambda: True)
    monkeypatch.setattr(NotebookPlace, "put", lambda self, content: found.append(content["text/html"]))
    return found


def test_they_are_drawn_at_evaluations_and_once_more_at_the_end(shown: list[str], small_run: Path) -> None:
    curves = LiveCurves(small_run)
    curves.see(make_event("progress"))
    assert shown == []
    for _ in range(10):  # all in less than twenty times what the first drawing takes
        curves.see(EVALUATED)
    assert len(shown) == 1 and shown[0].count("<svg") == 2
    curves.close()
    assert len(shown) == 2
    curves.close()
    assert len(shown) == 2, "nothing has changed since"


def test_they_follow_when_there_is_time(shown: list[str], small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_curves, "_SHARE", 0)
    curves = LiveCurves(small_run)
    for _ in range(3):
        curves.see(EVALUATED)
    assert len(shown) == 3


def test_outside_of_a_notebook_nothing_is_drawn_or_imported(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stagewright.report.plots", raising=False)
    monkeypatch.setattr(NotebookPlace, "put", lambda self, content: pytest.fail("there is no notebook"))
    curves = LiveCurves(small_run)
    curves.see(EVALUATED)
    curves.close()
    assert "stagewright.report.plots" not in sys.modules
