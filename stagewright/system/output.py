"""Output that nobody reads any more: a reader that went away, a full disk under a log, a terminal that was closed.

A training has its own files for all that it has to say, so none of this may end it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


class Unbreakable:
    """A text stream that goes quiet at the first write that fails: its descriptor leads to nowhere from then on, so that
    neither what lies in buffers nor other users of the descriptor fail later, at the end of the process for instance."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text``, or nothing where that fails."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._go_quiet()
        return len(text)

    def flush(self) -> None:
        """Flushes, as far as there is a reader."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._go_quiet()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _go_quiet(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor, or a closed one
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def unbreakable(stream: TextIO) -> TextIO:
    """``stream``, whose failures end nothing."""
    return stream if isinstance(stream, Unbreakable) else cast(TextIO, Unbreakable(stream))


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """Inside, and until the end of the process if it never leaves, standard output and error cannot fail."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(unbreakable, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def forgiving(say: Callable[[str], object]) -> Callable[[str], None]:
    """``say``, without the error of an output that is gone."""

    def said(text: str) -> None:
        with contextlib.suppress(OSError):
            say(text)

    return said
