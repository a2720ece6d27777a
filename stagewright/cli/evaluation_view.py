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
    """Returns the accuracy over all images, a table of the classes, one of the groups if there are any, and what was left out."""
    result, (low, high) = report.result, report.top1_interval
    top5 = f", top-5 {result.top5:.2f} %" if result.top5 is not None else ""
    text = (
        f"{report.source}: top-1 {result.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}){top5}, "
        f"loss {result.loss:.4f}, {counted(result.images, 'picture')}"
        + (f", {report.account.num_unreadable:,} unreadable" if report.account.num_unreadable else "")
    )
    parts = (("class", report.by_class()), ("group", report.by_group()))
    said = [Text(f"· {printable(line)}", style="dim") for line in (*report.notes, *report.account.lines())]
    return Group(Text(text), *(_table(title, shares) for title, shares in parts if shares), *said)


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
