"""Finished figures; needs no matplotlib, which draws them (:mod:`stagewright.report.theme`)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from stagewright.storage.files import write_for_user


@dataclass(frozen=True)
class Drawing:
    """A finished figure. ``alt`` describes it in words."""

    name: str
    alt: str
    png: bytes = field(repr=False)
    svg: str = field(repr=False)
    """An ``<svg>`` element whose colours are the CSS variables --ink, --muted, --grid, --paper."""

    def save(self, path: str | Path) -> None:
        """Writes the PNG to ``path``; StorageError if it cannot be written."""
        write_for_user(path, self.png)

    def _repr_html_(self) -> str:
        """Returns the figure for a notebook, in the colour of its text."""
        own = hashlib.sha256(self.svg.encode()).hexdigest()[:12]  # a notebook may show the same figure of several runs
        svg = re.sub(rf'(\bid="|href="#|url\(#){re.escape(self.name)}-', rf"\g<1>{self.name}-{own}-", self.svg)
        return (
            f'<div role="img" aria-label="{escape(self.alt)}" style="display:inline-block;width:100%;max-width:36em;'
            "--ink:currentColor;--muted:#7d8590;--grid:rgba(128,128,128,.35);--paper:#fefefe"
            f'">{svg}</div>'
        )


@dataclass(frozen=True)
class Plots:
    """Figures of a run, which a notebook shows, next to each other where its page is wide enough."""

    drawings: tuple[Drawing, ...]

    def __getitem__(self, at: int) -> Drawing:
        return self.drawings[at]

    def __len__(self) -> int:
        return len(self.drawings)

    def _repr_html_(self) -> str:
        cells = (
            f'<div style="flex:1 1 20em;min-width:0;max-width:36em">{one._repr_html_()}</div>' for one in self.drawings
        )
        return f'<div style="display:flex;flex-wrap:wrap;gap:.5em 1em">{"".join(cells)}</div>'
