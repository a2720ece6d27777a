"""Stopping on request, with real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from stagewright.errors import Cancelled, Stopped
from stagewright.system.signals import EXIT_STOPPED, CommandSignals, StopSignal, whole


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Checks that every test leaves the handlers as they were."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)]
    found = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == found


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


CASES = [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]


@pytest.mark.parametrize(("number", "name"), CASES)
def test_during_set_up_a_signal_stops_at_once(number: signal.Signals, name: str) -> None:
    with StopSignal() as stop:
        with pytest.raises(Stopped, match=f"stopped by {name} during set-up"):
            send(number)
        assert stop.requested
        assert stop.reason == name


@pytest.mark.parametrize(("number", "name"), CASES)
def test_once_armed_a_signal_is_only_a_request(number: signal.Signals, name: str) -> None:
    with StopSignal() as stop:
        stop.arm()
        assert not stop.requested
        assert stop.reason is None
        send(number)
        assert stop.requested
        assert stop.reason == name


def test_the_second_ctrl_c_interrupts() -> None:
    with StopSignal() as stop:
        stop.arm()
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.reason == "Ctrl-C"


def test_neither_two_sigterms_nor_one_of_each_interrupt() -> None:
    with StopSignal() as stop:
        stop.arm()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stop.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_stop_swallowed_in_set_up_is_raised_again_on_arming() -> None:
    with StopSignal() as stop:
        with contextlib.suppress(BaseException):
            send(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM during set-up"):
            stop.arm()


def test_a_stop_that_a_library_turned_into_its_own_error_is_a_stop() -> None:
    """pydantic does so with whatever is raised in its callbacks: a plan was "damaged" since a signal came then."""
    with pytest.raises(Stopped, match="stopped by SIGTERM"), StopSignal():
        try:
            send(signal.SIGTERM)
        except BaseException as error:
            raise ValueError(f"damaged: {error}") from None
    with pytest.raises(ValueError, match="of its own"), StopSignal():
        raise ValueError("of its own")


def test_a_stop_that_meets_a_destructor_prints_nothing_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            send(signal.SIGTERM)
            time.sleep(0.01)

    hook = sys.unraisablehook
    with StopSignal() as stop:
        one = Dying()
        del one
        with pytest.raises(Stopped):
            stop.arm()
    assert sys.unraisablehook == hook
    assert capsys.readouterr().err == ""


def test_nothing_that_catches_exceptions_takes_a_stop_for_one() -> None:
    """A decoder's or an unpickler's `except Exception` once took a stop for damage (attack C2)."""
    with StopSignal(), pytest.raises(Stopped):
        with contextlib.suppress(Exception):
            send(signal.SIGTERM)
        pytest.fail("the stop was swallowed")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_every_signal_that_announces_an_end_asks_for_a_stop(number: signal.Signals) -> None:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    with StopSignal() as stop:
        stop.arm()
        send(number)
        assert stop.requested and stop.reason


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            stop.arm()
            send(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_before_are_back() -> None:
    def mine(number: int, frame: object) -> None:
        heard.append(number)

    heard: list[int] = []
    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(RuntimeError), StopSignal() as stop:
        stop.arm()
        raise RuntimeError
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert not stop.requested
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_within_one_another() -> None:
    with StopSignal() as outer:
        outer.arm()
        with StopSignal() as inner:
            inner.arm()
            send(signal.SIGTERM)
        assert inner.requested
        assert not outer.requested
        send(signal.SIGTERM)
        assert outer.requested


def test_in_another_thread_it_is_there_and_hears_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        with StopSignal() as stop:
            stop.arm()
            found.append((stop.requested, stop.reason))
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, None), signal.SIG_DFL]


LOOP = """
import sys, time
from stagewright.system.signals import EXIT_STOPPED
from stagewright.system.signals import StopSignal
with StopSignal() as stop:
    stop.arm()
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved after", stop.reason)
sys.exit(EXIT_STOPPED)
"""


@pytest.mark.parametrize(("number", "name"), CASES)
def test_a_process_finishes_what_it_does_and_says_so_with_its_exit_code(number: signal.Signals, name: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"saved after {name}\n"
        assert process.wait(timeout=20) == EXIT_STOPPED == os.EX_TEMPFAIL == 75


@pytest.mark.parametrize(("number", "name"), CASES)
def test_a_whole_piece_of_a_command_is_done_before_a_signal_takes_effect(number: signal.Signals, name: str) -> None:
    done = []
    with pytest.raises(Cancelled, match=name), CommandSignals():
        with whole():
            send(number)
            done.append("the rest of the piece")
        done.append("the piece that follows")
    assert done == ["the rest of the piece"]


def test_a_second_signal_ends_a_whole_piece() -> None:
    done = []
    with pytest.raises(Cancelled), CommandSignals(), whole():
        send(signal.SIGINT)
        done.append("first")
        send(signal.SIGINT)
        done.append("second")
    assert done == ["first"]


def test_a_whole_piece_outside_a_command_is_nothing_special() -> None:
    with whole(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
