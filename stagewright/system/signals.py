"""Stopping on request: SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C let the step in progress finish, so that the run can save and exit.

The convention: a process that was stopped so exits with ``EXIT_STOPPED`` (75, ``EX_TEMPFAIL`` of sysexits.h): its state
is saved, and ``stagewright resume`` goes on from there.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from stagewright.errors import Stopped

EXIT_STOPPED = 75
"""Exit code of a run stopped on request with its state saved; ``stagewright resume`` goes on."""

_NAMES = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "SIGHUP (the terminal was closed)",
    signal.SIGUSR1: "SIGUSR1",
}


class StopSignal:
    """A context in which SIGTERM, SIGHUP, SIGUSR1 and SIGINT ask for a stop instead of ending the process.

    Before :meth:`arm`, in the set-up, a signal raises :class:`~stagewright.errors.Stopped` at once, as there is nothing
    to save. After it, signals only set ``requested``, which the loop reads between steps; a second Ctrl-C raises
    KeyboardInterrupt, for people who will not wait. A SIGHUP that was ignored before (``nohup``) stays ignored. On leaving,
    the handlers of before are back. Outside the main thread, where Python allows no handlers, it never hears a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason: str | None = None
        """The name of the signal that came first; None before."""
        self._armed = False
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}
        self._unraisable: Any = None

    def arm(self) -> None:
        """From now on there is something to save. Raises Stopped if a stop was asked for before."""
        self._armed = True
        # A library may have swallowed what the handler raised, in a callback for instance.
        if self.requested:
            raise self._stopped()

    def _hear(self, number: int, frame: FrameType | None) -> None:
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
                self._before[number] = signal.signal(number, self._hear)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._keep_silent
        return self

    def _keep_silent(self, unraisable: sys.UnraisableHookArgs) -> None:
        """A stop that met a destructor, which Python cannot pass on: :meth:`arm` raises it again, so nothing is printed."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._unraisable is not None:
            sys.unraisablehook, self._unraisable = self._unraisable, None
        while self._before:
            number, handler = self._before.popitem()
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.requested and not self._armed and isinstance(error, Exception):
            # pydantic makes errors of its own of whatever is raised in its callbacks, also of what the handler raised.
            raise self._stopped() from error
