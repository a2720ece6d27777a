"""How a notebook shows an evaluation: the accuracy, the measures and the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagewright.measures.overview import TITLES
from stagewright.system.notebook import heading, table
from stagewright.text import ABSENT, counted, score_text

_CLASSES = 40
"""Most classes in the table."""
_SCORED = {"all": "", "unseen": " not seen in training", "seen": ", all of them seen in training"}


def evaluation_html(content: Mapping[str, Any]) -> str:
    """Returns the result of :meth:`stagewright.api.evaluate.EvaluationReport.to_dict` as HTML."""
    low, high = content["top1_interval"]
    title = score_text(content["top1"], counted(content["images"], "picture") + _SCORED[content["scored"]], low, high)
    note = content["source"]
    measured = [(TITLES[name], *_estimate(content["measures"][name])) for name in TITLES if name != "accuracy"]
    classes = [
        (one["name"], f"{one['images']:,}", f"{one['top1']:.1f}", " to ".join(f"{end:.1f}" for end in one["interval"]))
        for one in content["classes"][:_CLASSES]
    ]
    more = len(content["classes"]) - len(classes)
    return (
        heading(title, note)
        + table(("measure", "value", "95 % interval"), measured)
        + table(("class", "pictures", "top-1 %", "95 % interval"), classes)
        + (heading("", f"and {more:,} more classes") if more else "")
    )


def _estimate(one: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = one["value"], one["low"], one["high"]
    interval = ABSENT if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return ABSENT if value is None else f"{value:.3f}", interval
