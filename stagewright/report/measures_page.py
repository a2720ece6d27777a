"""The section of the page with the measures that people ask for."""

from __future__ import annotations

from stagewright.measures.calibration import BINS
from stagewright.measures.intervals import Estimate
from stagewright.measures.overview import TITLES
from stagewright.report.elements import figure, table
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES
from stagewright.report.theme import Drawing
from stagewright.text import ABSENT


def measures_section(record: RunRecord, drawings: dict[str, Drawing]) -> str:
    """Returns a table of the measures over all classes, of both splits, and the curves; empty without predictions."""
    splits = [split for split in ("test", "val") if split in record.measures]
    if not splits:
        return ""
    rows = []
    for name, title in TITLES.items():
        found = [record.measures[split].means[name] for split in splits]
        if any(one.value is not None for one in found):
            cells = [cell for one in found for cell in _measure(one)]
            rows.append((f"<b>{title}</b>" if name == _selecting(record) else title, *cells))
    calibrations = [record.measures[split].calibration for split in splits]
    cells = [cell for one in calibrations if one for cell in (f"{one.error:.4f}", f"by chance {one.by_chance:.4f}")]
    rows.append(("calibration error", *cells))
    shown = [SPLIT_NAMES[record.predictions[split].split] for split in splits]
    head = [title for name in shown for title in (name, "95 % interval")]
    figures = "".join(figure(drawings[name]) for name in ("roc", "precision-recall") if name in drawings)
    note = (
        f"Macro: the mean over classes. Weighted: by their number of pictures. AUC: each class against the rest. The intervals "
        f"describe the random choice of {units_of(record)}. Overconfidence: mean probability minus accuracy. Calibration error: "
        f"the mean distance of the two over {BINS} bins; <q>by chance</q> is what perfectly calibrated probabilities would have "
        f"with so few pictures."
    )
    return f'{table(("measure", *head), rows)}<p><i>{note}</i></p><div class="figures">{figures}</div>'


def _selecting(record: RunRecord) -> str:
    """The measure that selected the weights, by its name in the table."""
    metric = record.summary.get("metric", "top1")
    return str({"auc": "macro_auc", "top1": "accuracy"}.get(metric, metric))


def _measure(one: Estimate) -> tuple[str, str]:
    if one.value is None:
        return ABSENT, ""
    return f"{one.value:.4f}", "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}"


def units_of(record: RunRecord) -> str:
    """Returns what is chosen at random where predictions are measured: ``groups`` or ``pictures``."""
    grouped = any(record.predictions[split].groups is not None for split in record.measures)
    return "groups" if grouped else "pictures"


def share_cell(one: Estimate) -> str:
    """Returns a measure in [0, 1] in percent, with its interval."""
    if one.value is None or one.low is None or one.high is None:
        return ABSENT
    return f"{100 * one.value:.1f} <small>{100 * one.low:.1f} to {100 * one.high:.1f}</small>"
