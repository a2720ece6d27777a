"""Terminal output of ``stagewright evaluate``: a sentence, and tables of classes and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stagewright.text import counted, printable

if TYPE_CHECKING:  # torch comes with it
    from stagewright.api.evaluate import EvaluationReport, Share

_LISTED = 30


def evaluation_view(report: EvaluationReport) -> RenderableType:
    """Returns the accuracy on the images that were not seen in training, and on the seen ones apart; a table of the classes, one
    of the groups if there are any, and what was left out."""
    parts = (("class", report.by_class()), ("group", report.by_group()))
    said = [Text(f"· {printable(line)}", style="dim") for line in (*report.notes, *report.account.lines())]
    lines = [Text(line) for line in (_headline(report), *_seen(report))]
    return Group(*lines, *(_table(title, shares) for title, shares in parts if shares), *said)


def _headline(report: EvaluationReport) -> str:
    result, (low, high) = report.headline, report.top1_interval
    top5 = f", top-5 {result.top5:.2f} %" if result.top5 is not None else ""
    error = report.calibration_error
    which = {"all": "", "unseen": " not seen in training", "seen": ", all of them seen in training"}[report.scored]
    return (
        f"{report.source}: top-1 {result.top1:.2f} % on {counted(result.images, 'picture')}{which} "
        f"(95 % interval {low:.2f} to {high:.2f}){top5}, loss {result.loss:.4f}"
        + (f", calibration error {error:.1f} %" if error is not None else "")
        + (f", {report.account.num_unreadable:,} unreadable" if report.account.num_unreadable else "")
    )


def _seen(report: EvaluationReport) -> list[str]:
    """Returns a line on the images that the training has seen, if there are any."""
    seen = report.seen_score
    if seen is None:
        return []
    same, near = int(report.seen.same.sum()), int(report.seen.near.sum())
    kinds = [f"{same:,} the same" * bool(same), f"{near:,} nearly the same" * bool(near)]
    low, high = seen.interval
    what = f"{counted(seen.images, 'picture')} seen in training ({', '.join(filter(None, kinds))})"
    if report.scored == "seen":
        return [f"All {what}: the accuracy says nothing about new pictures."]
    return [
        f"Apart, {what}: top-1 {seen.top1:.2f} % ({low:.2f} to {high:.2f}); all together {report.result.top1:.2f} %"
    ]


def _table(title: str, shares: Sequence[Share]) -> Table:
    """Returns a table of at most 30 rows: if there are more, those with the lowest accuracy."""
    if len(shares) > _LISTED:
        title = f"{title} (the {_LISTED} worst of {len(shares)})"
        shares = sorted(shares, key=lambda one: one.top1)[:_LISTED]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in ("pictures", "top-1 %", "95 % interval"):
        table.add_column(name, justify="right")
    for one in shares:
        low, high = one.interval
        table.add_row(Text(printable(one.name)), f"{one.images:,}", f"{one.top1:.1f}", f"{low:.1f} to {high:.1f}")
    return table
