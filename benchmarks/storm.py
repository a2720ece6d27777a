"""Storms: a run that is killed, stopped and hindered at random ends as an unbroken one, or says in words why it does not go on.

    python benchmarks/storm.py signals --count 1000       kill -9, SIGTERM, Ctrl-C, SIGHUP, SIGSTOP, also two in a row
    python benchmarks/storm.py operations --count 300     reads and writes that fail (EIO, ENOSPC, EACCES, ESTALE, ...)

The run has three stages, EMA and SWA, a guard with work to do, cached features of a frozen body, and balanced sampling.
Every start is the real command line in a fork of a process that has imported everything, which takes 50 ms instead of 6 s.
Equal means: weights, the answers on golden samples, steps.csv, metrics.csv, plan, manifest, live events and the summary's
scores. Failures of operations are made in the C library (failing_io.c, preloaded), so that Python, pyarrow and torch meet
them alike. Exits with 1 where one case fails.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import stagewright as sw

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", COLUMNS="200", TERM="dumb", STAGEWRIGHT_OFFLINE="1")

READS, WRITES = 0, 1
FOREVER = 10**9
CODES = {READS: ("EIO", "EACCES", "ESTALE", "EMFILE", "short"), WRITES: ("EIO", "ENOSPC", "EACCES", "ESTALE", "EROFS")}
RECIPE = """
name: storm
seed: 5
epochs: 60st
stages:
  - name: head
    epochs: 20st
    train: head
    augment: {crop: none, flip: 0, erasing: 0, brightness: 0}
    mix: none
    average: {kind: ema, half_life: 10st}
  - name: mixed
    epochs: 20st
    average: {kind: ema, half_life: 15st}
    lr: {schedule: constant, peak: 40.0}
  - name: swa
    epochs: 20st
    mix: none
    average: {kind: swa, every: 7st, recalibrate: 64}
    on_enter: reset_optimizer
    lr: {schedule: swa, peak: 0.02, warmup: 5st}
model: {name: cifar_resnet18, options: {width: 4}, drop_path: 0.1}
image_size: 12
batch_size: 16
sampling: balanced
augment: {crop: random_resized, scale: [0.4, 1.0], flip: 0.5, erasing: 0.2, brightness: 0.2}
mix: {mixup: 0.3, cutmix: 1.0, probability: 0.8}
label_smoothing: 0.05
optimizer: {name: sgd, momentum: 0.9, nesterov: true, weight_decay: 5.0e-4}
lr: {schedule: one_cycle, peak: 0.1, warmup: 8st}
eval: {every: 10st}
checkpoints: {every: 7st, keep: 2}
guard: {window: 4, lr_factor_windows: 12, lr_factor: 0.0005, spike: 0.2}
"""


@dataclass
class Tally:
    """What was tried, and what of it went wrong."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def check(self, ok: bool, what: str, detail: str = "") -> bool:
        self.tried += 1
        if not ok:
            self.wrong.append(what)
            print(f"FAIL {what}: {detail}", flush=True)
        return ok


class Place:
    """A folder with pictures, the recipe, and an unbroken run to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.recipe = folder, folder / "data" / "pictures", folder / "storm.yaml"
        self.recipe.write_text(RECIPE)
        draw_pictures(self.data)
        self.base = folder / "base"
        began = time.monotonic()
        rc, said = command(self.start(self.base))
        self.seconds = time.monotonic() - began
        if rc != 0:
            raise SystemExit(f"the unbroken run fails:\n{said}")

    def start(self, out: Path) -> list[str]:
        return ["train", str(self.data), "--recipe", str(self.recipe), "--no-pages", "--out", str(out)]

    def next(self, out: Path) -> list[str]:
        return ["resume", str(out), "--no-pages"] if (out / "plan.json").exists() else self.start(out)


def draw_pictures(folder: Path) -> None:
    """Writes small pictures of three classes in three parts, each class with a wave of its own."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, each in (("train", 40), ("val", 12), ("test", 9)):
        for label in range(3):
            to = folder / split / f"class{label}"
            to.mkdir(parents=True)
            for at in range(each - 8 * label):
                y, x = np.mgrid[:12, :12]
                wave = 128 + 80 * np.sin((x, y, x + y)[label] * (0.5 + 0.2 * label) + draw.uniform(0, 6))
                pixels = (wave[..., None] + draw.normal(0, 20, (12, 12, 3))).clip(0, 250).astype(np.uint8)
                Image.fromarray(pixels).save(to / f"{at:03d}.png")


def spawn(words: list[str], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Starts the command line in a child; what it prints goes to ``log``. Returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(to, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(at, "w", buffering=1, errors="backslashreplace") for at in (1, 2))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["stagewright", *words]
        code = 0
        before()
        try:
            from stagewright.cli.main import main

            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        os._exit(99)


def wait(child: int, seconds: float) -> int | None:
    """The exit code of ``child``, negative for a signal; None where it still runs after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def command(
    words: list[str], before: Callable[[], None] = lambda: None, seconds: float = 120
) -> tuple[int | None, str]:
    """Runs the command line to its end: exit code (None: it hung and was killed) and all that it printed."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        child = spawn(words, Path(log.name), before)
        rc = wait(child, seconds)
        if rc is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return rc, Path(log.name).read_text(errors="replace")


def differences(base: Path, other: Path) -> list[str]:
    """What differs between two finished runs that should be equal."""
    from stagewright.rundir.events import comparable, live_events

    found = []
    names = (
        "model/weights.safetensors",
        "model/golden.safetensors",
        "steps.csv",
        "metrics.csv",
        "plan.json",
        "manifest.parquet",
    )
    for name in names:
        if not (other / name).exists() or (base / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name} differs")
    events = [comparable(live_events(run / "events.jsonl")) for run in (base, other)]
    if events[0] != events[1]:
        lost, more = ([event for event in one if event not in two] for one, two in (events, events[::-1]))
        found.append(f"events: missing {lost[:2]}, more {more[:2]}, {len(events[0])} and {len(events[1])}")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (base, other)]
    for key in (
        "status",
        "step",
        "top1",
        "loss",
        "chosen",
        "candidates",
        "finalists",
        "against_head",
        "guard",
        "unreadable",
        "ended_early",
    ):
        if summaries[0][key] != summaries[1][key]:
            found.append(f"summary {key}: {summaries[0][key]} and {summaries[1][key]}")
    return found


def leftovers(run: Path) -> list[str]:
    """Temporary files of dead processes in a finished run."""
    return [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]


def signals(place: Place, count: int, seed: int, tally: Tally) -> None:
    """Sends ``count`` signals, in set-up, training, evaluation, saving and finish, until runs end by themselves."""
    draw = random.Random(f"signals {seed}")
    sent = number = 0
    while sent < count:
        out, log = place.folder / f"storm-{number}", place.folder / f"storm-{number}.log"
        rc = None
        for _ in range(1000):
            child = spawn(place.next(out), log)
            patience = draw.choice([0.3, 0.6, max(0.8, place.seconds / 2), place.seconds])
            rc = wait(child, draw.uniform(0, patience)) if sent < count else wait(child, 300)
            if rc is None:
                sent += _strike(child, draw, tally, out)
                rc = wait(child, 60)
                if not tally.check(rc is not None, f"run {number} ends within a minute of its signal", "it hangs"):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            if rc == 0 or rc not in (75, 130, *(-number for number in range(1, 20))):
                break
        text = log.read_text(errors="replace")
        if tally.check(
            rc == 0 and "Traceback" not in text, f"run {number} finishes without a traceback", f"{rc}: {text[-1500:]}"
        ):
            tally.check(
                not (found := differences(place.base, out)), f"run {number} equals the unbroken one", str(found)[:900]
            )
            tally.check(not (left := leftovers(out)), f"run {number} leaves nothing behind", str(left))
            shutil.rmtree(out)
        number += 1
    print(f"{sent} signals to {number} runs: {dict(tally.seen)}")


def _strike(child: int, draw: random.Random, tally: Tally, out: Path) -> int:
    """Sends one signal or two in a row; how many."""
    kinds = (
        signal.SIGKILL,
        signal.SIGKILL,
        signal.SIGTERM,
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGSTOP,
    )
    kind, sent = draw.choice(kinds), 1
    phase = "finish" if (out / "model").exists() else "training" if (out / "steps.csv").exists() else "set-up"
    tally.seen[kind.name] += 1
    tally.seen[phase] += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, kind)
        if kind == signal.SIGSTOP:
            time.sleep(draw.uniform(0.01, 0.3))
            os.kill(child, signal.SIGCONT)
            time.sleep(draw.uniform(0, 0.2))
            os.kill(child, signal.SIGTERM)
            return 2
        if kind != signal.SIGKILL and draw.random() < 0.3:
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child, draw.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]))
            sent += 1
    return sent


def operations(place: Place, count: int, seed: int, tally: Tally) -> None:
    """Lets ``count`` operations fail, one a start, in starts and in resumes; then the trouble is over and the run goes on."""
    draw = random.Random(f"operations {seed}")
    begun = place.folder / "begun"
    _stop_half_way(place, begun)
    totals = {resuming: _counted(place, begun if resuming else None) for resuming in (False, True)}
    print("operations of a start and of a resume (reads, writes):", totals)
    for number in range(count):
        resuming, kind = draw.random() < 0.5, draw.choice([READS, WRITES])
        code, times = draw.choice(CODES[kind]), draw.choice([1, 2, FOREVER])
        at = draw.randint(1, totals[resuming][kind])
        out = place.folder / f"failing-{number}"
        if resuming:
            shutil.copytree(begun, out)
        what = f"{number}: {'resume' if resuming else 'train'}, {('read', 'write')[kind]} {at}, {code} x {times}"
        steps, before = {path.name for path in (out / "checkpoints").glob("step_*")}, _resumes(out)
        rc, said = command(place.next(out), lambda: _arm(place.folder, kind, at, code, times))  # noqa: B023
        tally.seen[f"{code} -> {rc}"] += 1
        tally.check(
            rc in (0, 2, 75) and "Traceback" not in said, f"{what}: a message", f"exit code {rc}: {said[-900:]}"
        )
        if (
            resuming and _resumes(out) == before
        ):  # it did not get as far as to go on, where the guard may give states up
            left = {path.name for path in (out / "checkpoints").glob("step_*")}
            tally.check(steps <= left, f"{what}: all checkpoints stand", f"{steps} before, {left} now")
        rc, said = command(place.next(out))
        if tally.check(rc == 0 and "Traceback" not in said, f"{what}: then it ends", f"exit code {rc}: {said[-900:]}"):
            tally.check(not (found := differences(place.base, out)), f"{what}: equal", str(found)[:900])
            tally.check(not (left := leftovers(out)), f"{what}: nothing left behind", str(left))
        shutil.rmtree(out, ignore_errors=True)
    print(f"{count} failing operations: {dict(sorted(tally.seen.items()))}")


def _resumes(run: Path) -> int:
    """How often the run in ``run`` was taken up."""
    events = run / "events.jsonl"
    return events.read_bytes().count(b'"kind": "resumed"') if events.exists() else 0


def _library() -> Any:
    return ctypes.CDLL(os.environ["LD_PRELOAD"])


def _arm(folder: Path, kind: int, at: int, code: str, times: int) -> None:
    number = 0 if code == "short" else getattr(errno, code)
    _library().failing_io_arm(os.fsencode(folder), b"", kind, ctypes.c_long(at), number, ctypes.c_long(times))


def _counted(place: Place, begun: Path | None) -> tuple[int, int]:
    """Reads and writes below the folder in a start, or in a resume of the run in ``begun``."""
    out, counts = place.folder / "counting", place.folder / "counts"
    if begun is not None:
        shutil.copytree(begun, out)

    def count() -> None:
        _arm(place.folder, READS, FOREVER, "EIO", 1)
        exit_now = os._exit

        def written(status: int) -> None:
            library = _library()
            numbers = [library.failing_io_count(kind) for kind in (READS, WRITES)]
            library.failing_io_arm(b"", b"", 0, ctypes.c_long(-1), 0, ctypes.c_long(0))
            counts.write_text(json.dumps(numbers))
            exit_now(status)

        os._exit = written  # the last thing that a child does

    rc, said = command(place.next(out), count)
    if rc != 0:
        raise SystemExit(f"counting fails:\n{said}")
    shutil.rmtree(out)
    reads, writes = json.loads(counts.read_text())
    return reads, writes


class _StopAfterSave:
    """An observer that stops its own process, as SIGTERM does, once step 28 is saved."""

    def see(self, event: sw.Event) -> None:
        if event.kind == "saved" and event.step >= 28:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None: ...


def _stop_half_way(place: Place, out: Path) -> None:
    def train() -> None:
        import stagewright as sw

        execution = sw.Execution(pages=False)
        run = sw.train(place.data, place.recipe, out=out, execution=execution, observers=[_StopAfterSave()])
        os._exit(0 if run.finished else 75)

    rc, said = command([], train)
    if rc != 75:
        raise SystemExit(f"the run could not be stopped half way ({rc}):\n{said}")


def _with_failing_io() -> None:
    """Starts this program again with the library loaded that makes operations fail."""
    if "failing_io" in os.environ.get("LD_PRELOAD", ""):
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("a C compiler is needed for failing operations (cc or gcc)")
    library = Path(tempfile.mkdtemp(prefix="stagewright-storm-")) / "failing_io.so"
    source = Path(__file__).with_name("failing_io.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> int:
    """Parses, raises the storm, and prints one line with what was tried and what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storm", choices=["signals", "operations"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.storm == "operations":
        _with_failing_io()
    import torch

    torch.set_num_threads(1)
    import stagewright.api.train
    import stagewright.cli.main
    import stagewright.training.finish  # noqa: F401

    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stagewright-storm-") as folder:
        os.environ["STAGEWRIGHT_CACHE"] = str(Path(folder) / "cache")
        place = Place(Path(os.path.realpath(folder)))
        {"signals": signals, "operations": operations}[asked.storm](place, asked.count, asked.seed, tally)
    print(f"{asked.storm}: {tally.tried} checks, {len(tally.wrong)} failed, {time.monotonic() - began:.0f} s")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
