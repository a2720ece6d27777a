"""Notices that a process of the run is lost, so that nobody waits for it for ever.

A thread of every rank writes a beat into the store every few seconds, and reads those of all. Another thread, which never waits
for the network, decides: a rank that is silent, makes no progress or has failed is named on every rank, and all end with
``EXIT_LOST``. The first sentence that reaches the store is the one that all ranks print.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from torch.distributed import DistError

from stagewright.distributed.beats import Beat, Watch
from stagewright.distributed.rendezvous import NOT_SAID
from stagewright.distributed.world import World
from stagewright.system.signals import EXIT_LOST
from stagewright.text import printable

_PUBLISH_SECONDS = 3.0
_CALLBACK_SECONDS = 5.0
"""How long the end of a process waits for the store, and for what the caller does about it."""
_GRACE_SECONDS = 30.0
"""How long a process that knows its end may still run."""
_LOST_PEER = re.compile(
    r"gloo/transport|Connection (closed|reset)|Broken pipe|Timed out waiting|Socket Timeout|remote process exited"
    r"|NCCL communicator was aborted|ncclRemoteError|ncclSystemError"
)


class Heartbeat:
    """Context manager in which this process beats and watches the others. In a world of one it does nothing.

    Call :meth:`at` in every step, and :meth:`alive` within long phases. At the end of the context the process says that it is
    done, or, after an error, what :meth:`fail` or :meth:`explain` says; SystemExit counts as done.
    """

    def __init__(
        self,
        world: World,
        *,
        beat: float = 2.0,
        rank_timeout: float = 60.0,
        on_lost: Callable[[str], object] | None = None,
        say: Callable[[str], object] = lambda sentence: print(sentence, file=sys.stderr, flush=True),
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        """``beat``: seconds between beats. ``rank_timeout``: seconds after which a silent rank, or one without progress, is
        lost. ``on_lost`` is called once with the sentence that says so, in another thread, at most 5 s, after ``say``;
        then ``exit_process`` with ``EXIT_LOST``, which must end the process at once."""
        self._world, self._beat = world, beat
        self._on_lost, self._say, self._exit_process = on_lost, say, exit_process
        self._timeout = rank_timeout
        self._now: tuple[str, int, str] = ("start", 0, "")
        self._progress, self._number, self._busy = 0, 0, 0.0
        self._done = False
        self._clock = _Clock(4 * beat)
        self._watch = Watch(world.members, rank_timeout)
        self._said = self._explained = ""
        """The sentence that a rank has published, and the one that this rank has found."""
        self._broken = ""
        """Why the store cannot be reached."""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._deadline: float | None = None
        self._store: Any = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if self._world.rendezvous is not None:
            self._store = self._world.rendezvous.connect(2 * self._timeout)  # the judge comes first
            self._watch.begin(self._clock.tick())
            for work in (self._beat_on, self._judge):
                thread = threading.Thread(target=work, name=f"heartbeat {work.__name__}", daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or isinstance(error, SystemExit):
            self.done()
        elif _means_lost(error):
            self.explain()
        elif not self._done and self._deadline is None:
            self.fail(f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}")
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(_PUBLISH_SECONDS)

    def at(self, phase: str, step: int, note: str = "") -> None:
        """Says where this process is; ``note`` is what it last read. Costs less than a microsecond."""
        self._now = (phase, step, note)
        self._progress += 1

    def alive(self, note: str | None = None) -> None:
        """Says that this process makes progress within a phase; ``note`` replaces what it last read."""
        if note is not None:
            self._now = (*self._now[:2], note)
        self._progress += 1

    @contextmanager
    def busy(self, seconds: float = 1800.0) -> Iterator[None]:
        """Context manager of work that cannot report progress, such as compiling: it counts as progress for ``seconds``."""
        self._busy = time.monotonic() + seconds
        try:
            yield
        finally:
            self._busy = 0.0
            self._progress += 1

    def done(self) -> None:
        """Says that the work of this process has ended; the others do not miss it, and it no longer watches them."""
        if self._store is not None and not self._done:
            self._done = True
            _limited(self._write, _PUBLISH_SECONDS)

    def fail(self, sentence: str) -> None:
        """Says that this process ends because of an error. The others print ``sentence``, with rank, host and pid, and end at
        once. Then this process has 30 s to end."""
        if self._store is None:
            return
        member = self._world.members[self._world.rank]
        where = f"rank {self._world.rank} ({member.host}, pid {member.pid})"
        phase, step, _ = self._now
        self._deadline = time.monotonic() + _GRACE_SECONDS
        text = printable(f"{where} failed in phase {phase} at step {step}: {sentence}")
        _limited(lambda: self._publish(text), _PUBLISH_SECONDS)

    def explain(self) -> str:
        """Returns which process was lost, after an exchange has failed: waits until another rank says so, a process of this host
        has ended, or a rank has missed three beats. Then this process has 30 s to end."""
        if self._store is None or self._explained:
            return self._explained or "another process was lost"
        self._deadline = time.monotonic() + 4 * self._beat + _GRACE_SECONDS
        if not self._ending.acquire(blocking=False):  # the judge has noticed as well, and ends this process
            time.sleep(_GRACE_SECONDS)
        end = time.monotonic() + 4 * self._beat + 1
        sentence = ""
        while not (sentence := self._said or self._ended_here() or self._store_lost() or self._missed(3 * self._beat)):
            if time.monotonic() > end:
                sentence = "another process was lost, and all that are left beat on"
                break
            self._wake.set()
            time.sleep(0.05)
        self._explained = _limited(lambda: self._publish(sentence), _PUBLISH_SECONDS) or sentence
        return self._explained

    def _beat_on(self) -> None:
        """The thread that writes and reads; it may wait for the network."""
        while not self._stop.is_set():
            try:
                if not self._done:
                    self._write()
                self._read()
            except (DistError, RuntimeError) as error:
                self._broken = str(error).strip().split("\n")[0] or type(error).__name__
                return
            self._wake.wait(self._beat)
            self._wake.clear()

    def _write(self) -> None:
        self._number += 1
        if time.monotonic() < self._busy:
            self._progress += 1
        phase, step, note = self._now
        waits = self._world.waits
        beat = Beat(
            self._number, phase, step, self._progress + waits.count, printable(note)[:200], waits.waiting, self._done
        )
        self._store.set(self._key(f"beat/{self._world.rank}"), beat.to_json())

    def _read(self) -> None:
        names = [self._key(f"beat/{rank}") for rank in range(self._world.size)]
        *texts, said = self._store.multi_get([*names, self._key("lost")])
        beats = [Beat() if text == NOT_SAID else Beat.from_json(text) for text in texts]
        self._watch.see(self._clock.tick(), beats)
        if said != NOT_SAID:
            self._said = str(json.loads(said))

    def _publish(self, sentence: str) -> str:
        """Returns the sentence that all ranks print: the first that was published."""
        said = self._store.compare_set(self._key("lost"), NOT_SAID.decode(), json.dumps(sentence))
        return str(json.loads(said))

    def _key(self, name: str) -> str:
        assert self._world.rendezvous is not None
        return self._world.rendezvous.key(name)

    def _judge(self) -> None:
        """The thread that decides; it never waits for the network."""
        while not self._stop.wait(min(0.5, self._beat / 2)):
            now = self._clock.tick()
            if self._deadline is not None:
                if time.monotonic() > self._deadline:
                    self._exit_process(EXIT_LOST)
            elif not self._done and (sentence := self._said or self._store_lost(now) or self._lost()):
                self._end(sentence)

    def _lost(self) -> str:
        return "; ".join(self._described(*one) for one in self._watch.lost())

    def _described(self, rank: int, did: str, seconds: float) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        return self._watch.describe(rank, did, since)

    def _missed(self, seconds: float) -> str:
        """Says which rank has been silent for ``seconds``: the one that has been for longest."""
        at_work = [rank for rank, beat in enumerate(self._watch.beats) if not beat.done]
        rank = max(at_work, key=self._watch.silence, default=None)
        if rank is None or self._watch.silence(rank) <= seconds:
            return ""
        return self._described(rank, "has been silent", self._watch.silence(rank))

    def _store_lost(self, now: float | None = None) -> str:
        """Says that the store cannot be reached: its process is lost. ``now``: also where it only does not answer."""
        silent = now is not None and now - self._watch.last_reading > self._timeout
        if not (self._broken or silent) or self._watch.all_done():
            return ""
        rendezvous = self._world.rendezvous
        assert rendezvous is not None
        seconds = self._clock.tick() - self._watch.last_reading
        if rendezvous.by_launcher or rendezvous.serves:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
            whose = "the launcher's" if rendezvous.by_launcher else "this process's"
            return f"{whose} store at {rendezvous.host}:{rendezvous.port} has not answered since {since}"
        did = "has been silent" if not self._broken else "has been lost (it closed its connection)"
        return self._described(0, did, seconds)

    def _ended_here(self) -> str:
        """Says which process of this host has ended without saying so."""
        this = self._world.members[self._world.rank]
        for rank, member in enumerate(self._world.members):
            if not self._watch.beats[rank].done and member.has_ended(this) and not self._just_said():
                return self._described(rank, "has ended", self._watch.silence(rank))
        return ""

    def _just_said(self) -> bool:
        """Whether a rank has published its sentence before it ended; reads once more, to know."""
        with suppress(DistError, RuntimeError):
            said = self._store.get(self._key("lost"))
            self._said = self._said or ("" if said == NOT_SAID else str(json.loads(said)))
        return bool(self._said)

    def _end(self, sentence: str) -> None:
        """Ends this process, with one line."""
        if not self._ending.acquire(blocking=False):
            return
        sentence = self._said or _limited(lambda: self._publish(sentence), _PUBLISH_SECONDS) or sentence
        _limited(lambda: self._say(sentence), _CALLBACK_SECONDS)
        if (on_lost := self._on_lost) is not None:
            _limited(lambda: on_lost(sentence), _CALLBACK_SECONDS)
        _limited(sys.stdout.flush, 1.0)
        if self._world.rendezvous is not None and self._world.rendezvous.serves:
            time.sleep(
                2 * self._beat + 0.5
            )  # the store ends with this process, and the others must have read the sentence
        self._exit_process(EXIT_LOST)


class _Clock:
    """Seconds that do not count the time in which this process was stopped."""

    def __init__(self, most: float) -> None:
        """``most``: the longest time between two ticks of a process that runs."""
        self._most = max(2.0, most)
        self._lock = threading.Lock()
        self._before, self._now = time.monotonic(), 0.0

    def tick(self) -> float:
        """Returns the time now."""
        with self._lock:
            now = time.monotonic()
            self._now += min(now - self._before, self._most)
            self._before = now
            return self._now


def explain_lost(error: BaseException, heartbeat: Heartbeat) -> str | None:
    """Returns one line that says which process was lost if ``error`` means that one was; None for any other error.

    It waits a few seconds for the beats to tell. The caller prints the line and ends with ``EXIT_LOST``, by way of the end of
    ``join_world``, so that the others can read the line as well.
    """
    return heartbeat.explain() if _means_lost(error) else None


def _means_lost(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised from, says that an exchange failed because another process is gone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DistError) or (isinstance(seen, RuntimeError) and _LOST_PEER.search(str(seen))):
            return True
        seen = seen.__cause__
    return False


def _limited(function: Callable[[], Any], seconds: float) -> Any:
    """Returns what ``function`` returns; None after ``seconds``, or if it raises."""
    results: list[Any] = []

    def work() -> None:
        with suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
