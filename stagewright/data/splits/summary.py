"""Split summary: what a split came to, as a person reads it on 80 columns and as a program does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagewright.text import counted

_MOST_CLASSES = 14
_MOST_FOLDS = 6
"""Folds with a column of their own; of more, one column says from how many to how many pictures they have."""


@dataclass(frozen=True, eq=False)
class SplitSummary:
    """Pictures by class and part, where they were written, and what there is to know about them."""

    source: str
    seed: int
    classes: tuple[str, ...]
    num_folds: int | None
    parts: tuple[str, ...]
    """Names: train, val, test; or fold 1 .. fold K, test. Parts without pictures are left out."""
    pictures: NDArray[np.int64]
    """(P, C): pictures of each part and class."""
    groups: tuple[int, ...] | None
    """Groups that each part has pictures of."""
    excluded: int
    """Files and rows of DATA that are in no part."""
    tables: tuple[Path, ...]
    """What was written; of folds, the table of all folds first."""
    links: Path | None
    notes: tuple[str, ...]

    def class_distance(self) -> NDArray[np.float64]:
        """(P,): total variation between the class shares of each part and those of all pictures, 0 to 1.

        It is the share of a part's pictures that would have to be of another class.
        """
        own = self.pictures / np.maximum(self.pictures.sum(1, keepdims=True), 1)
        return np.abs(own - self.pictures.sum(0) / self.pictures.sum()).sum(1) / 2

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; shares and distances from 0 to 1."""
        sizes, distance = self.pictures.sum(1), self.class_distance()
        return {
            "source": self.source,
            "seed": self.seed,
            "folds": self.num_folds,
            "pictures": int(sizes.sum()),
            "excluded": self.excluded,
            "parts": [
                {
                    "name": name,
                    "pictures": int(sizes[at]),
                    "share": float(sizes[at] / sizes.sum()),
                    "groups": None if self.groups is None else self.groups[at],
                    "class_distance": float(distance[at]),
                    "classes": dict(zip(self.classes, self.pictures[at].tolist(), strict=True)),
                }
                for at, name in enumerate(self.parts)
            ],
            "tables": [str(table) for table in self.tables],
            "links": None if self.links is None else str(self.links),
            "notes": list(self.notes),
        }

    def print(self, console: Console | None = None) -> None:
        """Prints a table of classes and parts, the notes, and what was written. Fits 80 columns."""
        console = console or Console()
        pictures, classes = counted(int(self.pictures.sum()), "picture"), counted(len(self.classes), "class")
        how = f"{self.num_folds} folds" if self.num_folds else "split"
        console.print(Text(f"{self.source}: {pictures}, {classes}, {how}, seed {self.seed}", style="bold"))
        console.print(self._table())
        for note in self.notes:
            if note.startswith(f"{pictures} in {classes}"):  # the table says it already
                continue
            line = Table.grid(padding=(0, 1, 0, 0))
            line.add_row("-", Text(note))
            console.print(line)
        console.print()
        first, *folds = self.tables
        written = str(first) + (f" and {len(folds)} tables {folds[0].name} to {folds[-1].name}" if folds else "")
        console.print(Text(f"Written  {written}"), soft_wrap=True)
        if self.links is not None:
            console.print(Text(f"Links    {self.links}"), soft_wrap=True)
        console.print(Text(f"Train    stagewright train {folds[0] if folds else first}"), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        columns = self._columns()
        table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=24)
        for name in ("pictures", *columns):
            table.add_column(name, justify="right", no_wrap=True)
        sizes = self.pictures.sum(0)
        for label in self._shown():
            if label is None:
                table.add_row(f"... {len(self.classes) - 2 * (_MOST_CLASSES // 2):,} more")
                continue
            own = self.pictures[:, label]
            table.add_row(
                Text(self.classes[label]),
                f"{sizes[label]:,}",
                *(_cell(own[rows], int(sizes[label]), self.num_folds is None) for rows in columns.values()),
            )
        table.add_section()
        self._add_totals(table, list(columns.values()))
        return table

    def _add_totals(self, table: Table, columns: list[list[int]]) -> None:
        totals = self.pictures.sum(1)
        number = int(totals.sum())
        table.add_row("all", f"{number:,}", *(_cell(totals[rows], number, self.num_folds is None) for rows in columns))
        if self.num_folds is not None:
            table.add_row(
                "share",
                "",
                *(_span([f"{100 * totals[row] / number:.1f} %" for row in _ends(totals, rows)]) for rows in columns),
            )
        if self.groups is not None:
            groups = np.array(self.groups)
            table.add_row("groups", "", *(_cell(groups[rows], 0, False) for rows in columns))
            distance = self.class_distance()
            table.add_row(
                "class mix off by",
                "",
                *(_span([f"{100 * distance[row]:.1f} %" for row in _ends(distance, rows)]) for rows in columns),
            )

    def _columns(self) -> dict[str, list[int]]:
        """Titles of columns, and the parts that stand in each."""
        rows = range(len(self.parts))
        if self.num_folds is None or self.num_folds <= _MOST_FOLDS:
            return {self.parts[row]: [row] for row in rows}
        columns = {"each fold": list(rows[: self.num_folds])}
        return columns | {self.parts[row]: [row] for row in rows[self.num_folds :]}

    def _shown(self) -> list[int | None]:
        """Classes in the order of their names; of very many the largest and the smallest, with None between them."""
        if len(self.classes) <= _MOST_CLASSES + 1:
            return list(range(len(self.classes)))
        order = np.argsort(-self.pictures.sum(0), kind="stable").tolist()
        half = _MOST_CLASSES // 2
        return [*order[:half], None, *order[-half:]]


def _cell(counts: NDArray[np.int64], total: int, with_share: bool) -> str:
    """One part's count, with its share of ``total`` where asked for; of several parts the least and the most."""
    text = _span([f"{counts.min():,}", f"{counts.max():,}"])
    return f"{text} {f'({100 * counts.min() / total:.1f} %)':>8}" if with_share else text


def _ends(values: NDArray[Any], rows: list[int]) -> list[int]:
    return [rows[int(values[rows].argmin())], rows[int(values[rows].argmax())]]


def _span(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
