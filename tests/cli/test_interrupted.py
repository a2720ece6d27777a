"""Commands that a signal ends: in the middle, in a process of their own. What is done is kept and said, and the code is known."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagewright.bundle.bundle import BundleSpec, save_bundle
from stagewright.bundle.preprocessing import Preprocessing
from stagewright.data.pack.format import UNFINISHED, unfinished_folder
from stagewright.data.pack.reader import Pack
from stagewright.errors import DataError

COUNT = 3000
SIDE = 1500


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and far more large pictures than can be read while a test lasts: links to a few files."""
    folder = tmp_path_factory.mktemp("interrupted")
    view = Preprocessing(16, 1.0, "crop", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = BundleSpec("cifar_resnet18", ("ant", "bee"), view, 16, {"width": 4})
    torch.manual_seed(0)
    save_bundle(folder / "bundle", spec.build().eval(), spec, [])
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{name}.png")
        for at in range(COUNT // 2):
            (folder / "photos" / name / f"{at:04d}.png").symlink_to(folder / f"{name}.png")
    return folder


class Command:
    """``stagewright WORDS`` in a process of its own; what it says on standard error is collected as it comes."""

    def __init__(self, folder: Path, *words: str, stdout: int = subprocess.PIPE) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "STAGEWRIGHT_CACHE": str(folder / "cache")}
        code = "from stagewright.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=folder, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said += iter(self.process.stderr.readline, "")

    def wait_until(self, under_way: Callable[[str], object]) -> None:
        """Waits until ``under_way`` is true of what was said so far."""
        end = time.monotonic() + 90
        while not under_way("".join(self.said)):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Sends the signal; returns exit code, standard output and standard error."""
        self.process.send_signal(number)
        out = self.process.stdout.read() if self.process.stdout is not None else ""
        code = self.process.wait(timeout=60)
        self.close()
        return code, out, "".join(self.said)

    def close(self) -> None:
        """Ends the process if it still runs, and closes its pipes."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def started(place: Path) -> Iterator[list[Command]]:
    commands: list[Command] = []
    yield commands
    for command in commands:
        command.close()


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [pytest.param(signal.SIGINT, 130, "Ctrl-C", marks=pytest.mark.long), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_predict_keeps_the_rows_that_are_done(
    place: Path, started: list[Command], number: signal.Signals, code: int, name: str
) -> None:
    target = place / f"{code}.csv"
    started.append(command := Command(place, "predict", "bundle", "photos", "--csv", target.name, "-b", "4"))
    command.wait_until(lambda said: "predicting" in said and target.exists() and target.read_bytes().count(b"\n") > 5)
    found = command.end(number)
    rows = list(csv.reader(target.read_text().splitlines()))
    assert target.read_bytes().endswith(b"\n") and 1 < len(rows) < COUNT
    assert all(len(row) == 6 and row[1] in ("ant", "bee") for row in rows[1:])
    assert [row[0] for row in rows[1:]] == [f"photos/ant/{at:04d}.png" for at in range(len(rows) - 1)]
    assert found[0] == code and "Traceback" not in found[2]
    assert found[2].endswith(f"stopped by {name}; kept: {len(rows) - 1:,} of 3,000 predictions, in {target.name}\n")


@pytest.mark.long
def test_predict_as_json_is_complete_json(place: Path, started: list[Command]) -> None:
    started.append(command := Command(place, "predict", "bundle", "photos", "--json", "-b", "4"))
    assert command.process.stdout is not None
    first = command.process.stdout.readline() + command.process.stdout.readline()
    code, out, said = command.end(signal.SIGINT)
    content = json.loads(first + out)
    assert code == 130 and 0 < len(content["predictions"]) == content["account"]["read"] < COUNT
    assert f"kept: {len(content['predictions']):,} of 3,000 predictions, printed" in said


def test_pack_keeps_no_pack_and_goes_on(place: Path, started: list[Command]) -> None:
    (place / "few").mkdir()
    for name in ("ant", "bee"):
        (place / "few" / name).mkdir()
        for at in range(40):
            (place / "few" / name / f"{at}.png").symlink_to(place / f"{name}.png")
    words = ("data", "pack", "few", "--out", "few.pack", "--size", "1500", "--format", "raw")
    started.append(command := Command(place, *words))
    begun = unfinished_folder(place / "few.pack")
    part = begun / ".part-00000.arrow"
    command.wait_until(lambda said: part.exists() and part.stat().st_size > 0)
    code, _, said = command.end(signal.SIGINT)
    assert code == 75 and ".few.pack.unfinished; the same command packs the rest" in said, said
    assert (begun / UNFINISHED).exists() and not (place / "few.pack").exists()
    with pytest.raises(DataError, match="is not finished: 0 of 80"):
        Pack.open(place / "few.pack")
    assert not list(begun.glob(".*")), "no part of a part"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("data", "inspect", "photos"), marks=pytest.mark.long),
        pytest.param(("data", "split", "photos", "--out", "split.csv", "--links", "linked"), marks=pytest.mark.long),
        pytest.param(("evaluate", "bundle", "photos"), marks=pytest.mark.long),
        pytest.param(("data", "bench", "photos"), marks=pytest.mark.long),
        pytest.param(("plan", "photos", "-r", "quick"), marks=pytest.mark.long),
    ],
    ids=("inspect", "split", "evaluate", "bench", "plan"),
)
def test_a_command_says_how_far_it_is_and_ends_at_once(
    place: Path, started: list[Command], words: tuple[str, ...]
) -> None:
    before = sorted(path.name for path in place.iterdir() if path.name != "cache")
    started.append(command := Command(place, *words))
    numbers = r": [1-9][\d,]* of 3,000 \(\d+ %\), about .* left" if words[1] in ("inspect", "split") else ""
    command.wait_until(lambda said: re.search(f"pictures{numbers}", said))
    began = time.monotonic()
    code, _, said = command.end(signal.SIGINT)
    assert code == 130 and said.endswith("stopped by Ctrl-C; no half-written file is left\n"), said
    assert time.monotonic() - began < 10 and "Traceback" not in said
    assert sorted(path.name for path in place.iterdir() if path.name != "cache") == before
    for file in (place / "cache").rglob("*.parquet"):  # of the pictures that were read, for the next command
        file.unlink()


@pytest.mark.long
def test_quiet_hides_the_progress_and_not_the_results(place: Path, started: list[Command]) -> None:
    started.append(command := Command(place, "predict", "bundle", "photos", "--csv", "-", "-b", "4", "--quiet"))
    assert command.process.stdout is not None
    began, lines = time.monotonic(), 0
    while time.monotonic() - began < 4 or lines < 3:
        lines += bool(command.process.stdout.readline())
    code, out, said = command.end(signal.SIGTERM)
    assert code == 143 and said.count("\n") == 1 and "kept: " in said and (out == "" or out.endswith("\n"))


def test_on_a_terminal_one_line_is_drawn_again_and_vanishes(place: Path) -> None:
    screen, keyboard = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    code = "from stagewright.cli.main import main; main()"
    words = ["predict", "bundle", "photos", "--csv", "screen.csv", "-b", "4"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=place, env=env, stdout=keyboard, stderr=keyboard
    )
    os.close(keyboard)
    shown, end = b"", time.monotonic() + 90
    while not re.search(rb"predicting .*[1-9]\d*/3000", shown):
        assert time.monotonic() < end, shown
        shown += os.read(screen, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(screen)
    assert process.wait(timeout=60) == 130
    assert b"\x1b[?25l" in shown and b"\x1b[?25h" in shown, "the cursor is back"
    last = shown.decode().splitlines()[-1]
    assert re.search(r"stopped by Ctrl-C; kept: [\d,]+ of 3,000 predictions, in screen.csv$", last)
