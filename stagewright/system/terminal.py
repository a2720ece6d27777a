"""Styled output: rich's console, on which text from files is shown and not obeyed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from stagewright.system.notebook import CELL_WIDTH, in_notebook
from stagewright.system.output import Output, failsafe_stream
from stagewright.text import folded, visible


class Terminal(Console):
    """A console for tables, styles and progress bars on ``stream``, by default standard output.

    All styled output of the package goes through it: control codes in a text become escape sequences, whatever the text is part
    of. Brackets in a ``str`` are not markup; styles are given by :class:`rich.text.Text`. ``failsafe``: a failed write raises
    nothing.
    """

    def __init__(
        self, stream: TextIO | None = None, *, failsafe: bool = False, highlight: bool = True, soft_wrap: bool = False
    ) -> None:
        stream = stream or sys.stdout
        notebook = in_notebook()
        output = failsafe_stream(stream) if failsafe or isinstance(stream, Output) else Output(stream, needed=True)
        # Rich takes a terminal that knows no codes for one of 80 columns, and its lines would break anywhere.
        dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown") and output.isatty()
        columns, lines = shutil.get_terminal_size() if dumb else (None, None)
        super().__init__(
            file=output.styled,
            # A cell is no wider than this, and a line is broken between words here, not by the page within one.
            width=CELL_WIDTH if notebook else columns,
            height=lines,
            soft_wrap=soft_wrap and not notebook,
            highlight=highlight,
            markup=False,
            emoji=False,
            # In a notebook rich would make HTML of each line, and its live display needs ipywidgets; kernels set FORCE_COLOR,
            # but a cell obeys no codes that move the cursor.
            force_jupyter=False,
            force_terminal=False if notebook else None,
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders ``renderable`` with control codes in its text as escape sequences, and no number divided from its unit."""
        chosen = options or self.options
        if isinstance(renderable, Text) and not (chosen.no_wrap or renderable.no_wrap):
            renderable = renderable.copy()
            renderable.plain = folded(renderable.plain, chosen.max_width, cell_len)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
