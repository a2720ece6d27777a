"""The event log: what happened in a run, one JSON object a line, append-only, and the observers who are told.

The convention: an event is ``{"kind", "step", ..., "clock"}`` (:mod:`stagewright.rundir.event_kinds`). All but ``clock`` is a
function of the plan, so that an interrupted run's live events equal an unbroken one's; what depends on time or machine goes
into ``clock``. Kinds that depend on how often a process was started are left out of the comparison. Nothing is ever removed: a
``resumed`` or ``rolled_back`` event of step k supersedes every event of a later step that stands before it; a ``rolled_back``
that a process wrote before it was killed, and the next one again, supersedes the first and all since.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from stagewright.errors import CheckpointError, Stopped
from stagewright.rundir.event_kinds import Event, Notice, Resumed, RolledBack
from stagewright.rundir.event_lines import UnknownKind, from_line, to_line, without_clock
from stagewright.storage.append_file import AppendFile, Seal
from stagewright.storage.files import read_own

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the events of a run after they were written; cannot affect the run."""

    def see(self, event: Event) -> None:
        """Receives one event, as a separate object. If it raises, the error is logged and the observer is removed."""
        ...

    def close(self) -> None:
        """Called when the run or this process ends."""
        ...


class EventLog:
    """Writes the events of a run to ``path`` and hands them to ``observers``.

    With ``resumed`` None a new log is begun; CheckpointError if ``path`` holds events already. Else the log there is taken up:
    a torn last line is cut, and ``resumed`` is written. Belongs to one thread.
    """

    def __init__(
        self,
        path: Path,
        observers: Iterable[Observer] = (),
        *,
        resumed: Resumed | None = None,
    ) -> None:
        if resumed is None and path.exists() and path.stat().st_size:
            raise CheckpointError(
                f"{path} already holds the events of a run",
                "a new run directory for a new run",
                "stagewright resume to go on with it, or another --out",
            )
        self._observers = list(observers)
        self._file = AppendFile(path)
        self._already_written: set[str] = set()
        if resumed is not None:
            self.emit(resumed)
            if self._file.cut_bytes:
                text = f"cut {self._file.cut_bytes} bytes of an unfinished last line from {path.name}"
                self.emit(Notice(step=resumed.step, text=text))
            self._already_written = self._live()

    def emit(self, event: Event) -> None:
        """Writes one event, with the time, and tells the observers; after it returns a ``kill -9`` cannot lose it.

        Kinds that are not ``in_file`` are not written, and neither is an event which the log of a resumed run has already: a
        process killed right after a checkpoint may have written it. StorageError if the disk is full.
        """
        event = _stamped(event)
        if event.in_file and not (self._already_written and _comparable_text(event) in self._already_written):
            self._file.append(to_line(event))
        for observer in tuple(self._observers):
            try:
                observer.see(replace(event))  # its own: even what reaches into a frozen object changes no other's
            except (KeyboardInterrupt, Stopped):
                raise
            except BaseException as error:  # SystemExit too: an observer ends no run
                self._switch_off(observer, event.step, error)

    def emit_rollback(self, event: RolledBack) -> None:
        """Writes that the run goes on from ``event.step`` again. What it does again up to where it was is not written twice."""
        self._already_written = set()
        self.emit(event)
        self._already_written = self._live()

    def skip_repeats(self) -> None:
        """From now on, events that the log already contains are not written again: the run repeats steps after a rollback."""
        self._already_written = self._live()

    def _live(self) -> set[str]:
        return {_comparable_text(event) for event in live_events(self._file.path) if not event.by_process}

    def _switch_off(self, observer: Observer, step: int, error: BaseException) -> None:
        if observer not in self._observers:  # it failed again on the notice of another's failure
            return
        self._observers.remove(observer)
        name = type(observer).__name__
        _log.error("%s failed and is switched off", name, exc_info=error)
        text = f"{name} failed and is switched off: {type(error).__name__}: {error}"
        self.emit(Notice(step=step, text=text))

    def sync(self) -> None:
        """Returns when every event is on the disk; to be called before a checkpoint is saved, which relies on them."""
        self._file.sync()

    def seal(self) -> Seal:
        """What the log holds now."""
        return self._file.seal()

    def close(self) -> None:
        """Closes the observers and the file. What an observer raises now is logged."""
        for observer in self._observers:
            try:
                observer.close()
            except (KeyboardInterrupt, Stopped):
                raise
            except BaseException as error:  # as in emit
                _log.error("%s failed on closing", type(observer).__name__, exc_info=error)
        self._observers = []
        self._file.close()


def append_event(path: Path, event: Event) -> Event:
    """Appends one event, with the time, to the log of a run that is not under way; returns it when it is on the disk.

    For work on a finished run, which no process has taken up. StorageError if the log cannot be written.
    """
    event, file = _stamped(event), AppendFile(path)
    try:
        file.append(to_line(event))
        file.sync()
    finally:
        file.close()
    return event


def _stamped(event: Event) -> Event:
    return replace(event, time=datetime.now(UTC).isoformat(timespec="milliseconds"))


@dataclass(frozen=True)
class LoggedEvent:
    """An event as it stands in the log."""

    event: Event
    line: int
    """From 1."""
    superseded: bool
    """Whether it counts no more: the run went on from before its step."""


def read_events(path: Path, left_out: Callable[[str], None] = _log.warning) -> list[LoggedEvent]:
    """Returns all events of the log in order.

    Skips an unfinished last line, which the run may be writing at the moment, damaged lines, and lines of a kind that this
    version does not know; for each of the latter two, ``left_out`` is called with a sentence. FileNotFoundError if there is no
    log.
    """
    events: list[Event] = []
    numbers: list[int] = []
    superseded: list[bool] = []
    *lines, _unfinished = read_own(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            event = from_line(line)
        except UnknownKind as kind:
            left_out(
                f"{path.name}: line {number} is left out: this version of stagewright does not know the kind {kind}"
            )
            continue
        except ValueError:
            left_out(f"{path.name}: line {number} is damaged and left out")
            continue
        if event.supersedes:
            since = _first_writing(event, events, superseded)
            for at, earlier in enumerate(events):
                superseded[at] = superseded[at] or earlier.step > event.step or at >= since
        events.append(event)
        numbers.append(number)
        superseded.append(False)
    return [LoggedEvent(*one) for one in zip(events, numbers, superseded, strict=True)]


def _first_writing(event: Event, before: Sequence[Event], superseded: Sequence[bool]) -> int:
    """Returns the index of an earlier event of the same rollback, which a killed process wrote, or the number of events."""
    if not isinstance(event, RolledBack) or event.number is None:
        return len(before)
    same = (
        at
        for at, one in enumerate(before)
        if isinstance(one, RolledBack) and (one.number, one.step) == (event.number, event.step)
    )
    return next((at for at in same if not superseded[at]), len(before))


def live_events(path: Path) -> list[Event]:
    """Returns the valid events in order: those of :func:`read_events` that are not superseded."""
    return [one.event for one in read_events(path) if not one.superseded]


def comparable(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Returns what two runs of the same plan have in common, as plain data: ``events`` without their clocks, and without the
    kinds that depend on how often a run was interrupted.

    ``bad_image`` is included: an image that cannot be read fails at the same step again in a resumed run.
    """
    return [without_clock(event) for event in events if not event.by_process]


def _comparable_text(event: Event) -> str:
    """Equal for two events just where they are equal but for their clocks, NaN included."""
    return json.dumps(without_clock(event), sort_keys=True)
