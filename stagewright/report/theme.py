"""How every figure looks: colours, type, sizes, and how it becomes a PNG and an SVG for the page.

Uses matplotlib's objects directly, never pyplot, whose figures are global state. Colours are Okabe and Ito's ("Color
Universal Design", 2008), which people with colour-vision deficiency tell apart; in the SVG the colours of paper and ink are
CSS variables, so that the page's light and dark modes reach into it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1f24", "#69717c", "#dfe3e8", "#fefefe"
TRAIN, RAW, EMA, SWA, CHOSEN = "#0072b2", "#d55e00", "#009e73", "#b2589a", "#e69f00"
RIGHT, WRONG = TRAIN, RAW
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}

WIDTH = 5.2
"""Inches: 10 pt text stays readable when a figure fills a phone's width, and two fit side by side on a desk."""
_DPI = 200
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS")


def _rc() -> dict[str, Any]:
    installed = set(font_manager.fontManager.get_font_names())
    return {
        "font.family": [name for name in _FONTS if name in installed] or ["sans-serif"],
        "font.size": 9.0,
        "text.color": INK,
        # A class called "$10" is a name, not a formula.
        "text.parse_math": False,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 8.5,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.unicode_minus": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "lines.solid_joinstyle": "round",
        "path.simplify": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "stagewright",
    }


@contextmanager
def themed() -> Iterator[None]:
    """Everything drawn and rendered within looks like stagewright; matplotlib's settings are put back after."""
    with matplotlib.rc_context(cast(Any, _rc())), warnings.catch_warnings():
        # Class names may use scripts that no installed font has; the browser, which draws the SVG's text, may have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches, on an Agg canvas."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, *, left: float, right: float, top: float, bottom: float, **share: Any) -> Axes:
    """Axes within margins given in inches."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box, facecolor="none", **share)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=3, pad=2)
    return axes


def title(figure: Figure, text: str, note: str = "") -> None:
    """A bold title at the upper left, and a quiet note behind it."""
    width, height = figure.get_size_inches()
    y = 1 - 0.08 / height
    bold = figure.text(0.1 / width, y, text, weight="bold", size=10.5, va="top")
    if note:
        end = bold.get_window_extent().x1 / figure.bbox.width
        figure.text(end + 0.1 / width, y - 0.02 / height, note, size=8.5, color=MUTED, va="top")


@dataclass(frozen=True)
class Drawing:
    """A finished figure. ``alt`` says in words what it shows."""

    name: str
    alt: str
    png: bytes
    svg: str
    """An ``<svg>`` element that takes its ink and paper from CSS variables --ink, --muted, --grid, --paper."""


def render(name: str, alt: str, figure: Figure) -> Drawing:
    """``figure`` as PNG bytes and as SVG; both are the same bytes whenever the data are the same."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(name, alt, png.getvalue(), _inline(svg.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*" width="[^"]*"', r"\1\2", svg, count=1
    )
    # Identifiers are the document's, and one page holds many figures.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
