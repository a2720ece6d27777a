"""The mirror of a run as the training sees it: told of each checkpoint, it uploads in a thread of its own and never waits.

A failed upload is tried again after 1 s to 5 min, with jitter, for as long as the process lives; what is missing lies in
``mirror.json`` and is taken up by the next start.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from obstore.exceptions import BaseError

from stagewright.errors import StorageError
from stagewright.mirror.owner import Fenced, Owner, Ownership
from stagewright.mirror.record import Record
from stagewright.mirror.uploads import Interrupted, Uploads
from stagewright.rundir.checkpoint import name_of
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import MirrorSummary
from stagewright.storage.objects import explain
from stagewright.text import seconds_text

_ROUND_SECONDS = 10.0
"""Seconds between two looks at the mirror where there is nothing to upload."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 300.0
_LONGEST_FINAL_RETRY = 10.0
"""Seconds until a new attempt while the end of the run waits."""
_ENDING_SECONDS = 5.0
_SAID_AFTER = 2.0


@dataclass(frozen=True)
class Behind:
    """What a mirror lacks."""

    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that are to be uploaded."""
    files: tuple[str, ...]
    """Names of the other files that have changed since they were uploaded."""
    error: str | None
    """Why the last attempt failed; None if it did not."""

    @property
    def nothing(self) -> bool:
        return not self.checkpoints and not self.files

    @property
    def model(self) -> bool:
        """Whether the trained model is missing, or a part of it."""
        return any(name.startswith("model/") for name in self.files)

    def words(self) -> list[str]:
        """Returns what is missing, as summary.json lists it."""
        return [*map(name_of, self.checkpoints), *self.files]

    def __str__(self) -> str:
        words = self.words()
        return f"{', '.join(words[:4])}{f' and {len(words) - 4} more' if len(words) > 4 else ''}"


class Mirror:
    """Uploads the run in ``run`` to the mirror that this process owns, from :meth:`start` to :meth:`close`.

    ``keep`` as in the recipe. ``on_fenced`` is called, in the thread, when another process has taken the mirror over.
    """

    def __init__(self, run: RunDir, ownership: Ownership, keep: int, on_fenced: Callable[[str], object]) -> None:
        self.run, self.ownership, self.url = run, ownership, ownership.url
        self._notes: list[str] = []
        self._uploads = Uploads(run, ownership, keep, self._notes.append)
        self._on_fenced = on_fenced
        self._wake, self._closing = threading.Event(), threading.Event()
        self._error: str | None = None
        self._failing_since: float | None = None
        self._settled = threading.Event()
        self._fenced: Owner | None = None
        self._thread = threading.Thread(target=self._live, name="mirror", daemon=True)
        self._recorded: Record | None = None

    def start(self) -> None:
        """Starts the thread. StorageError if mirror.json cannot be written."""
        self._record()
        self._thread.start()

    @property
    def fenced(self) -> Owner | None:
        """The process that has taken the mirror over, or None."""
        return self._fenced

    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` was saved and verified; returns at once."""
        self._uploads.saved(step)
        self._wake.set()

    def wanted(self) -> list[int]:
        """Returns the steps of the checkpoints that local pruning must leave alone, since they are to be uploaded."""
        return [] if self._fenced is not None else self._uploads.wanted()

    def notes(self) -> list[str]:
        """Returns the sentences for the log since the last call."""
        found = self._notes[:]
        del self._notes[: len(found)]
        return found

    def progress(self) -> str | None:
        """Returns a few words for the progress line, or None if there is nothing to say: ``mirror 2 behind for 3 min``."""
        if self._fenced is not None:
            return "mirror taken over"
        waiting, since = self._uploads.missing_steps(), self._failing_since
        if since is not None:
            return f"mirror {len(waiting)} behind, fails for {seconds_text(time.monotonic() - since)}"
        return f"mirror {len(waiting)} behind" if waiting else None

    def behind(self) -> Behind:
        """Returns what the mirror lacks now."""
        return Behind(tuple(self._uploads.missing_steps()), tuple(self._uploads.missing_files()), self._error)

    def summary(self) -> MirrorSummary:
        """Returns what summary.json says of the mirror now."""
        behind = self.behind()
        return {"url": self.url, "missing": behind.words(), "error": behind.error}

    def settle(self, seconds: float, *, say: Callable[[str], object], gives_up: Callable[[], bool]) -> Behind:
        """Waits until the mirror has everything, at most ``seconds`` and until ``gives_up()``; returns what it lacks then.

        ``say`` is called if that takes longer than a moment.
        """
        began, said = time.monotonic(), False
        self._settled.clear()
        self._closing.set()
        self._wake.set()
        while not self._settled.wait(0.05) and self._thread.is_alive():
            waited = time.monotonic() - began
            if waited > seconds or gives_up():
                break
            if waited > _SAID_AFTER and not said:
                said = True
                say(f"Waiting for the mirror {self.url}, which lacks {self.behind()}: at most {seconds_text(seconds)}")
        return self.behind()

    def close(self) -> None:
        """Ends the thread; an upload that is going on is given up. What is missing is recorded in mirror.json."""
        self._uploads.ends.set()
        self._closing.set()
        self._wake.set()
        self._thread.join(_ENDING_SECONDS)
        with contextlib.suppress(StorageError, OSError):
            self._record()

    def _live(self) -> None:
        """The thread: one round after the other, until it is fenced out or the process ends."""
        failures, hurried = 0, False
        while not self._uploads.ends.is_set():
            self._wake.clear()
            closing = self._closing.is_set()
            if closing and not hurried:
                failures, hurried = 0, True
            try:
                self._uploads.work(everything=closing)
                if closing and self.behind().nothing:
                    self._settled.set()
            except Interrupted:
                return
            except Fenced as fenced:
                self._end_fenced(fenced.owner)
                return
            except (
                BaseException
            ) as error:  # nothing may end this thread, also no panic of the library, which is no Exception
                if self._uploads.ends.is_set():
                    return
                self._tell_failure(error)
                longest = min(FIRST_RETRY * 2**failures, LONGEST_RETRY if not closing else _LONGEST_FINAL_RETRY)
                failures = min(failures + 1, 20)
                self._rest(random.uniform(max(FIRST_RETRY, longest / 2), longest), failed=True)
            else:
                failures = 0
                self._tell_recovery()
                with contextlib.suppress(StorageError, OSError):
                    self._record()
                self._rest(_ROUND_SECONDS, failed=False)

    def _rest(self, seconds: float, *, failed: bool) -> None:
        """Waits until the next round. A new checkpoint ends the wait, unless the last round has failed; the end of the run ends
        it in any case."""
        end, closing = time.monotonic() + seconds, self._closing.is_set()
        while (left := end - time.monotonic()) > 0 and not self._uploads.ends.is_set():
            if self._closing.is_set() and (not closing or not (failed or self._settled.is_set())):
                self._uploads.ends.wait(min(left, 0.1))
                return
            self._wake.wait(min(left, 0.1))
            if self._wake.is_set():
                if not failed:
                    return
                self._uploads.ends.wait(min(left, 0.1))

    def _tell_failure(self, error: BaseException) -> None:
        if isinstance(error, BaseError | FileNotFoundError) and not getattr(error, "filename", None):
            told = explain(error, self.url, "uploading").given
        else:
            told = error.given if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            self._notes.append(f"the mirror cannot be written, the training goes on: {told}")
        self._error = told
        with contextlib.suppress(StorageError, OSError):
            self._record()

    def _tell_recovery(self) -> None:
        if self._failing_since is not None:
            lasted = seconds_text(time.monotonic() - self._failing_since)
            self._notes.append(f"the mirror is written again, after {lasted}")
        self._failing_since = self._error = None

    def _end_fenced(self, owner: Owner) -> None:
        self._fenced = owner
        self._error = f"taken over by {owner}"
        self._settled.set()
        text = f"the mirror {self.url} was taken over by {owner}: this process uploads nothing more, saves and ends"
        self._notes.append(text)
        with contextlib.suppress(StorageError, OSError):
            self._record()
        self._on_fenced(text)

    def _record(self) -> None:
        """Writes mirror.json if it has changed."""
        behind = self.behind()
        number, unfenced = self.ownership.own.number, not self.ownership.conditional
        record = Record(self.url, unfenced, number, behind.checkpoints, tuple(behind.words()), behind.error)
        if record != self._recorded:
            record.write(self.run.root)
            self._recorded = record
