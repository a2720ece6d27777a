"""A text for the user that grows by whole lines while the work goes on: a file, a pipe or standard output."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from stagewright.storage.files import STDOUT, own_descriptor, unwritable, user_path
from stagewright.system.output import print_bytes


class LineWriter:
    """Context manager that writes text to ``target``, standard output for ``-``, as it comes. Whoever reads a file meanwhile, or
    after the process was killed, finds whole lines only.

    The target is opened, and a file that exists is emptied, with the first text. Bytes that are not valid Unicode are written as
    they are. StorageError if the target cannot be written; what was written before stays.
    """

    def __init__(self, target: str | Path) -> None:
        self.target = target if target == STDOUT else user_path(target)
        self._descriptor: int | None = None
        self._size: int | None = None
        """Length in bytes of the whole lines of a regular file; None for a pipe or a device."""

    def write(self, lines: str) -> None:
        """Writes ``lines``, which end in a newline."""
        data = lines.encode("utf-8", "surrogateescape")
        if self.target == STDOUT and sys.stdout.isatty():
            print(lines, end="")  # which shows control codes in it, and does not obey them
            return
        if self.target == STDOUT:
            print_bytes(data)
            return
        try:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            if self._size is not None:
                self._size += len(data)
        except BaseException as error:
            if self._size is not None and self._descriptor is not None:
                with contextlib.suppress(OSError):  # removes a line of which only a part was written
                    os.ftruncate(self._descriptor, self._size)
            if isinstance(error, OSError):
                raise unwritable(self.target, error) from error
            raise

    def _open(self) -> None:
        if (number := own_descriptor(str(self.target))) is not None:
            sys.stdout.flush()
            self._descriptor = os.dup(number)
            return
        # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever; with it, opening raises an error.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(self.target, flags, 0o666)
        os.set_blocking(self._descriptor, True)
        self._size = 0 if stat.S_ISREG(os.fstat(self._descriptor).st_mode) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
