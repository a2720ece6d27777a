"""Parts of a self-contained HTML page: escaped text, sections, tables, and pictures that are stored once each, up to a limit.

All text that comes from a user or a file (names, paths, commands) passes :func:`text`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from stagewright.data.images.encode import data_uri, is_png
from stagewright.report.theme import Drawing
from stagewright.text import printable

_STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")


def text(value: object) -> str:
    """Returns text from the user, escaped for HTML."""
    return escape(printable(value))


def document(title: str, body: str, *, head: str = "", style: str = "") -> str:
    """Returns a page. ``title`` is plain text; ``body``, ``head`` and ``style`` are HTML and CSS already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Returns a section of a page, or nothing if it has no ``content``."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


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
    role = "group" if "<a " in drawing.svg else "img"  # what an image contains, links too, is not read out
    return f'<figure role="{role}" aria-label="{escape(drawing.alt)}">{drawing.svg}</figure>'


@dataclass
class Pictures:
    """The pictures of a page. Each is stored once, as a rule of the page's style, however often it is shown; together they take
    at most ``most_bytes`` of the page, and those for which there is no room are counted."""

    most_bytes: float
    used: int = field(init=False, default=0)
    left_out: set[str] = field(init=False, default_factory=set[str])
    """Keys of the pictures for which there was no room."""
    _rules: dict[str, str] = field(init=False, default_factory=dict[str, str])

    def has(self, key: str) -> bool:
        """Whether the picture ``key`` is in the page already."""
        return key in self._rules

    def add(self, key: str, file: bytes) -> bool:
        """Stores a PNG or JPEG ``file`` under ``key``; returns False if there is no room for it."""
        if key in self._rules:
            return True
        small = "image-rendering:pixelated;" if is_png(file) else ""
        rule = f".p{len(self._rules)}{{{small}background-image:url({data_uri(file)})}}"
        if self.used + len(rule) > self.most_bytes:
            self.left_out.add(key)
            return False
        self.used += len(rule)
        self._rules[key] = rule
        return True

    def html(self, key: str, alt: str) -> str:
        """Returns the picture ``key``, or an empty frame if the page has no room for it; ``alt`` is plain text."""
        if key not in self._rules:
            return '<span class="pic">not shown</span>'
        return f'<span class="pic {self._rules[key][1:].partition("{")[0]}" role="img" aria-label="{text(alt)}"></span>'

    @property
    def style(self) -> str:
        """The rules of all pictures."""
        return "".join(self._rules.values())
