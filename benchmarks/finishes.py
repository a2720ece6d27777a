"""Finishes of runs that were killed at random moments: each gives a model that answers, or says in words why there is none yet.

    python benchmarks/finishes.py --count 50

The run is that of storm.py: three stages, the head first, EMA and SWA, a guard with work to do. Each of ``count`` starts is
killed (kill -9) at a moment drawn from its whole length: set-up, training, saving, finish. Then ``stagewright finish`` makes the
model; half of these finishes are killed too and repeated. ``predict`` answers all test pictures with it, and the next start
resumes the run. Every run that reaches its end equals the unbroken one bit for bit: weights, steps.csv, metrics.csv, live events,
summary.
Exits with 1 where one case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from storm import Place, Tally, command, differences, leftovers, spawn, wait

STEPS = 60
"""Updates of the storm's plan."""


def finishes(place: Place, count: int, seed: int, tally: Tally) -> None:
    """Kills ``count`` starts, each followed by a finish."""
    draw = random.Random(f"finishes {seed}")
    killed = number = 0
    while killed < count:
        out = place.folder / f"run-{number}"
        while True:
            if _killed(place.next(out), _moment(out, draw), place.folder / "log"):
                break
            killed += 1
            _finish_and_predict(place, out, draw, f"run {number}, kill {killed}", tally)
            if killed == count or draw.random() < 0.4:  # else kills would gather at the end of few runs
                rc, said = command(place.next(out))
                tally.check(rc == 0, f"run {number} goes on to its end", said[-900:])
                break
        found = differences(place.base, out)
        tally.check(not found, f"run {number} equals the unbroken one", str(found)[:900])
        tally.check(not (left := leftovers(out)), f"run {number} leaves nothing behind", str(left))
        shutil.rmtree(out)
        number += 1
    print(f"{killed} kills of {number} runs, then: {dict(sorted(tally.seen.items()))}")


def _moment(out: Path, draw: random.Random) -> Callable[[], bool]:
    """Returns what says that a start of the run has come to a random moment: in the set-up, behind a step that steps.csv has, or
    in the finish; and up to 0.2 s later."""
    saved = max((int(path.name[5:]) for path in (out / "checkpoints").glob("step_*")), default=0)
    if draw.random() < 0.2:
        return _passed(draw.uniform(0, 1.5))
    step, later = draw.randint(saved, STEPS + 10), _passed(draw.uniform(0, 0.2))

    def come() -> bool:
        if step > STEPS:
            return (out / "evaluations").exists() and later()
        return _lines(out / "steps.csv") > step and later()

    return come


def _passed(seconds: float) -> Callable[[], bool]:
    """Returns what says whether ``seconds`` have passed since its first call."""
    began: list[float] = []

    def passed() -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return passed


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _killed(words: list[str], come: Callable[[], bool], log: Path) -> bool:
    """Starts the command line and kills it at the moment that ``come`` tells; returns True if it had ended before."""
    child = spawn(words, log)
    while (rc := wait(child, 0.01)) is None:
        if come():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
    if rc != 0:
        raise SystemExit(f"stagewright {' '.join(words)} ends with {rc}:\n{log.read_text(errors='replace')[-2000:]}")
    return True


def _finish_and_predict(place: Place, out: Path, draw: random.Random, what: str, tally: Tally) -> None:
    words = ["finish", str(out), "--no-pages"]
    before = (out / "checkpoints").is_dir() and any((out / "checkpoints").glob("step_*"))
    if before and draw.random() < 0.5:
        again = not _killed(words, _passed(draw.uniform(0, 2)), place.folder / "log")
        tally.seen["finishes killed"] += again
    rc, said = command(words)
    if not before:
        reason = "no checkpoint yet" if (out / "plan.json").exists() else "is not a run directory"
        tally.seen[reason] += 1
        tally.check(rc == 2 and reason in said, f"{what}: says that there is no model yet", f"{rc}: {said[-900:]}")
        return
    if not tally.check(rc == 0, f"{what}: finishes", f"{rc}: {said[-900:]}"):
        return
    summary = json.loads((out / "summary.json").read_text())
    part = summary["stopped_at"]
    tally.seen["models of a whole plan" if part is None else f"models of {10 * int(part // 10)} % and more"] += 1
    rc, said = command(["predict", str(out), str(place.data / "test"), "--json", "--quiet"])
    answers = json.loads(said)["predictions"] if rc == 0 else []
    total = len(list((place.data / "test").rglob("*.png")))
    answered = sum(bool(answer["classes"]) for answer in answers)
    tally.check(answered == total, f"{what}: its model answers all pictures", f"{rc}: {answered}: {said[-900:]}")


def main() -> int:
    """Parses, kills, and prints one line with what was tried and what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    import stagewright.api.finish
    import stagewright.api.train
    import stagewright.cli.main  # noqa: F401

    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stagewright-finishes-") as folder:
        os.environ["STAGEWRIGHT_CACHE"] = str(Path(folder) / "cache")
        finishes(Place(Path(os.path.realpath(folder))), asked.count, asked.seed, tally)
    print(f"finishes: {tally.tried} checks, {len(tally.wrong)} failed, {time.monotonic() - began:.0f} s")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
