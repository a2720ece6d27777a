"""Follows one run for one tracker: reads what is settled, sends it, keeps how far it is, and bears with a service that is away.

Nothing here can hold the training up: it is a process of its own, which only reads the run's files. A failure is said once; then
it is tried again after 1 s, 2 s, ... up to 5 minutes, until it works.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stagewright.errors import CheckpointError, RecipeError, StagewrightError
from stagewright.rundir.directory import RunDir
from stagewright.rundir.tracking import not_all_sent
from stagewright.text import printable, shortened
from stagewright.trackers.names import TRACKERS, check_trackers, resend
from stagewright.trackers.service import About, Service, Timed
from stagewright.trackers.source import Changed, Source, study_of
from stagewright.trackers.state import State, new_state, only_one, read_state, write_state

LOOK_SECONDS = 2.0
"""How often a run's files are looked at while it goes on."""
LONGEST_WAIT_SECONDS = 300.0
AT_THE_END_SECONDS = 60.0
"""How long it is tried to send the rest once the run has ended."""
_LONGEST_WAIT_AT_THE_END = 5.0
_MOST_STEPS = 200
"""Updates that are sent in one part."""
_MLFLOW_ITSELF = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # it is tried again here
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_USER = re.compile(r"//[^/@\s]+@")


@dataclass
class Follower:
    """Sends one run to one tracker."""

    run: RunDir
    tracker: str
    wait: Callable[[float], bool]
    """Waits so many seconds, less if the run ends meanwhile; returns whether it has ended."""
    say: Callable[[str], None]
    rebuild: bool = False
    with_files: bool = False
    """Whether summary.json and the model are sent too."""
    by_hand: bool = False
    """Whether a person waits for it (``stagewright track``)."""
    at_the_end: float = AT_THE_END_SECONDS
    """Seconds for which it is tried to send the rest once the run has ended."""
    moved_at: float = field(default_factory=time.monotonic, init=False)
    """When something was sent last, by ``time.monotonic()``."""
    _service: Service | None = field(default=None, init=False)
    _told: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        check_trackers([self.tracker])
        self.source = Source(self.run)
        self.state = self._begun()
        self._old: State | None = None

    def follow(self) -> bool:
        """Follows the run until it has ended; returns whether everything that is settled was sent.

        After the end it is tried for a minute; then a sentence gives the command that sends the rest. StagewrightError where
        trying again is of no use.
        """
        while True:
            ended = self.wait(0)
            with only_one(self.run, self.tracker) as alone:
                if alone:
                    if self.rebuild:
                        self._begin_anew()
                    return self._follow()
            self._tell("another", f"{self.tracker}: another process sends {self.run.root} now")
            if ended:
                return False
            self.wait(LOOK_SECONDS)

    def _follow(self) -> bool:
        failures = 0
        try:
            while True:
                ended = self.wait(0)
                try:
                    more = self._round(ended)
                    failures, self.moved_at = 0, time.monotonic()
                    if ended and not more:
                        self._end()
                        return self._tell_unsettled()
                except (CheckpointError, RecipeError):
                    raise
                except Exception as error:  # whatever a library raises, or a disk that is full
                    failures += 1
                    more = False
                    self._release()
                    self._tell("failure", self._failure(error))
                if ended and failures and time.monotonic() - self.moved_at > self.at_the_end:
                    self.say(self.rest())
                    return False
                if not more:
                    most = _LONGEST_WAIT_AT_THE_END if ended else LONGEST_WAIT_SECONDS
                    self.wait(min(2.0 ** (failures - 1), most) if failures else LOOK_SECONDS)
        finally:
            self._release()

    def _tell_unsettled(self) -> bool:
        """Says what is not sent since it may be taken back, of a run that has not finished; returns whether all else was sent."""
        if not self.source.is_over() and self.by_hand:
            last = self.source.last_step()
            whole = ", where a run is written in one piece" if self.state.sent == 0 else ""
            self.say(
                f"{self.tracker}: {self.run.root} has not finished, so that a resume may take steps back: sent up to step "
                f"{self.state.sent:,} of {last:,}{whole}; stagewright resume or finish settles the rest"
            )
        return self.state.sending is None

    def rest(self) -> str:
        """Returns the sentence that says how what is left is sent."""
        return not_all_sent(self.run.root, self.tracker)

    def _failure(self, error: Exception) -> str:
        text = printable(_USER.sub("//", f"{type(error).__name__}: {error}".splitlines()[0]))
        meanwhile = "" if self.by_hand else ", the training goes on"
        return f"{self.tracker} cannot be reached or refuses ({shortened(text, 200)}); it is tried again{meanwhile}"

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.say(text)

    def _begun(self) -> State:
        if self.rebuild:
            return new_state(self.run, self.source.plan, self.tracker)
        return read_state(self.run, self.source.plan, self.tracker) or new_state(
            self.run, self.source.plan, self.tracker
        )

    def _begin_anew(self) -> None:
        """Gives the run a new id; what was sent under the old one is dropped once all was sent again."""
        self.rebuild = False
        try:
            self._old = read_state(self.run, self.source.plan, self.tracker)
        except StagewrightError:  # damaged, or of another run, of which nothing is touched
            self._old = None
        generation = 1 if self._old is None else self._old.generation + 1
        self.state = new_state(self.run, self.source.plan, self.tracker, generation)
        service = self._new_service()
        if service.rewrites:
            service.drop(self.state.remote)
        write_state(self.run, self.state)

    def _new_service(self) -> Service:
        return make_service(self.tracker, self.run)

    def _round(self, ended: bool) -> bool:
        """Sends one part; returns whether there may be more at once."""
        if self._service is None:
            service = self._new_service()
            if service.only_whole and not self._is_whole_due(service):
                return False
            self._service = service
            self._open(service)
        service = self._service
        try:
            if self._send_part(service):
                return True
        except Changed:
            self._on_changed(service)
            return True
        over = self.source.is_over()
        if not service.only_whole or over:
            self._send_notes(service)
        if over:
            self._send_result(service)
        return False

    def _is_whole_due(self, service: Service) -> bool:
        """Returns whether a run that is written in one piece has finished, and is not written yet."""
        if not self.source.is_over():
            return False
        if self.state.result_sha256 == self._result_digest() and self.state.sent >= self.source.last_step():
            return False
        self.state = new_state(self.run, self.source.plan, self.tracker, self.state.generation)
        return True

    def _open(self, service: Service) -> None:
        state, env = self.state, self.source.env
        about = About(
            run=self.run,
            remote=state.remote,
            opened=state.opened,
            directory=state.directory,
            created=str(env.get("created") or ""),
            began_ms=state.sent_ms or self.source.time_at(0),
            settings=self.source.settings(),
            study=study_of(self.run.root),
        )
        known = service.open(about)
        state.opened = True
        if known is not None and known < state.sent:
            state.sent, state.sending, state.rows_sha256 = known, None, None
            state.notes, state.result_sha256 = 0, None
        write_state(self.run, state)
        self._ready = False
        self._known = known

    def _take_up(self, service: Service) -> bool:
        """Goes to the first row that was not sent; returns False while steps.csv does not reach it again."""
        state = self.state
        if not self.source.start_after(state.sent, state.rows_sha256):
            return False
        if self._known is not None and self._known > state.sent:
            if not self.source.start_after(self._known, None):
                return False
            state.sent, state.sending, state.rows_sha256 = self._known, None, self.source.digest
            write_state(self.run, state)
        self._ready = True
        return True

    def _send_part(self, service: Service) -> bool:
        state = self.state
        if not self._ready and not self._take_up(service):
            return False
        points = self.source.take(_MOST_STEPS, state.sending)
        if not points:
            return False
        if state.sending is None:
            state.sent_ms = state.sent_ms or self.source.time_at(state.sent)
            state.sending = self.source.taken
            state.sending_ms = max(state.sent_ms, self.source.time_at(self.source.taken))
            write_state(self.run, state)
        span = max(1, state.sending - state.sent)
        service.send(
            [
                Timed(one, state.sent_ms + (state.sending_ms - state.sent_ms) * (one.step - state.sent) // span)
                for one in points
            ]
        )
        state.sent, state.sent_ms, state.sending = state.sending, state.sending_ms, None
        state.rows_sha256 = self.source.digest
        write_state(self.run, state)
        return True

    def _on_changed(self, service: Service) -> None:
        """What was sent is not what steps.csv has now: it was taken back, or made again on other hardware."""
        if service.rewrites:
            service.drop(self.state.remote)
            self._release()
            self.state = new_state(self.run, self.source.plan, self.tracker, self.state.generation)
            write_state(self.run, self.state)
            return
        again = resend(self.run.root, self.tracker)
        self._tell(
            "changed",
            f"{self.tracker}: steps that were sent are not those of steps.csv any more (taken back, or made again on other "
            f"hardware); to send all anew: {again}",
        )
        self.state.rows_sha256 = None
        self._ready = False

    def _send_notes(self, service: Service) -> None:
        notes = self.source.notes()
        if (new := len(notes) - self.state.notes) > 0:
            service.annotate(notes, new)
            self.state.notes = len(notes)
            write_state(self.run, self.state)

    def _result_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.source.result(), sort_keys=True).encode()).hexdigest()

    def _send_result(self, service: Service) -> None:
        if (digest := self._result_digest()) != self.state.result_sha256:
            service.result(self.source.result(), "finished", self.state.sent_ms)
            self.state.result_sha256 = digest
            write_state(self.run, self.state)

    def _end(self) -> None:
        """Closes the service at the end of the run: all was sent."""
        service = self._service
        if service is None:  # written in one piece: before, or not yet
            if self.source.is_over():
                self.say(f"{self.tracker}: all of {self.run.root} was written before")
            return
        if not self.source.is_over():
            service.result({}, str(self.source.summary().get("status") or "stopped"), self.state.sent_ms)
        if self.with_files:
            found = [self.run.summary, self.run.bundle]
            service.artifacts([path for path in found if path.exists()])
        self._service = None
        service.close()
        service.confirm()
        old, self._old = self._old, None
        is_elsewhere = old is not None and old.remote != self.state.remote and not service.rewrites
        if old is not None and is_elsewhere and (left := service.drop(old.remote)) is not None:
            self.say(left)
        self.say(f"{self.tracker}: sent up to step {self.state.sent:,}; {service.where()}")

    def _release(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            try:
                service.close()
            except Exception as error:
                self._tell("failure", self._failure(error))


def make_service(tracker: str, run: RunDir) -> Service:
    """Returns the service of ``tracker`` for ``run``; imports its library."""
    if tracker == "tensorboard":
        from stagewright.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    if tracker == "mlflow":
        for name, value in _MLFLOW_ITSELF.items():  # before its import, which reads them
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from stagewright.trackers.mlflow import MLflow

        return MLflow(run)
    if tracker == "wandb":
        from stagewright.trackers.wandb import WandB

        return WandB(run)
    raise AssertionError(f"{tracker} is not one of {', '.join(TRACKERS)}")
