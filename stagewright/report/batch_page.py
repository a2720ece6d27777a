"""A batch as the network is fed it, beside the evaluation's view of the same images: as an HTML page, and as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.encode import encoded
from stagewright.report import theme
from stagewright.report.elements import Pictures, document, text
from stagewright.text import count_text, printable, shortened

Pixels = NDArray[np.uint8]

_PAGE_SIDE = 448
"""Larger images are reduced to this side in the page."""
_COLUMNS, _TILE, _GAP, _LINE = 4, 1.25, 0.12, 0.15
"""Of the PNG: number of columns; side of a tile, gap between columns and height of a line of text, in inches."""
_LETTERS, _LETTER = 40, 0.07
"""Number of characters below a pair, and width of one in inches in the sentences above."""
_DPI = 200


@dataclass(frozen=True, eq=False)
class Pair:
    """One image of the batch."""

    fed: Pixels
    """uint8 (S, S, 3): what the network is fed."""
    evaluated: Pixels
    """uint8 (E, E, 3): what an evaluation sees of the same file."""
    label: str
    """Its class, or both classes with their shares."""
    files: tuple[str, ...]
    """Path of the image, and of the one that is mixed into it."""


@dataclass(frozen=True, eq=False)
class BatchView:
    """What the page and the PNG show."""

    title: str
    facts: Sequence[str]
    """Sentences on the batch, in plain text."""
    pairs: Sequence[Pair]
    left_out: int
    """Number of images of the batch that are not among ``pairs``."""

    @property
    def rest(self) -> str:
        """A sentence on the images that are left out, or nothing."""
        return f"{count_text(self.left_out, 'more picture')} of the batch not shown." if self.left_out else ""


def page(view: BatchView) -> str:
    """Returns the page as HTML: one self-contained file."""
    pictures = Pictures(math.inf)
    figures = []
    for at, pair in enumerate(view.pairs):
        shown = []
        for kind, pixels in (("fed", pair.fed), ("evaluated", pair.evaluated)):
            pictures.add(f"{at} {kind}", encoded(pixels, _PAGE_SIDE))
            shown.append(pictures.html(f"{at} {kind}", f"{pair.files[0]}, {kind}"))
        files = "<br>".join(text(file) for file in pair.files)
        figures.append(
            f'<figure class="tile two"><div>{"".join(shown)}</div>'
            f"<figcaption><b>{text(pair.label)}</b><br>{files}</figcaption></figure>"
        )
    facts = "".join(f"<p>{text(fact)}</p>" for fact in view.facts)
    body = (
        f"<header><h1>{text(view.title)}</h1>{facts}</header>"
        f"<p>Left: what the network is fed. Right: the same file as an evaluation sees it.</p>"
        f'<div class="tiles twos">{"".join(figures)}</div><p>{text(view.rest)}</p>'
    )
    return document(f"{view.title}: stagewright", body, style=pictures.style)


def png(view: BatchView) -> bytes:
    """Returns the same as the bytes of a PNG file."""
    columns = min(_COLUMNS, max(len(view.pairs), 2))
    rows = math.ceil(len(view.pairs) / columns)
    wide, high = 2 * _TILE + _GAP, _TILE + 3.6 * _LINE
    facts = [line for fact in view.facts for line in _wrapped(printable(fact), int(columns * wide / _LETTER))]
    top = 0.42 + 0.17 * (len(facts) + 1)
    width, height = columns * wide + _GAP, top + rows * high + (0.25 if view.left_out else 0.05)
    with theme.themed():
        figure = theme.new_figure(height, width)
        theme.title(figure, printable(view.title))
        lines = [*facts, "Left: what the network is fed. Right: the same file as an evaluation sees it."]
        for at, line in enumerate(lines):
            figure.text(0.1 / width, 1 - (0.34 + 0.17 * at) / height, line, size=8.5, color=theme.MUTED, va="top")
        axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
        for at, pair in enumerate(view.pairs):
            x, y = _GAP + at % columns * wide, height - top - at // columns * high
            for offset, pixels in ((0.0, pair.fed), (_TILE, pair.evaluated)):
                box = (x + offset, x + offset + _TILE - 0.03, y - _TILE + 0.03, y)
                axes.imshow(pixels, extent=box, interpolation="nearest" if len(pixels) <= 64 else "antialiased")
            label, file = _wrapped(printable(pair.label), _LETTERS)[:2], shortened(printable(pair.files[0]), _LETTERS)
            for line, words in enumerate((*label, file)):
                colour = theme.INK if line < len(label) else theme.MUTED
                axes.text(x, y - _TILE - 0.02 - line * _LINE, words, size=7.5, color=colour, va="top")
        axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
        axes.axis("off")
        if view.left_out:
            figure.text(0.1 / width, 0.08 / height, view.rest, size=8.5, color=theme.MUTED, va="bottom")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _wrapped(line: str, letters: int) -> list[str]:
    """Returns ``line`` in pieces of at most ``letters`` characters, broken between words where that is possible."""
    pieces = [""]
    for word in line.split(" "):
        if pieces[-1] and len(pieces[-1]) + 1 + len(word) > letters:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {word}" if pieces[-1] else word
    return [shortened(piece, letters) for piece in pieces]
