"""The streams of a process to its terminal: what happens when nobody reads them any more, or when they have no room.

The convention: a process whose work outlasts its output (a training above all) goes on quietly, as if nothing had
happened. A process whose output is all that it makes (``plan``, ``evaluate``) ends with a message, or without one where its
reader has gone (``| head``).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from stagewright.errors import StorageError


class Output:
    """A text stream like ``stream``, after whose first failed write everything goes to the null device.

    The failure is raised where the output is ``needed``: a BrokenPipeError where nobody reads any more, else a
    StorageError. What the stream's encoding lacks is written as an escape. With None as ``stream``, nothing is written.
    """

    def __init__(self, stream: TextIO | None, *, needed: bool = False) -> None:
        self.stream, self.needed = stream, needed
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Writes ``text``; returns its length."""
        self._try(lambda stream: _write(stream, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes ``lines`` as they are, one after the other."""
        for line in lines:
            self.write(line)

    def write_bytes(self, data: bytes) -> None:
        """Writes ``data`` as it is, behind the text so far."""

        def put(stream: TextIO) -> None:
            stream.flush()
            stream.buffer.write(data)
            stream.flush()

        self._try(put)

    def flush(self) -> None:
        """Hands what is buffered to the system."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self.stream is not None and self.failure is None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self.failure is None and self.stream is not None:
            try:
                action(self.stream)
            except OSError as error:
                self.failure = error
                _to_null_device(self.stream)
            except ValueError as error:  # somebody has closed it
                if not self.stream.closed:
                    raise
                self.failure = error
        if self.needed and isinstance(self.failure, OSError):
            if self.failure.errno == errno.EPIPE:
                raise BrokenPipeError(errno.EPIPE, "nobody reads the output") from self.failure
            raise StorageError(
                f"the output cannot be written: {self.failure.strerror or self.failure}",
                "a terminal, a pipe, or a file on a disk with room",
                "make room, or send the output to another place",
            ) from self.failure


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _to_null_device(stream: TextIO) -> None:
    """Lets the file descriptor of ``stream`` lead nowhere: the rest of its buffer, and what other libraries print."""
    try:
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
        stream.flush()
    except (OSError, ValueError):  # a stream without a descriptor, or no null device: what it fails at is dropped
        return


def unbreakable(stream: TextIO | None) -> Any:
    """``stream``, whose failures end nothing; standard output and error where they are guarded already."""
    return stream if isinstance(stream, Output) else Output(stream)


def print_bytes(data: bytes) -> None:
    """Writes ``data`` to standard output, behind the text so far."""
    stream = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout, needed=True)
    stream.write_bytes(data)


def forgiving(say: Callable[[str], None]) -> Callable[[str], None]:
    """``say`` for sentences on what is done: where it prints and the output fails, the work goes on without them."""

    def say_or_not(text: str) -> None:
        if say is print:
            print(text, file=unbreakable(sys.stdout), flush=True)
            return
        try:
            say(text)
        except OSError:
            return

    return say_or_not


@contextmanager
def guarded() -> Iterator[None]:
    """Within it, standard output is needed unless :func:`outlive_output` was called, and standard error never is.

    Streams that were closed before the process began lead to the null device, so that no file of ours gets their numbers,
    into which libraries print.
    """
    _fill_gaps()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Output(sys.stdout, needed=True), Output(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        ours = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in ours:  # at its own flush, the interpreter would fail with an exit code of its own
            if isinstance(stream, Output):
                stream.needed = False
                stream.flush()


def _fill_gaps() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                with suppress(OSError):  # without a null device it stays closed
                    # It gets the lowest number that is free.
                    os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def outlive_output() -> None:
    """From here on, the work of this process matters more than its output, whose failure ends nothing and is not said."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False
