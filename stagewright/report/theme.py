"""The style of all figures (colours, fonts, sizes), and their conversion to PNG and to SVG for the page.

It uses matplotlib's objects directly and not pyplot, whose figures are global state. The colours are those of Okabe and Ito
("Color Universal Design", 2008), which people with colour-vision deficiency can distinguish. In the SVG the colours of
background and text are CSS variables, so that they follow the page's light or dark mode.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stagewright.report.drawing import Drawing

INK, MUTED, GRID, PAPER = "#1b1f24", "#69717c", "#dfe3e8", "#fefefe"
ON_COLOUR = "#ffffff"
"""Text on a strong colour, which is as strong in dark mode: it stays white there."""
TRAIN, RAW, EMA, SWA, CHOSEN = "#0072b2", "#d55e00", "#009e73", "#b2589a", "#e69f00"
RIGHT, WRONG = TRAIN, RAW
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}

WIDTH = 5.2
"""Width of a figure in inches: 10 pt text is readable when a figure fills the width of a phone, and two figures fit next to each
other on a large screen."""
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
    """Context manager in which figures are drawn and rendered in stagewright's style; restores matplotlib's settings."""
    with matplotlib.rc_context(cast(Any, _rc())), warnings.catch_warnings():
        # No installed font may have the characters of class names; the browser draws the SVG's text and may have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Returns an empty figure with an Agg canvas; ``height`` and ``width`` are in inches."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, *, left: float, right: float, top: float, bottom: float, **share: Any) -> Axes:
    """Adds axes to ``figure`` with margins in inches and returns them."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box, facecolor="none", **share)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=3, pad=2)
    return axes


def title(figure: Figure, text: str, note: str = "") -> None:
    """Writes a bold title at the upper left, and next to it a smaller ``note`` in grey."""
    width, height = figure.get_size_inches()
    y = 1 - 0.08 / height
    bold = figure.text(0.1 / width, y, text, weight="bold", size=10.5, va="top")
    if note:
        end = bold.get_window_extent().x1 / figure.bbox.width
        figure.text(end + 0.1 / width, y - 0.02 / height, note, size=8.5, color=MUTED, va="top")


def render(name: str, alt: str, figure: Figure) -> Drawing:
    """Renders ``figure`` as PNG and SVG; equal data give equal bytes."""
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
    # Identifiers must be unique in a document, and one page contains many figures.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
