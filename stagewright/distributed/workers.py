"""The worker processes of a launch on this host: they are started, get signals, are waited for, and their ends are explained.

Each worker leads a session of its own (as with torchrun). A terminal sends Ctrl-C to its foreground process group, in which
then only the launcher is, so that a worker gets every signal once, from the launcher.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from stagewright.distributed.verdict import EXIT_BAD_INPUT, VERDICTS, combined_code, read_verdict
from stagewright.errors import Cancelled, WorldError
from stagewright.system.notices import Notice
from stagewright.system.output import failsafe_stream, tell
from stagewright.system.signals import EXIT_LOST, EXIT_STOPPED

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
THREADS_CHOSEN = "STAGEWRIGHT_THREADS_CHOSEN"
"""Environment variable of a worker whose OMP_NUM_THREADS the launcher chose, not the user."""
_POLL = 0.05
"""Seconds between two looks at the workers."""
_LOST, _TAKEN = "a rank was lost", "the machine is taken away"
_AFTER_LOSS = 5.0
"""Seconds that the others get after a rank has ended because one was lost: they have waited for it as long as that one."""
_UNKILLABLE = 10.0
"""Seconds after SIGKILL in which a process ends, unless the kernel holds it (a lost disk or GPU)."""
_HURRIED = 128 + signal.SIGINT


def say(text: str) -> None:
    """Tells ``text`` on standard error, if anybody still reads that."""
    tell(text, failsafe_stream(sys.stderr))


class StopRequests:
    """Context manager in which SIGTERM, SIGINT, SIGHUP and SIGUSR1 to this process ask the workers to stop.

    Before :meth:`expect_workers` and after :meth:`expect_none` there are no workers: a signal raises Cancelled. Between the two
    it only sets ``number`` (the first signal's) and ``interrupts`` (how many SIGINT there were), which :class:`Crew` reads.
    Ctrl-Z is refused: it would stop the launcher alone, with the store by which the workers see that the others are alive.
    A signal that was ignored before (``nohup``) stays ignored. Outside the main thread, where Python permits no handlers, it
    does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.interrupts = 0
        self.until: float | None = None
        """When the machine is taken away (``time.monotonic``), if that is known."""
        self._workers_run = False
        self._previous: dict[int, Any] = {}

    def heed(self, notice: Notice) -> None:
        """Asks the workers to stop because of ``notice``; may be called in any thread."""
        say(f"{notice}: all ranks stop and save")
        self.until = time.monotonic() + notice.seconds
        if self._previous:  # else nobody handles the signal
            os.kill(os.getpid(), signal.SIGTERM)

    def expect_workers(self) -> None:
        """From now on signals are for the workers."""
        self._workers_run = True

    def expect_none(self) -> None:
        """From now on signals end the launcher."""
        self._workers_run = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, handler in [*((number, self._on_signal) for number in _PASSED_ON), (signal.SIGTSTP, _refuse)]:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # None means that the handler was not installed from Python; such a handler cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        self.number = self.number or number
        if not self._workers_run:
            raise Cancelled(number, signal_name(number))


def _refuse(number: int, frame: FrameType | None) -> None:
    say("a run on several processes cannot be paused by Ctrl-Z; Ctrl-C stops it and saves its state")


def signal_name(number: int) -> str:
    """Returns ``SIGTERM`` for 15, ``Ctrl-C`` for SIGINT, and ``signal 64`` for a number without a name."""
    if number == signal.SIGINT:
        return "Ctrl-C"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Worker:
    """One process: its rank, and once it has ended, its code (None if it was lost) and its text."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self.rank, self.process = rank, process
        self.has_ended = self.was_killed = False
        self.code: int | None = None
        self.text = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {socket.gethostname()}, pid {self.process.pid})"

    def send(self, number: int) -> None:
        """Sends a signal to the process, not to its children: a loader's processes are needed for saving."""
        if not self.has_ended:  # then the process is not waited for yet, and its number still its own
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kills the process and the children in its session."""
        if not self.has_ended:
            self.was_killed = True
            _kill_group(self.process.pid)


class Crew:
    """The workers of one attempt on this host.

    ``folder`` is a folder for their verdicts, which does not exist yet. ``grace``: seconds that they get to end by themselves
    after a signal, or after one of them has failed. ``threads`` is their OMP_NUM_THREADS unless the environment has one.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, grace: float, threads: int, requests: StopRequests
    ) -> None:
        self._command, self._folder, self._grace, self._requests = list(command), folder, grace, requests
        self._threads = threads
        self._workers: list[_Worker] = []
        self._passed: int | None = None
        self._deadline: tuple[float, str] | None = None
        self.code = EXIT_LOST
        """The exit code of this host, once :meth:`wait` has returned."""

    def start(self, environments: Sequence[Mapping[str, str]]) -> list[int]:
        """Starts a worker with each of ``environments``, which hold RANK and are added to this process's; returns their pids.

        Global rank 0 inherits standard input, output and error; of the others standard error alone. WorldError if the command
        cannot be started.
        """
        self._folder.mkdir()
        self._requests.expect_workers()
        failsafe_stream(sys.stdout).flush()
        for added in environments:
            environment = {**os.environ, **added, VERDICTS: str(self._folder)}
            if "OMP_NUM_THREADS" not in environment:
                environment |= {"OMP_NUM_THREADS": str(self._threads), THREADS_CHOSEN: "1"}
            rank = int(added["RANK"])
            aside = None if rank == 0 else subprocess.DEVNULL
            try:
                process = subprocess.Popen(
                    self._command, env=environment, stdin=aside, stdout=aside, start_new_session=True
                )
            except OSError as error:
                raise WorldError(
                    f"the workers' command {self._command[0]} cannot be started: {error.strerror or error}",
                    "a program that this user can run",
                    "correct the command, or its file's permissions",
                ) from error
            self._workers.append(_Worker(rank, process))
        return [worker.process.pid for worker in self._workers]

    def wait(self) -> int:
        """Waits until all workers have ended, passes signals on, and returns this host's exit code.

        When one has failed, the others get the grace to notice it and to end by themselves, then they are killed.
        """
        hurried = overdue = False
        while running := [worker for worker in self._workers if not self._has_ended(worker)]:
            if self._requests.interrupts > 1 and not hurried:
                hurried = True
                self.kill()
                continue
            if self._requests.number is not None and self._passed is None:
                self._pass_on(self._requests.number, running)
            if self._deadline is not None and time.monotonic() >= self._deadline[0] and not overdue:
                overdue = True
                self._say_overdue(running, self._deadline[1])
                self.kill()
                continue
            time.sleep(_POLL)
        self._say_texts()
        codes = [worker.code for worker in self._workers]
        self.code = _HURRIED if hurried else combined_code(codes, self._passed)
        return self.code

    def kill(self) -> None:
        """Kills the workers that still run, with their children, and waits for their ends."""
        for worker in self._workers:
            worker.kill()
        end = time.monotonic() + _UNKILLABLE
        while running := [worker for worker in self._workers if not self._has_ended(worker)]:
            if time.monotonic() > end:
                for worker in running:
                    say(f"{worker} does not end after SIGKILL: the kernel waits for a device; it is left behind")
                    worker.has_ended = True
            time.sleep(_POLL)

    def _has_ended(self, worker: _Worker) -> bool:
        if worker.has_ended:
            return True
        pid = worker.process.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        verdict = read_verdict(self._folder, worker.rank)
        if verdict is None:
            _kill_group(pid)  # its children; before wait, after which the number could be another process's
        status = worker.process.wait()
        worker.has_ended = True
        if verdict is not None:
            worker.code, worker.text = verdict.code, verdict.text
        elif not worker.was_killed:
            worker.code = self._code_without_verdict(worker, status)
        if (
            worker.code == EXIT_LOST and verdict is not None
        ):  # it has waited for the others, and has noticed that one is lost
            self._deadline = min(self._deadline or (math.inf, ""), (time.monotonic() + _AFTER_LOSS, _LOST))
        elif worker.code not in (0, EXIT_STOPPED):
            self._set_deadline("a rank failed")
        return True

    def _code_without_verdict(self, worker: _Worker, status: int) -> int | None:
        """Returns the code of a worker that left no verdict; None, after a sentence, if it was lost."""
        if self._passed is not None and status in (-self._passed, 128 + self._passed):
            return 128 + self._passed
        if status in (EXIT_BAD_INPUT, EXIT_STOPPED):  # it could not write its verdict, or its command line was wrong
            return status
        how = (
            f"was ended by {_death(-status)}" if status < 0 else f"ended with exit code {status} and without a verdict"
        )
        others = "" if all(one.has_ended for one in self._workers) else f"; the others get {self._grace:g} s to end"
        say(f"{worker} {how}{others}")
        return None

    def _pass_on(self, number: int, running: Sequence[_Worker]) -> None:
        self._passed = number
        for worker in running:
            worker.send(number)
        self._set_deadline(signal_name(number))

    def _set_deadline(self, reason: str) -> None:
        until = self._requests.until
        if self._deadline is None and until is not None and until < time.monotonic() + self._grace:
            self._deadline = until, _TAKEN
        elif self._deadline is None:
            self._deadline = time.monotonic() + self._grace, reason

    def _say_overdue(self, running: Sequence[_Worker], reason: str) -> None:
        names = ", ".join(map(str, running))
        if reason == _LOST:
            say(f"{names}: not ended {_AFTER_LOSS:g} s after a rank was lost, so killed")
        elif reason == _TAKEN:
            say(f"{names}: not ended when the machine is taken away, so killed")
        else:
            say(f"{names}: not ended {self._grace:g} s after {reason}, so killed; --grace gives more time")

    def _say_texts(self) -> None:
        """Tells each text of the verdicts once, with the ranks that left it."""
        ranks: dict[str, list[int]] = {}
        bad = any(worker.code == EXIT_BAD_INPUT for worker in self._workers)  # because of which the others have ended
        for worker in self._workers:
            if worker.text and (worker.code == EXIT_BAD_INPUT or not bad):
                ranks.setdefault(worker.text, []).append(worker.rank)
        for text, those in ranks.items():
            who = f"rank{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: "
            say(text if len(those) == len(self._workers) or bad or text.startswith("rank ") else who + text)


def _death(number: int) -> str:
    often = {signal.SIGKILL: "often sent by the system when memory runs out", signal.SIGSEGV: "a segmentation fault"}
    hint = f" ({often[signal.Signals(number)]})" if number in often else ""
    return f"{signal_name(number) if number != signal.SIGINT else 'SIGINT'}{hint}"


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
