"""What a notebook shows: whether there is one, a line of progress that replaces itself, and small tables as HTML.

The HTML needs no script, style sheet or file. It takes the notebook's own text colour, so that it can be read on light and dark
pages. Text from files and people is escaped here.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from typing import Any

from stagewright.text import printable

CELL_WIDTH = 96
"""Characters of a line of text in a notebook: its cells are no wider."""

_CELL = "text-align:left;padding:.2em .9em .2em 0;border-bottom:1px solid rgba(128,128,128,.3);vertical-align:top"
_NUMBER = _CELL.replace("left", "right", 1)


def in_notebook() -> bool:
    """Whether the code runs in the kernel of a notebook (Jupyter, VS Code, Colab), which can show HTML."""
    return _shell() is not None


def cell_text(text: str) -> str:
    """Returns ``text`` as a cell can print it: in a notebook, with its lines broken between words at :data:`CELL_WIDTH`."""
    if not in_notebook():
        return text
    lines = (textwrap.wrap(line, CELL_WIDTH, break_on_hyphens=False) or [""] for line in text.split("\n"))
    return "\n".join(part for line in lines for part in line)


class NotebookPlace:
    """One place in the output of the cell that runs, whose content is replaced."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def is_used(self) -> bool:
        """Whether anything was shown."""
        return self._handle is not None

    def put(self, content: dict[str, str]) -> None:
        """Shows ``content``, texts by MIME type, instead of what was shown before."""
        if self._handle is None:
            display = import_module("IPython.display").display  # a notebook has it
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


class NotebookLine:
    """A progress bar with lines of text below it, in one place of the cell's output; it needs no extension of the notebook."""

    def __init__(self) -> None:
        self._place = NotebookPlace()

    def show(self, done: int, total: int, *lines: str) -> None:
        """Shows ``done`` of ``total`` and ``lines`` instead of what was shown before."""
        bar = f'<progress value="{done}" max="{max(total, 1)}" style="width:min(100%,24em)"></progress>'
        shown = [line for line in lines if line]
        html = "".join(f'<div style="overflow-wrap:anywhere">{_text(line)}</div>' for line in shown)
        self._place.put({"text/plain": "\n".join([f"{done:,}/{total:,}", *shown]), "text/html": f"{bar}{html}"})

    def close(self, *lines: str) -> None:
        """Leaves ``lines``, without the bar; nothing by default."""
        if self._place.is_used:
            html = "".join(f'<div style="overflow-wrap:anywhere">{_text(line)}</div>' for line in lines)
            self._place.put({"text/plain": "\n".join(lines), "text/html": html})
            self._place = NotebookPlace()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Returns a table of plain texts as HTML that scrolls where it is too wide; the first ``left`` columns are texts, the others
    numbers. An empty ``head`` leaves the line of titles out."""

    def line(cells: Sequence[str], tag: str) -> str:
        styles = [_CELL if at < left else _NUMBER for at in range(len(cells))]
        return "".join(
            f'<{tag} style="{style}">{_text(cell)}</{tag}>' for style, cell in zip(styles, cells, strict=True)
        )

    top = f"<thead><tr>{line(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f'<tr style="background:none">{line(row, "td")}</tr>' for row in rows)
    return (
        '<div style="overflow-x:auto;max-width:100%"><table style="border-collapse:collapse;color:inherit;margin:.3em 0">'
        f"{top}<tbody>{body}</tbody></table></div>"
    )


def heading(title: str, note: str = "") -> str:
    """Returns a bold title and a note below it, both plain text, as HTML."""
    below = f'<div style="opacity:.75">{_text(note)}</div>' if note else ""
    return f"<div><b>{_text(title)}</b></div>{below}"


def tile(picture: str | None, title: str, *lines: str) -> str:
    """Returns a small image with plain texts below it; ``picture`` is its address, such as a data URI, or None."""
    shown = (
        "<div>(not there any more)</div>"
        if picture is None
        else f'<img src="{escape(picture)}" alt="" style="width:112px;height:112px;object-fit:contain;margin:0">'
    )
    below = "".join(f'<div style="overflow-wrap:anywhere">{_text(line)}</div>' for line in lines if line)
    return (
        '<div style="display:inline-block;vertical-align:top;width:11em;margin:.3em .6em .6em 0;font-size:.85em">'
        f'{shown}<div style="overflow-wrap:anywhere"><b>{_text(title)}</b></div>{below}</div>'
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _shell() -> Any:
    """Returns IPython's shell if it belongs to a kernel; None in a terminal. Nothing is imported for this."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
