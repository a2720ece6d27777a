"""Output that nobody reads or that has no room: a training goes on without it; what only prints ends in a message."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from sample_events import make_event

from stagewright.cli import main
from stagewright.errors import StorageError
from stagewright.observers.console import Console
from stagewright.system.output import Output, failsafe_notices, failsafe_stream, guarded, make_output_optional


def broken_pipe() -> TextIO:
    """A pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def full_disk() -> TextIO:
    """A file on a disk without room."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    return open("/dev/full", "w")


def closed_terminal() -> TextIO:
    """A terminal whose window is gone: every write is an EIO."""
    screen, keyboard = pty.openpty()
    os.close(screen)
    return os.fdopen(keyboard, "w")


LOST = [broken_pipe, full_disk, closed_terminal]


@pytest.fixture(params=LOST)
def lost(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    stream: TextIO = request.param()
    yield stream
    stream.close()  # fails where the buffer still holds what could not be written


def ended(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_output_that_is_lost_is_dropped_and_its_descriptor_leads_nowhere(lost: TextIO) -> None:
    output = Output(lost)
    for _ in range(3):
        print("a line", file=output, flush=True)
    output.writelines(["one", "two"])
    assert output.failure is not None and not output.isatty()
    os.write(lost.fileno(), b"of another library")  # goes to the null device


def test_output_that_is_needed_says_so(lost: TextIO) -> None:
    output = Output(lost, needed=True)
    output.write("an answer")
    with pytest.raises((BrokenPipeError, StorageError)) as error:
        output.flush()
    assert isinstance(error.value, BrokenPipeError) or "the output cannot be written" in str(error.value)


def test_closed_streams_and_letters_that_a_terminal_lacks() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        assert (
            failsafe_stream(stream).write("nothing") == 7 and failsafe_stream(failsafe_stream(stream)).flush() is None
        )
    raw = io.BytesIO()
    ascii_terminal = io.TextIOWrapper(raw, "ascii", write_through=True)
    print("caf\xe9 \U0001f600", file=Output(ascii_terminal))
    assert raw.getvalue() == b"caf\\xe9 \\U0001f600\n"


def test_sentences_end_nothing(lost: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", lost)
    say = failsafe_notices(print)
    say("one")
    say("two")

    def broken(text: str) -> None:
        raise OSError(28, text)

    failsafe_notices(broken)("three")


def test_a_guarded_process_outlives_its_output(lost: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", lost)
    with guarded():
        make_output_optional()
        print("a line", flush=True)
    lost.flush()  # as the interpreter does at its end


def test_a_guarded_process_whose_output_is_needed_ends(lost: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", lost)
    with pytest.raises((BrokenPipeError, StorageError)), guarded():
        print("a line", flush=True)
    lost.flush()


def test_the_console_ends_no_run(lost: TextIO) -> None:
    console = Console(10, [("all", 0, 10)], file=lost)
    for _ in range(2):
        console.see(make_event("notice", text="something"))
    console.close()


@pytest.mark.parametrize(("make", "code"), [(broken_pipe, 1), (full_disk, 2)])
@pytest.mark.parametrize("words", [["recipes"], ["recipes", "show", "quick"], ["--help"]])
def test_what_only_prints_ends_without_a_traceback(make: Callable[[], TextIO], code: int, words: list[str]) -> None:
    with make() as lost:
        command = [sys.executable, "-c", "from stagewright.cli.main import main; main()", *words]
        done = subprocess.run(command, stdout=lost, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert ("the output cannot be written: No space left on device" in done.stderr) == (code == 2)


def test_closed_descriptors_are_not_given_to_files(tmp_path: Path) -> None:
    """Nor does a closed stream end a command, or make a failure of it when the interpreter ends."""
    code = (
        "import os, sys; from stagewright.cli import main; real = main.app\n"
        "def app(prog_name): print('x'); open(sys.argv.pop(), 'w').write(str(os.dup(0) > 2)); sys.exit(75)\n"
        "main.app = app; main.main()"
    )
    for closed in ("0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"):
        words = f'exec {closed}; exec {sys.executable} -c "$0" train {tmp_path / "answer"}'
        done = subprocess.run(["sh", "-c", words, code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr, (tmp_path / "answer").read_text()) == (75, b"", "True")


def test_main_says_what_the_surroundings_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(error: BaseException) -> None:
        def fail(prog_name: str) -> None:
            raise error

        monkeypatch.setattr(main, "app", fail)
        main.main()

    for error in (OSError(28, "No space left on device", "/a/b"), PermissionError(13, "Permission denied", b"/a/b")):
        assert ended(lambda error=error: run(error)) == 2
        told = capsys.readouterr().err
        assert "error: /a/b: " in told and "allowed" in told and "to do" in told
    assert ended(lambda: run(MemoryError())) == 2 and "memory" in capsys.readouterr().err
    assert ended(lambda: run(OSError(24, "Too many open files"))) == 2 and "ulimit -n" in capsys.readouterr().err
    for bug in (OSError("a picture that is damaged"), FileNotFoundError(2, "of nothing"), ValueError("a bug")):
        with pytest.raises(type(bug)):
            run(bug)
