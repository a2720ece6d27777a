"""Standard output and error: what happens if nobody reads them any more, or if the disk behind them is full.

The convention: a process whose work matters more than its output (above all a training) continues without a message. A
process whose only result is its output (``plan``, ``evaluate``) ends with an error message; if its reader has closed the
pipe (``| head``), it ends silently.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from stagewright.errors import StorageError
from stagewright.system.notebook import cell_text
from stagewright.text import folded, visible


class Output:
    """A text stream that wraps ``stream``. After its first failed write, all output goes to the null device.

    Control codes are written as escape sequences: they come from names in files, and a terminal must not obey them. Only what
    :class:`stagewright.system.terminal.Terminal` styles passes by ``styled``.

    If the output is ``needed``, the failure is raised: BrokenPipeError if nobody reads any more, else StorageError.
    Characters that the stream's encoding lacks are written as escape sequences. If ``stream`` is None, nothing is written.
    """

    def __init__(self, stream: TextIO | None, *, needed: bool = False) -> None:
        self.stream, self.needed = stream, needed
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Writes ``text``; returns its length."""
        return self.write_styled(visible(text))

    def write_styled(self, text: str) -> int:
        """Writes ``text`` with its control codes; returns its length."""
        self._try(lambda stream: _write(stream, text))
        return len(text)

    @property
    def styled(self) -> TextIO:
        """The same output for text whose control codes are our own."""
        return cast(TextIO, _Styled(self))

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each of ``lines`` without adding newlines."""
        for line in lines:
            self.write(line)

    def write_bytes(self, data: bytes) -> None:
        """Writes the bytes ``data`` after the text written so far."""

        def put(stream: TextIO) -> None:
            stream.flush()
            stream.buffer.write(data)
            stream.flush()

        self._try(put)

    def flush(self) -> None:
        """Passes buffered output to the system."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether the stream is a terminal that can still be written."""
        if self.stream is None or self.failure is not None or getattr(self.stream, "closed", False):
            return False
        ask = getattr(self.stream, "isatty", None)  # what a program puts in the place of standard output may only write
        return ask is not None and bool(ask())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self.failure is None and self.stream is not None:
            try:
                action(self.stream)
            except OSError as error:
                self.failure = error
                _to_null_device(self.stream)
            except ValueError as error:  # another part of the program has closed the stream
                if not self.stream.closed:
                    raise
                self.failure = error
        if self.needed and isinstance(self.failure, OSError):
            if self.failure.errno == errno.EPIPE:
                raise BrokenPipeError(errno.EPIPE, "nobody reads the output") from self.failure
            raise StorageError(
                f"the output cannot be written: {self.failure.strerror or self.failure}",
                "a terminal, a pipe, or a file on a disk with room",
                "free some space, or send the output to another place",
            ) from self.failure


class _Styled:
    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, text: str) -> int:
        return self._output.write_styled(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _to_null_device(stream: TextIO) -> None:
    """Redirects the file descriptor of ``stream`` to the null device, also for the rest of its buffer and for what other
    libraries print."""
    try:
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
        stream.flush()
    except (OSError, ValueError):  # a stream without a descriptor, or no null device: its output is dropped
        return


def failsafe_stream(stream: TextIO | None) -> Any:
    """Returns ``stream`` wrapped so that a failed write raises nothing. A stream that is an :class:`Output` already is
    returned as it is."""
    return stream if isinstance(stream, Output) else Output(stream)


def print_bytes(data: bytes) -> None:
    """Writes the bytes ``data`` to standard output, after the text written so far."""
    stream = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout, needed=True)
    stream.write_bytes(data)


def tell(text: str, stream: Any = None) -> None:
    """Prints sentences to ``stream``, by default standard output. On a terminal they are folded at blanks, without dividing a
    number from its unit, in a notebook they are no wider than a cell, and elsewhere their lines stay whole. For data and
    commands, which are copied in one piece, use print."""
    target = sys.stdout if stream is None else stream
    on_terminal = failsafe_stream(target).isatty()
    print(folded(text, shutil.get_terminal_size().columns) if on_terminal else cell_text(text), file=target, flush=True)


def failsafe_notices(say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a function that calls ``say`` for progress messages and ignores failures of the output, so that the work
    continues without them."""

    def say_or_not(text: str) -> None:
        if say is print or say is tell:
            tell(text, failsafe_stream(sys.stdout))
            return
        try:
            say(text)
        except OSError:
            return

    return say_or_not


@contextmanager
def guarded() -> Iterator[None]:
    """Context manager that wraps standard output and error in :class:`Output`. A failure of standard output is raised unless
    :func:`make_output_optional` was called; one of standard error is ignored.

    Standard streams that were closed before the process began are opened on the null device. Otherwise a file that this
    process opens would get their descriptor, and libraries would print into it.
    """
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Output(sys.stdout, needed=True), Output(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        ours = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in ours:  # flushed here, since a failing flush at the interpreter's end would change the exit code
            if isinstance(stream, Output):
                stream.needed = False
                stream.flush()


def _open_closed_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                with suppress(OSError):  # without a null device the stream stays closed
                    # The new descriptor gets the lowest free number, which is the missing one.
                    os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def make_output_optional() -> None:
    """From now on, failures of standard output are ignored, because the work of this process matters more than its
    output."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False
