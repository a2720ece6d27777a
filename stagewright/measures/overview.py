"""All measures of one split together, as the summary, the report and ``evaluate`` show them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagewright.measures.answers import Answers
from stagewright.measures.by_class import accuracy, class_estimates, mean_estimates, mean_values
from stagewright.measures.calibration import Calibration, calibration, log_loss
from stagewright.measures.curves import areas, macro_roc_auc
from stagewright.measures.intervals import UNDEFINED, Estimate
from stagewright.measures.metrics import Metric

TITLES = {
    "accuracy": "accuracy (top-1)",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "weighted_f1": "weighted F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "macro_auc": "macro ROC AUC",
    "macro_average_precision": "macro PR AUC",
    "log_loss": "log loss",
    "overconfidence": "overconfidence",
}
"""The measures with an interval, in the order in which they are shown, and what people call them."""
OF_CLASSES = {"precision": "precision", "recall": "recall", "f1": "F1", "auc": "ROC AUC", "average_precision": "PR AUC"}
"""The measures of each class."""


@dataclass(frozen=True)
class Overview:
    """The measures of one split, with 95 % intervals over images, or over groups where there are some. Log loss is in nats,
    overconfidence in [-1, 1], all others in [0, 1]."""

    means: dict[str, Estimate]
    """By the names in :data:`TITLES`."""
    classes: dict[str, list[Estimate]]
    """By the names in :data:`OF_CLASSES`, one for each class."""
    calibration: Calibration | None
    """None without images."""

    def to_dict(self) -> dict[str, object]:
        """Returns the measures over all classes as plain data for JSON: each with its value, low and high; None where it is not
        defined. ``calibration_error`` has the error and what would be expected by chance."""
        found: dict[str, object] = {name: one._asdict() for name, one in self.means.items()}
        if self.calibration is not None:
            found["calibration_error"] = {"value": self.calibration.error, "by_chance": self.calibration.by_chance}
        return found


def overview(answers: Answers) -> Overview:
    """Returns all measures of ``answers``."""
    found, under = calibration(answers), areas(answers)
    means = {"accuracy": accuracy(answers), **mean_estimates(answers)}
    means["macro_auc"] = under.macro_roc if under else UNDEFINED
    means["macro_average_precision"] = under.macro_precision_recall if under else UNDEFINED
    means["log_loss"] = log_loss(answers)
    means["overconfidence"] = found.excess if found else UNDEFINED
    classes = dict(class_estimates(answers))
    unknown = [UNDEFINED] * answers.num_classes
    classes["auc"] = under.roc if under else unknown
    classes["average_precision"] = under.precision_recall if under else unknown
    return Overview({name: means[name] for name in TITLES}, classes, found)


def metric_value(metric: Metric, answers: Answers) -> float:
    """Returns the metric: top-1 in percent, log loss in nats, the others in [0, 1]; NaN where it is not defined."""
    if not len(answers):
        return math.nan
    if metric == "top1":
        return 100.0 * float(answers.right.mean())
    if metric == "log_loss":
        return float(answers.losses.mean())
    return macro_roc_auc(answers) if metric == "auc" else mean_values(answers)[metric]
