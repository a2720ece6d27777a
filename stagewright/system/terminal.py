"""Styled output: rich's console, on which text from files is shown and not obeyed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from stagewright.system.notebook import CELL_WIDTH, in_notebook
from stagewright.system.output import Output, failsafe_stream
from stagewright.text import visible


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
        super().__init__(
            file=output.styled,
            highlight=highlight,
            # A cell is no wider than this, and a line is broken between words here, not by the page within one.
            soft_wrap=soft_wrap and not notebook,
            width=CELL_WIDTH if notebook else None,
            markup=False,
            emoji=False,
            # In a notebook rich would make HTML of each line, and its live display needs ipywidgets; kernels set FORCE_COLOR,
            # but a cell obeys no codes that move the cursor.
            force_jupyter=False,
            force_terminal=False if notebook else None,
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders ``renderable`` with control codes in its text as escape sequences."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
