"""Tables for the terminal that never cut or break a number: columns that do not fit side by side go below each other."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from stagewright.text import words

_MOST_WORD = 24
"""Most characters of one word that a text column keeps on one line: a long name must not push the numbers away."""
_EDGES, _GAP = 2, 2
"""Characters that a table takes at its two edges together, and between two columns."""


class FittingTable(Table):
    """A rich table with a line below its head. Columns with ``no_wrap``, which numbers need, keep their width; the others are
    folded at blanks. Where that is too wide, the table is divided into several with the same rows, each with the first
    column."""

    def __init__(self, title: Text | None = None, *, title_style: str = "bold") -> None:
        super().__init__(
            title=title,
            title_justify="left",
            title_style=title_style,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the table, in as many parts as ``options.max_width`` needs."""
        cells = [[_plain(cell) for cell in (one.header, *one.cells)] for one in self.columns]
        natural = [max(map(_widest_line, column), default=1) for column in cells]
        least = [
            width if one.no_wrap else max((_least(text) for text in column), default=1)
            for one, width, column in zip(self.columns, natural, cells, strict=True)
        ]
        for number, part in enumerate(_parts(least, options.max_width - _EDGES)):
            room = options.max_width - _EDGES - _GAP * (len(part) - 1)
            widths = _shared([natural[at] for at in part], [least[at] for at in part], room)
            one = _Part(self, part, widths, number == 0)
            needed = sum(widths) + _EDGES + _GAP * len(widths)
            yield from console.render(one, options.update(width=max(needed, options.max_width)))


class _Part(Table):
    """Some columns of a table, with given widths."""

    def __init__(self, whole: FittingTable, columns: list[int], widths: list[int], first: bool) -> None:
        super().__init__(
            title=whole.title if first else None,
            title_justify=whole.title_justify,
            title_style=whole.title_style,
            box=whole.box,
            pad_edge=False,
            padding=whole.padding,
        )
        chosen = (whole.columns[at] for at in columns)
        self.columns = [
            replace(one, _index=at, width=width, overflow="fold")
            for at, (one, width) in enumerate(zip(chosen, widths, strict=True))
        ]
        self.rows = whole.rows


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _widest_line(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _least(text: str) -> int:
    """Returns the width that a text needs to be folded between its words, the longest ones within themselves."""
    return min(_MOST_WORD, max(map(cell_len, words(text)), default=1))


def _parts(widths: list[int], room: int) -> list[list[int]]:
    """Returns the columns (indices into ``widths``) of each part, as many as fit into ``room`` beside the first one."""
    parts, taken = [[0]], widths[0]
    for at, width in list(enumerate(widths))[1:]:
        if taken + _GAP + width > room and len(parts[-1]) > 1:
            parts.append([0])
            taken = widths[0]
        parts[-1].append(at)
        taken += _GAP + width
    return parts


def _shared(natural: list[int], least: list[int], room: int) -> list[int]:
    """Returns the widths of columns within ``room``: the widest one that can become narrower does so first."""
    widths = list(natural)
    while sum(widths) > room:
        able = [at for at, width in enumerate(widths) if width > least[at]]
        if not able:
            break
        widths[max(able, key=lambda at: widths[at])] -= 1
    return widths
