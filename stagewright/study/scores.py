"""The score by which a study compares runs: its metric on the validation images. Needs no Optuna."""

from __future__ import annotations

import math
from typing import Literal

from stagewright.rundir.event_kinds import Evaluated
from stagewright.rundir.summary import Summary
from stagewright.study.definition import Study


def direction(study: Study) -> Literal["maximize", "minimize"]:
    """Returns whether more or less of the study's metric is better."""
    return "minimize" if study.metric == "log_loss" else "maximize"


def score_of(study: Study, summary: Summary) -> float | None:
    """Returns the validation score of a finished run by the study's metric: in percent for top-1, else as measured."""
    if study.metric == "top1":
        return summary["top1"].get("val")
    if study.metric == "log_loss":
        return summary["loss"].get("val")
    return summary["measures"].get("val", {}).get(study.metric, {"value": None})["value"]


def event_score(study: Study, event: Evaluated) -> float:
    """Returns the same of an evaluation within a run; NaN where it is not defined."""
    result = event.results[event.chosen]
    value = {"top1": result.top1, "log_loss": result.loss}.get(study.metric, result.metric)
    return math.nan if value is None else value
