"""Terminal output of ``stagewright evaluate``: a sentence, and tables of classes and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stagewright.measures.overview import TITLES
from stagewright.system.tables import FittingTable
from stagewright.text import ABSENT, counted, printable, score_text

if TYPE_CHECKING:  # torch comes with it
    from stagewright.api.evaluate import EvaluationReport, Share
    from stagewright.measures.overview import Overview

_LISTED = 30
_SHOWN = (
    *("balanced_accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_auc", "macro_average_precision"),
    *("log_loss", "overconfidence"),
)
"""Those of the measures that do not say the same as another line; ``--json`` has all."""
_OF_CLASS = {"precision": "precision", "f1": "F1 %", "auc": "AUC %"}
"""The measures that a terminal of 80 columns has room for, and the heads of their columns."""


def evaluation_view(report: EvaluationReport) -> RenderableType:
    """Returns the accuracy on the images that were not seen in training, and on the seen ones apart; a table of the classes, one
    of the groups if there are any, and what was left out."""
    parts = (("class", report.by_class()), ("group", report.by_group()))
    measured = _measures(report.measures)
    said = [Text(f"· {printable(line)}", style="dim") for line in (*report.notes, *report.account.lines())]
    lines = [Text(line) for line in (_headline(report), *_seen(report))]
    tables = (_table(title, shares) for title, shares in parts if shares)
    return Group(*lines, measured, *_point(report), *tables, *said)


def _headline(report: EvaluationReport) -> str:
    result, (low, high) = report.headline, report.top1_interval
    top5 = f", top-5 {result.top5:.2f} %" if result.top5 is not None else ""
    which = {"all": "", "unseen": " not seen in training", "seen": ", all of them seen in training"}[report.scored]
    return (
        f"{report.source}: {score_text(result.top1, counted(result.images, 'picture') + which, low, high)}"
        f"{top5}, loss {result.loss:.4f}"
        + (f", {report.account.num_unreadable:,} unreadable" if report.account.num_unreadable else "")
    )


def _seen(report: EvaluationReport) -> list[str]:
    """Returns a line on the images that the training has seen, if there are any."""
    seen = report.seen_score
    if seen is None:
        return []
    same, near = int(report.seen.same.sum()), int(report.seen.near.sum())
    kinds = " and ".join(filter(None, (f"{same:,} the same" * bool(same), f"{near:,} nearly the same" * bool(near))))
    low, high = seen.interval
    what = f"{counted(seen.images, 'picture')} seen in training, {kinds}"
    if report.scored == "seen":
        return [f"All {what}: the accuracy says nothing about new pictures."]
    return [f"Apart, {score_text(seen.top1, what, low, high)}; all together {report.result.top1:.2f} %"]


def _point(report: EvaluationReport) -> list[RenderableType]:
    """What the model's operating point comes to on these images; empty without one."""
    found = report.at_point
    if found is None:
        return []
    parts = [("answered", found.answered), ("right of those", found.accuracy)]
    for name, (precision, recall) in found.classes.items():
        parts += [(f"precision of {printable(name)}", precision), (f"recall of {printable(name)}", recall)]
    table = FittingTable()
    table.add_column("at the operating point")
    for name in ("%", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in parts:
        if one.value is not None and one.low is not None and one.high is not None:
            table.add_row(Text(name), f"{100 * one.value:.1f}", f"{100 * one.low:.1f} to {100 * one.high:.1f}")
    return [*(Text(printable(line)) for line in report.operating.lines()), table]


def _measures(found: Overview) -> Table:
    """Returns a table of the measures over all classes that are defined."""
    table = FittingTable()
    table.add_column("measure")
    for name in ("value", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in _SHOWN:
        one = found.means[name]
        if one.value is not None:
            table.add_row(
                TITLES[name], f"{one.value:.4f}", "" if one.low is None else f"{one.low:.4f} to {one.high:.4f}"
            )
    if (calibration := found.calibration) is not None:
        chance = f"by chance {calibration.by_chance:.4f}"
        table.add_row("calibration error", f"{calibration.error:.4f}", chance)
    return table


def _table(title: str, shares: Sequence[Share]) -> Table:
    """Returns a table of at most 30 rows: if there are more, those with the lowest accuracy."""
    if len(shares) > _LISTED:
        title = f"{title} (the {_LISTED} worst of {len(shares)})"
        shares = sorted(shares, key=lambda one: one.top1)[:_LISTED]
    table = FittingTable()
    table.add_column(title)
    kinds = [name for name in _OF_CLASS if any(getattr(one, name).value is not None for one in shares)]
    accuracy = "recall %" if kinds else "top-1 %"
    for name in ("pictures", accuracy, "95 % interval", *(_OF_CLASS[name] for name in kinds)):
        table.add_column(name, justify="right", no_wrap=True)
    for one in shares:
        low, high = one.interval
        values = [getattr(one, name).value for name in kinds]
        cells = [ABSENT if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(
            Text(printable(one.name)), f"{one.images:,}", f"{one.top1:.1f}", f"{low:.1f} to {high:.1f}", *cells
        )
    return table
