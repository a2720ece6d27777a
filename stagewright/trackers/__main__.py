"""``python -m stagewright.trackers RUN NAME``: the process that sends a run to one tracker, beside the run or by hand.

Its standard input stays open as long as whoever began it lives, who never writes to it. Beside a run that is the training: when
it closes, whichever way that ends, the rest is sent for a minute at most. By hand (``--by-hand``) it is the command, and the lock
of the run's directory says whether the training goes on. What is to be said is written to standard output, a line each; what
libraries print goes nowhere.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from stagewright.errors import StagewrightError
from stagewright.rundir.directory import RunDir
from stagewright.storage.lock import is_held
from stagewright.trackers.follow import AT_THE_END_SECONDS, Follower

REST_LEFT, REFUSED = 3, 2
_LONGEST_CALL_SECONDS = 900.0
"""How long one call of a library may take by hand, such as W&B's upload of a long run."""


def main(arguments: list[str]) -> int:
    """Sends the run until it has ended, and then the rest; returns 0 if all was sent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("tracker")
    for flag in ("--by-hand", "--rebuild", "--with-files"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--at-the-end", type=float, default=AT_THE_END_SECONDS, help="seconds for the rest")
    given = parser.parse_args(arguments)
    say = _only_ours()
    closed = threading.Event()

    def has_ended() -> bool:
        return closed.is_set() or (given.by_hand and is_held(given.run) is not True)

    def wait(seconds: float) -> bool:
        if has_ended():
            time.sleep(seconds)
            return True
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not has_ended():
            closed.wait(min(left, 1.0) if given.by_hand else left)
        return has_ended()

    try:
        run = RunDir.existing(given.run)
        follower = Follower(run, given.tracker, wait, say, given.rebuild, given.with_files, given.by_hand)
        follower.at_the_end = given.at_the_end
        threading.Thread(target=_watch, args=(closed, follower, say), daemon=True).start()
        return 0 if follower.follow() else REST_LEFT
    except StagewrightError as error:
        say(f"error: {error}" if given.by_hand else f"{given.tracker}: {' '.join(str(error).split())}")
        return REFUSED


class _Say:
    """Writes to the standard output that this process was begun with."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(self._descriptor, f"{text}\n".encode("utf-8", "backslashreplace"))


def _watch(closed: threading.Event, follower: Follower, say: _Say) -> None:
    """Ends this process when its time is over, whatever a library is waiting for."""
    threading.Thread(target=_read_to_end, args=(closed,), daemon=True).start()
    while not closed.wait(1.0):
        if follower.by_hand and time.monotonic() - follower.moved_at > _LONGEST_CALL_SECONDS and follower.wait(0):
            break
    if not follower.by_hand:
        time.sleep(follower.at_the_end)
    say(follower.rest())
    os._exit(REST_LEFT)


def _read_to_end(closed: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    closed.set()


def _only_ours() -> _Say:
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return _Say(ours)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # a library may wait at its exit for a service that is away
