"""Output that nobody reads any more never ends a training."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_events import make_event

import stagewright as sw
from stagewright.observers.console import Console
from stagewright.rundir.directory import RunDir
from stagewright.system.output import failsafe_notices, failsafe_stream

SMALL = [
    *("--recipe", "quick", "--model", "cifar_resnet18", "--set", "model.options={width: 4}", "--img-size", "8"),
    *("--epochs", "6st", "--set", "eval.every=3st", "--batch-size", "8", "--no-pages"),
]


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_stream_goes_quiet_and_its_descriptor_leads_to_nowhere() -> None:
    reading, writing = os.pipe()
    stream = failsafe_stream(os.fdopen(writing, "w"))
    os.close(reading)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev
    assert failsafe_stream(stream) is stream
    stream.close()
    print("x", file=failsafe_stream(Broken()), flush=True)


def test_the_console_and_say_end_nothing() -> None:
    console = Console(10, [("learn", 0, 10)], file=Broken())
    console.see(make_event("notice", text="hello"))
    console.close()

    def say(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failsafe_notices(say)("hello")


@pytest.mark.parametrize("place", ["a pipe without a reader", pytest.param("/dev/full", marks=pytest.mark.long)])
def test_a_training_goes_on_and_ends_as_if_nothing_had_happened(
    picture_folder: Path, tmp_path: Path, place: str
) -> None:
    """`train | head -1`, and a full disk under a log (situation 068, attack L5)."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "-P",
        "-m",
        "stagewright",
        "train",
        str(picture_folder),
        *SMALL,
        "--out",
        str(tmp_path / "run"),
    ]
    with open("/dev/full", "w") as full:
        out = full.fileno() if place == "/dev/full" else writing
        done = subprocess.run(command, stdout=out, stderr=out, timeout=120)
    os.close(writing)
    assert done.returncode == 0
    assert sw.Run(tmp_path / "run").finished and "finished with the" in RunDir(tmp_path / "run").log.read_text()
