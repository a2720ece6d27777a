"""Metric lines, parsed with the patterns of a cloud service."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from sample_events import make_event

from stagewright.observers.metric_lines import MetricLines, metric_line
from stagewright.rundir.event_kinds import Evaluated, Result
from stagewright.rundir.event_text import sentence

PATTERNS = {name: rf"{name}=([0-9\.]+)" for name in ("train_loss", "train_acc", "val_loss", "val_acc")}
RESULTS = {
    "raw": Result(loss=0.6, top1=88.0, top5=99.0, images=100, unreadable=0),
    "ema": Result(loss=0.51779, top1=89.004, top5=99.0, images=100, unreadable=0),
}


def evaluated(**changes: Any) -> Evaluated:
    usual = {"step": 900, "epoch": 29.0, "train_loss": 0.08461, "train_top1": 97.0, "results": RESULTS, "chosen": "ema"}
    event = make_event("evaluated", **{**usual, **changes})
    assert isinstance(event, Evaluated)
    return event


def test_a_line_as_a_cloud_reads_it() -> None:
    line = metric_line(evaluated())
    assert line == "[METRICS] epoch=29 train_loss=0.0846 train_acc=0.9700 val_loss=0.5178 val_acc=0.8900"
    found = {name: re.findall(pattern, line) for name, pattern in PATTERNS.items()}
    assert found == {"train_loss": ["0.0846"], "train_acc": ["0.9700"], "val_loss": ["0.5178"], "val_acc": ["0.8900"]}
    assert re.findall(r"epoch=([0-9]+)", line) == ["29"]


@pytest.mark.parametrize(
    ("epoch", "finished"), [(0.0, 0), (0.5, 0), (0.98, 1), (1.02, 1), (1.49, 1), (28.99, 29), (29.6, 29)]
)
def test_epochs_are_those_that_are_finished(epoch: float, finished: int) -> None:
    """An epoch ends on a whole step, up to half a batch before its exact end."""
    assert f" epoch={finished} " in metric_line(evaluated(epoch=epoch))


def test_what_was_not_measured_is_left_out() -> None:
    line = metric_line(evaluated(train_loss=None, train_top1=None))
    assert line == "[METRICS] epoch=29 val_loss=0.5178 val_acc=0.8900"
    nothing = Result(loss=math.nan, top1=math.nan, top5=math.nan, images=0, unreadable=100)
    event = evaluated(
        **{"results": {"raw": nothing}, "chosen": "raw", "train_loss": None, "train_top1": None, "stage_name": "main"},
        **{"best": False, "images_per_second": None, "eta_seconds": None},
    )
    assert metric_line(event) == "[METRICS] epoch=29"
    assert sentence(event) == "epoch  29.00 main      val –        –"


def test_evaluations_alone_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    observer, file = MetricLines(), io.StringIO()
    for event in (make_event("progress"), evaluated(), make_event("finished")):
        observer.see(event)
        MetricLines(file).see(event)
    observer.close()
    assert capsys.readouterr().out == file.getvalue() == metric_line(evaluated()) + "\n"
