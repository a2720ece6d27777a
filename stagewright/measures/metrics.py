"""The metrics by which a run may select its weights (``eval.metric``). Needs no NumPy, so that recipes stay quick to read.

:func:`stagewright.measures.overview.metric_value` computes them.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Metric = Literal["top1", "balanced_accuracy", "macro_f1", "auc", "log_loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)
TITLES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "macro AUC",
    "log_loss": "log loss",
}
"""What people call them."""


MOST_PROBABILITIES = 10_000_000
"""Most probabilities (images times classes) that are kept of one split, 40 MB as float32: 1,000 classes of 10,000 images."""


def keeps_probabilities(images: int, classes: int) -> bool:
    """Returns whether the probabilities of all classes are kept for so many images."""
    return images * classes <= MOST_PROBABILITIES


def rises(metric: Metric) -> bool:
    """Returns whether a higher value is better."""
    return metric != "log_loss"


def needs_probabilities(metric: Metric) -> bool:
    """Returns whether the probabilities of all classes are needed, and not only the predicted classes and the losses."""
    return metric == "auc"


def goodness(metric: Metric, value: float) -> float:
    """Returns a number that is higher for better values of ``metric``, and lowest for one that is not defined."""
    return -math.inf if math.isnan(value) else value if rises(metric) else -value


def value_text(metric: Metric, value: float) -> str:
    """Returns the metric with its value for people: ``macro F1 0.8123``, ``top-1 81.23 %``."""
    number = "–" if math.isnan(value) else f"{value:.2f} %" if metric == "top1" else f"{value:.4f}"
    return f"{TITLES[metric]} {number}"
