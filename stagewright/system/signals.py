"""Stopping on request: after SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C the current step is finished, then the run saves and exits.

The convention: a process that was stopped in this way exits with ``EXIT_STOPPED`` (75, ``EX_TEMPFAIL`` of sysexits.h). Its
state is saved, and ``stagewright resume`` continues from there. All other commands end at once with 128 and the number of the
signal (130 after Ctrl-C, 143 after SIGTERM), and state what they have kept (:class:`CommandSignals`, :func:`keeps`).
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from stagewright.errors import Cancelled, Stopped

EXIT_STOPPED = 75
"""Exit code of a run that was stopped on request and has saved its state; ``stagewright resume`` continues it."""

EXIT_LOST = 69
"""Exit code of every process of a run in which another process or host was lost. Nothing is damaged; start again."""

_NAMES = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "SIGHUP (the terminal was closed)",
    signal.SIGUSR1: "SIGUSR1",
}


class StopSignal:
    """Context manager in which SIGTERM, SIGHUP, SIGUSR1 and SIGINT request a stop instead of ending the process.

    Before :meth:`arm`, during set-up, a signal raises :class:`~stagewright.errors.Stopped` at once, as there is nothing
    to save. Afterwards a signal only sets ``requested``, which the training loop checks between steps; a second Ctrl-C
    raises KeyboardInterrupt, for users who do not want to wait. A SIGHUP that was ignored before (``nohup``) stays ignored.
    At the end the previous handlers are restored. Outside the main thread, where Python permits no signal handlers, it does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason: str | None = None
        """Why a stop was requested: the name of the first signal received, or a sentence. None if nobody says."""
        self.until: float | None = None
        """When the machine is taken away (``time.monotonic``), if that is known."""
        self._armed = False
        self._interrupts = 0
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._unraisable: Any = None

    def arm(self) -> None:
        """Ends the set-up: from now on there is something to save. Raises Stopped if a stop was requested before."""
        self._armed = True
        # A library may have caught the Stopped that the handler raised, for instance in a callback.
        if self.requested:
            raise self._stopped()

    def ask(self, reason: str, seconds: float | None = None) -> None:
        """Requests a stop because of ``reason``, with ``seconds`` left to save if that is known; may be called in any thread."""
        if seconds is not None:
            self.until = time.monotonic() + seconds
        self.reason = self.reason or reason
        self.requested = True

    @property
    def seconds_left(self) -> float:
        """Seconds until this machine is taken away; infinity where that is not known."""
        return math.inf if self.until is None else max(0.0, self.until - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        self.requested = True
        self.reason = self.reason or _NAMES[signal.Signals(number)]
        if not self._armed:
            raise self._stopped()
        if number == signal.SIGINT and self._interrupts > 1:
            raise KeyboardInterrupt

    def _stopped(self) -> Stopped:
        return Stopped(f"stopped by {self.reason} during set-up, before anything was trained that is not saved")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NAMES:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._suppress_stopped
        return self

    def _suppress_stopped(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Suppresses Python's message about a Stopped raised in a destructor, which Python cannot propagate; :meth:`arm`
        raises it again."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._unraisable is not None:
            sys.unraisablehook, self._unraisable = self._unraisable, None
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            # None means that the handler was not installed from Python; such a handler cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.requested and not self._armed and isinstance(error, Exception):
            # pydantic turns every exception raised in its callbacks into its own, including the handler's Stopped.
            raise self._stopped() from error


class CommandSignals(StopSignal):
    """Context manager of every command: a signal raises :class:`~stagewright.errors.Cancelled` in the main thread, which ends
    the command after its clean-up. A training has a :class:`StopSignal` of its own inside."""

    current: CommandSignals | None = None
    """The one of the command that runs."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._number = 0
        self._waits = False

    def __enter__(self) -> Self:
        CommandSignals.current = self
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        CommandSignals.current = None
        super().__exit__(kind, error, tb)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, such as a loader's worker, has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._number = number
        if self._waits and not self.requested:
            self.requested, self.reason = True, _NAMES[signal.Signals(number)]
            return
        super()._on_signal(number, frame)

    def _stopped(self) -> Stopped:
        return Cancelled(self._number, self.reason or "a signal")

    def waits(self, waits: bool) -> None:
        """Begins or ends a part of the work in which the first signal waits (:func:`whole`)."""
        self._waits = waits
        if self.requested and not waits:
            raise self._stopped()


@contextmanager
def whole() -> Iterator[None]:
    """Context manager of a small piece of a command's work that is done entirely or not at all, such as writing one answer and
    counting it: a signal takes effect at the end. A second signal takes effect at once, as the piece may wait for a reader."""
    command = CommandSignals.current
    if command is None:
        yield
        return
    command.waits(True)
    try:
        yield
    finally:
        command.waits(False)


@contextmanager
def keeps(kept: Callable[[], str], *, resumable: bool = False) -> Iterator[None]:
    """Context manager of work of which something stays if a signal ends it: ``kept()`` says what.

    ``resumable``: the same command continues it, so that the exit code is ``EXIT_STOPPED``.
    """
    try:
        yield
    except Cancelled as cancelled:
        if not cancelled.kept:
            cancelled.kept, cancelled.resumable = kept(), resumable
        raise
