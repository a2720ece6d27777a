"""Terminal output of ``stagewright data inspect`` and ``stagewright data split``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stagewright.data.inspect.evidence import Finding, Severity
from stagewright.data.inspect.inspect import Inspection
from stagewright.data.manifest import SPLITS
from stagewright.data.splits.summary import SplitSummary
from stagewright.system.tables import FittingTable
from stagewright.text import counted, printable, seconds_text, shortened

_SHOWN_CLASSES, _SHOWN_FILES = 14, 3
_AROUND = 13
"""Characters of the line of a file beside its mark, its path and its facts: the margin, two blanks and parentheses."""
_STYLES: dict[Severity, str] = {"serious": "bold red", "warning": "yellow", "notice": "cyan"}

_MOST_FOLDS = 6
"""Maximum number of folds with a column each; more folds share one column with the smallest and the largest count."""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints ``inspection``: overview, table of classes, notes, findings, verdict."""
    console.print(Text(_headline(inspection), style="bold"))
    for line in inspection.facts():
        console.print(Text(line))
    console.print(_class_table(inspection))
    for note in (*inspection.evidence.listing.notes, *inspection.account.lines()):
        console.print(Text(f"· {printable(note)}", style="dim"))
    for finding in inspection.findings:
        head = Text(f"\n{finding.severity:<8}", style=_STYLES[finding.severity])
        head.append(f" {printable(finding.what)}", style="bold")
        console.print(head)
        console.print(Padding(Text(f"{printable(finding.why)}. To do: {printable(finding.todo)}."), (0, 0, 0, 9)))
        if finding.command:  # in one piece, so that it can be copied
            console.print(Text(f"         {printable(finding.command)}", style="bold"), soft_wrap=True)
        for line in _file_lines(inspection, finding, console.width):
            console.print(Text(f"         {line}", style="dim"), soft_wrap=True)
    style = "red" if inspection.serious else "yellow" if inspection.counts["warning"] else "green"
    console.print(Text(f"\n{inspection.verdict}", style=f"bold {style}"))


def _headline(inspection: Inspection) -> str:
    evidence = inspection.evidence
    text = f"{printable(inspection.source)}: {counted(int(evidence.fingerprints.readable.sum()), 'picture')}"
    return f"{text} in {counted(len(evidence.classes), 'class')}, inspected in {seconds_text(inspection.seconds)}"


def _class_table(inspection: Inspection) -> Table:
    """Returns a table of images by class and split; of many classes, only the largest ones and the four smallest."""
    rows = inspection.class_rows()
    names = [name for name in (*SPLITS, "undecided", "unreadable") if any(counts[name] for _, counts in rows)]
    table = FittingTable()
    table.add_column("class")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    hidden = len(rows) - _SHOWN_CLASSES
    for at, (label, counts) in enumerate(rows):
        if hidden > 0 and _SHOWN_CLASSES - 4 <= at < len(rows) - 4:
            if at == _SHOWN_CLASSES - 4:
                table.add_row(Text(f"… {counted(hidden, 'class')} between …", style="dim"))
            continue
        table.add_row(Text(shortened(printable(label), 40)), *(f"{counts[name]:,}" for name in names))
    return table


def _file_lines(inspection: Inspection, finding: Finding, width: int) -> list[str]:
    """Returns a line for each of the first files of ``finding``; further files of a set of copies begin with "="."""
    lines, seen = [], set()
    for item in finding.items:
        if len(lines) >= _SHOWN_FILES + (finding.sets > 0):
            break
        label, part = inspection.where(item)
        extra = ", ".join(printable(text) for text in (part, label, item.detail) if text)
        mark = "" if item.set < 0 else "  = " if item.set in seen else "    "
        seen.add(item.set)
        path = shortened(printable(item.path), max(24, width - _AROUND - len(mark) - len(extra)))
        lines.append(f"{mark}{path}" + (f"  ({extra})" if extra else ""))
    more = len(finding.items) - len(lines)
    return [*lines, f"and {more:,} more"] if more else lines


def print_split(summary: SplitSummary, console: Console) -> None:
    """Prints ``summary``: a table of classes and parts, the notes, and the files that were written."""
    pictures, classes = counted(int(summary.pictures.sum()), "picture"), counted(len(summary.classes), "class")
    how = f"{summary.num_folds} folds" if summary.num_folds else "split"
    console.print(Text(f"{printable(summary.source)}: {pictures}, {classes}, {how}, seed {summary.seed}", style="bold"))
    console.print(_split_table(summary))
    for note in summary.notes:
        if note.startswith(f"{pictures} in {classes}"):  # the table shows these counts already
            continue
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row("-", Text(printable(note)))
        console.print(line)
    console.print()
    first, *folds = summary.tables
    written = str(first) + (f" and {len(folds)} tables {folds[0].name} to {folds[-1].name}" if folds else "")
    console.print(Text(f"Written  {written}"), soft_wrap=True)
    if summary.links is not None:
        console.print(Text(f"Links    {summary.links}"), soft_wrap=True)
    console.print(Text(f"Train    stagewright train {folds[0] if folds else first}"), soft_wrap=True)


def _split_table(summary: SplitSummary) -> Table:
    table = FittingTable()
    columns = _part_columns(summary)
    table.add_column("class")
    for name in ("pictures", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    sizes = summary.pictures.sum(0)
    for label in _shown_classes(summary):
        if label is None:
            table.add_row(f"... {len(summary.classes) - 2 * (_SHOWN_CLASSES // 2):,} more")
            continue
        own = summary.pictures[:, label]
        table.add_row(
            Text(summary.classes[label]),
            f"{sizes[label]:,}",
            *(_cell(own[rows], int(sizes[label]), summary.num_folds is None) for rows in columns.values()),
        )
    table.add_section()
    _add_totals(table, summary, list(columns.values()))
    return table


def _add_totals(table: Table, summary: SplitSummary, columns: list[list[int]]) -> None:
    totals = summary.pictures.sum(1)
    number = int(totals.sum())
    table.add_row("all", f"{number:,}", *(_cell(totals[rows], number, summary.num_folds is None) for rows in columns))
    if summary.num_folds is not None:
        table.add_row(
            "share",
            "",
            *(_span([f"{100 * totals[row] / number:.1f} %" for row in _extremes(totals, rows)]) for rows in columns),
        )
    if summary.groups is not None:
        groups = np.array(summary.groups)
        table.add_row("groups", "", *(_cell(groups[rows], 0, False) for rows in columns))
        distance = summary.class_distance()
        table.add_row(
            "class mix off by",
            "",
            *(_span([f"{100 * distance[row]:.1f} %" for row in _extremes(distance, rows)]) for rows in columns),
        )


def _part_columns(summary: SplitSummary) -> dict[str, list[int]]:
    """Returns the parts (indices into ``summary.parts``) that each column shows, by the column's title."""
    rows = range(len(summary.parts))
    if summary.num_folds is None or summary.num_folds <= _MOST_FOLDS:
        return {summary.parts[row]: [row] for row in rows}
    columns = {"each fold": list(rows[: summary.num_folds])}
    return columns | {summary.parts[row]: [row] for row in rows[summary.num_folds :]}


def _shown_classes(summary: SplitSummary) -> list[int | None]:
    """Returns all class indices; if there are many, those of the largest and the smallest classes with None between."""
    if len(summary.classes) <= _SHOWN_CLASSES + 1:
        return list(range(len(summary.classes)))
    order = np.argsort(-summary.pictures.sum(0), kind="stable").tolist()
    half = _SHOWN_CLASSES // 2
    return [*order[:half], None, *order[-half:]]


def _cell(counts: NDArray[np.int64], total: int, with_share: bool) -> str:
    """Returns the count of one part, with its share of ``total`` if requested; of several parts, the least and the most."""
    text = _span([f"{counts.min():,}", f"{counts.max():,}"])
    return f"{text} {f'({100 * counts.min() / total:.1f} %)':>8}" if with_share else text


def _extremes(values: NDArray[Any], rows: list[int]) -> list[int]:
    """Returns the row of the smallest and the row of the largest of ``values[rows]``."""
    return [rows[int(values[rows].argmin())], rows[int(values[rows].argmax())]]


def _span(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
