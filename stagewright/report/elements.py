"""Parts of a self-contained HTML page: escaped text, sections, tables.

All text that comes from a user or a file (names, paths, commands) passes :func:`text`, which escapes it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.text import printable

_STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")
_QUALITY = 82
_PLAIN_SIDE = 64
"""Pictures up to this side are PNGs, whose pixels the page enlarges without smoothing: JPEG would blur what is in them."""


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


def encoded(pixels: NDArray[np.uint8], side: int | None = None) -> bytes:
    """Returns ``pixels``, uint8 (H, W, 3), as the bytes of a PNG (small pictures) or JPEG file, reduced to at most ``side``."""
    image = Image.fromarray(pixels)
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if max(image.size) <= _PLAIN_SIDE:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
