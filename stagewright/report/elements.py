"""Elements of the page: escaped text, tables, figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from stagewright.report.theme import Drawing
from stagewright.text import printable


def text(value: object) -> str:
    """Returns text from the user, escaped for HTML."""
    return escape(printable(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Returns a table of cells that are already HTML; the first ``left`` columns are texts, the others numbers."""
    kinds = ["" if at < left else ' class="n"' for at in range(len(head))]
    top = "".join(f"<th{kind}>{title}</th>" for kind, title in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def figure(drawing: Drawing) -> str:
    """Returns a figure, described in words for those who do not see it."""
    return f'<figure role="img" aria-label="{escape(drawing.alt)}">{drawing.svg}</figure>'
