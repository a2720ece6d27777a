"""The event log: what happened in a run, one JSON object a line, append-only, and the observers who are told.

The convention: an event is ``{"kind", "step", ..., "clock"}``. All but ``clock`` is a function of the plan, so that an
interrupted run's live events equal an unbroken one's; what depends on time or machine goes into ``clock``. Kinds that
depend on how often a process was started are the session kinds. Nothing is ever removed: a ``resumed`` or ``rolled_back``
event of step k supersedes every event of a later step that stands before it; a ``rolled_back`` that a process wrote before it
was killed, and the next one again, supersedes the first and all since. Floats that are not finite are written ``NaN`` and
``Infinity``, as Python's json reads them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from stagewright.errors import CheckpointError, Stopped
from stagewright.storage.append_file import AppendFile, Seal
from stagewright.storage.files import read_own

Event = dict[str, Any]

SESSION_KINDS = frozenset({"started", "resumed", "saved", "stopped", "notice", "memory"})
"""Kinds that depend on interruptions, and are left out when runs are compared."""
REWINDING_KINDS = frozenset({"resumed", "rolled_back"})
"""Kinds that supersede the events of later steps before them."""
TRANSIENT_KINDS = frozenset({"progress", "evaluating", "computing"})
"""Kinds that observers see and the log does not keep."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the events of a run after they were written; cannot affect the run."""

    def see(self, event: Event) -> None:
        """Receives one event, as a separate copy. If it raises, the error is logged and the observer is removed."""
        ...

    def close(self) -> None:
        """Called when the run or this process ends."""
        ...


class EventLog:
    """Writes the events of a run to ``path`` and hands them to ``observers``.

    With ``resume_step`` None a new log is begun; CheckpointError if ``path`` holds events already. Else the log there
    is taken up: a torn last line is cut, and a ``resumed`` event is written with the name of the ``checkpoint`` (None
    where the run starts over) and the ``rejected`` ones, each ``{"name", "reason"}``. Belongs to one thread.
    """

    def __init__(
        self,
        path: Path,
        observers: Iterable[Observer] = (),
        *,
        resume_step: int | None = None,
        checkpoint: str | None = None,
        rejected: Sequence[Mapping[str, str]] = (),
    ) -> None:
        if resume_step is None and path.exists() and path.stat().st_size:
            raise CheckpointError(
                f"{path} already holds the events of a run",
                "a new run directory for a new run",
                "stagewright resume to go on with it, or another --out",
            )
        self._observers = list(observers)
        self._file = AppendFile(path)
        self._already_written: set[str] = set()
        if resume_step is not None:
            self.emit("resumed", resume_step, checkpoint=checkpoint, rejected=[dict(one) for one in rejected])
            if self._file.cut_bytes:
                text = f"cut {self._file.cut_bytes} bytes of an unfinished last line from {path.name}"
                self.emit("notice", resume_step, text=text)
            self._already_written = self._live()

    def emit(self, kind: str, step: int, *, clock: Mapping[str, Any] | None = None, **payload: Any) -> None:
        """Writes one event and tells the observers; after it returns a ``kill -9`` cannot lose it.

        ``payload`` is plain JSON and the same in every run of the plan; ``clock`` is the rest, and gets ``at``, the
        time as ISO-8601 in UTC. Transient kinds are not written, and neither is an event which the log of a resumed run
        has already: a process killed right after a checkpoint may have written it. StorageError if the disk is full.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {"kind": kind, "step": step, **payload, "clock": {"at": at, **(clock or {})}}
        line = json.dumps(event)
        if kind not in TRANSIENT_KINDS and not (
            self._already_written and _canonical(_bare(event)) in self._already_written
        ):
            self._file.append(line.encode() + b"\n")
        for observer in tuple(self._observers):
            # Each reads its own copy of the line: what one does to an event, no other and no caller sees.
            try:
                observer.see(json.loads(line))
            except (KeyboardInterrupt, Stopped):
                raise
            except BaseException as error:  # SystemExit too: an observer ends no run
                self._switch_off(observer, step, error)

    def rolled_back(self, step: int, **payload: Any) -> None:
        """Writes that the run goes on from ``step`` again; the ``number`` in the payload counts such events of the run. What it
        does again up to where it was is not written twice."""
        self._already_written = set()
        self.emit("rolled_back", step, **payload)
        self._already_written = self._live()

    def skip_repeats(self) -> None:
        """From now on, events that the log already contains are not written again: the run repeats steps after a rollback."""
        self._already_written = self._live()

    def _live(self) -> set[str]:
        return {_canonical(event) for event in comparable(live_events(self._file.path))}

    def _switch_off(self, observer: Observer, step: int, error: BaseException) -> None:
        if observer not in self._observers:  # it failed again on the notice of another's failure
            return
        self._observers.remove(observer)
        name = type(observer).__name__
        _log.error("%s failed and is switched off", name, exc_info=error)
        self.emit("notice", step, text=f"{name} failed and is switched off: {type(error).__name__}: {error}")

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


def read_events(path: Path, damaged: Callable[[str], None] = _log.warning) -> list[Event]:
    """Every event of the log in order, with its ``line`` (from 1) and whether it is ``superseded``: a later resume began
    before its step.

    Skips an unfinished last line, which the run may be writing at the moment, and damaged lines; for each of these, ``damaged``
    is called with a sentence. FileNotFoundError if there is no log.
    """
    events: list[Event] = []
    *lines, _unfinished = read_own(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            event = _checked(json.loads(line))
            kind, step = event["kind"], event["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged(f"{path.name}: line {number} is damaged and left out")
            continue
        if kind in REWINDING_KINDS:
            since = _first_writing(event, events)
            for at, earlier in enumerate(events):
                earlier["superseded"] = earlier["superseded"] or earlier["step"] > step or at >= since
        events.append({**event, "line": number, "superseded": False})
    return events


def _first_writing(event: Event, before: Sequence[Event]) -> int:
    """Returns the index of an earlier event of the same rollback, which a killed process wrote, or the number of events."""
    if event["kind"] != "rolled_back" or "number" not in event:
        return len(before)
    own = (event["number"], event["step"])
    places = (
        at for at, one in enumerate(before) if one["kind"] == "rolled_back" and (one.get("number"), one["step"]) == own
    )
    return next((at for at in places if not before[at]["superseded"]), len(before))


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "text", "stage_name"), (str,)),
    **dict.fromkeys(("rows", "paths", "reasons", "rejected"), (list,)),
    **dict.fromkeys(("clock", "results"), (dict,)),
}
"""Types of the fields that readers of the log depend on."""


def _checked(event: Any) -> Event:
    """Returns ``event`` with a clock; ValueError or KeyError if kind or step is missing or a field has a wrong type."""
    event = {"clock": {}, **event}
    if not isinstance(event["kind"], str) or type(event["step"]) is not int:
        raise ValueError("kind or step is amiss")
    if any(name in event and not isinstance(event[name], kinds) for name, kinds in _TYPES.items()):
        raise ValueError("a field has another type")
    results = event.get("results", {}).values()
    if not all(isinstance(one, dict) and isinstance(one["top1"], int | float) for one in results):
        raise ValueError("results have no top1")
    return event


def live_events(path: Path) -> list[Event]:
    """Returns the valid events in order: those of :func:`read_events` that are not superseded, as they were written."""
    return [
        {key: value for key, value in event.items() if key not in ("line", "superseded")}
        for event in read_events(path)
        if not event["superseded"]
    ]


def comparable(events: Iterable[Event]) -> list[Event]:
    """Returns ``events`` without session kinds and without ``clock``: what two runs of the same plan have in common.

    ``bad_image`` is included: an image that cannot be read fails at the same step again in a resumed run.
    """
    return [_bare(event) for event in events if event["kind"] not in SESSION_KINDS]


def _bare(event: Event) -> Event:
    return {key: value for key, value in event.items() if key not in ("clock", "line", "superseded")}


def _canonical(event: Event) -> str:
    return json.dumps(event, sort_keys=True)
