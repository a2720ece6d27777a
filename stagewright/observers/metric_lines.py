"""Metric lines: one line on standard output at each evaluation, for cloud services that find metrics by pattern.

``[METRICS] epoch=29 train_loss=0.0846 train_acc=0.9700 val_loss=0.5178 val_acc=0.8900``: accuracies as shares of 1;
``val`` are the better of raw and averaged weights there; ``epoch`` counts finished epochs. What was not measured is left
out. A service's pattern for the loss is for example ``train_loss=([0-9\\.]+)``.
"""

from __future__ import annotations

import math
from typing import TextIO

from stagewright.rundir.event_kinds import Evaluated, Event

_NEARLY = 0.25
"""Epochs end on whole steps: an evaluation less than this share of an epoch before its end counts as at its end."""


class MetricLines:
    """Prints the lines to ``file``; None: to standard output."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            print(metric_line(event), file=self._file, flush=True)

    def close(self) -> None: ...


def metric_line(event: Evaluated) -> str:
    """The line of an evaluation."""
    result = event.results[event.chosen]
    numbers = {
        "train_loss": event.train_loss,
        "train_acc": _share(event.train_top1),
        "val_loss": result.loss,
        "val_acc": _share(result.top1),
    }
    parts = [f"{name}={value:.4f}" for name, value in numbers.items() if value is not None and math.isfinite(value)]
    return " ".join(["[METRICS]", f"epoch={math.floor(event.epoch + _NEARLY)}", *parts])


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
