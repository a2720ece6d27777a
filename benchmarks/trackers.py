"""What trackers cost a training: the time of a step with all three beside the run, with none, and with services that are away.

In each round the ways take turns, in another order each time. The times are those of the steps (``train_seconds`` over the
steps), once over the whole run, so that the start of the trackers' processes counts, and once without its first third. MLflow
and W&B get real work: MLflow a SQLite file, W&B the stand-in of tests/wandb_service.py, in a process of its own. ``unplugged``
gives W&B an address that refuses, and MLflow one that never answers. Ratios are taken within a round; of them the median
counts.

    python benchmarks/trackers.py --work /tmp/trackers-cost --out benchmarks/results/trackers-cpu.json

The times of whole runs differ by some percent from one to the next, whatever runs beside them. ``--turns N`` measures within one
run: its tracker processes (and those that they began) are stopped and woken in turn, 2 N + 1 times. A step of each turn in which
they work is compared with the mean of the turns before and after it, in which they are stopped. They have twice as much to do
then as otherwise. Their start is not in it.

    python benchmarks/trackers.py --turns 12 --work /tmp/trackers-turns --out benchmarks/results/trackers-turns-cpu.json

``--alone FILE`` holds an exclusive lock on FILE during each round, for machines where other jobs take a shared one.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests")]

from tracked_runs import pids_of  # noqa: E402 # pyright: ignore[reportMissingImports]

RECIPE = """\
model: {{name: cifar_resnet18, options: {{width: {width}}}}}
image_size: 32
batch_size: 32
epochs: {steps}st
lr: {{schedule: constant, peak: 0.02}}
augment: {{crop: none}}
eval: {{every: {every}st}}
"""
WAYS = ("none", "all three", "unplugged")
_SERVICE = """\
from wandb_service import WandbService
with WandbService() as service:
    print(service.url, flush=True)
    input()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--alone", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    recipe = args.work / "recipe.yaml"
    if args.turns is not None:
        measure_turns(args, recipe)
        return
    recipe.write_text(RECIPE.format(steps=args.steps, width=args.width, every=max(1, args.steps // 4)))
    rounds: list[dict[str, dict[str, float]]] = []
    with services(args.work) as addresses:
        for turn in range(args.rounds):
            with alone(args.alone):
                ways = [WAYS[(turn + at) % len(WAYS)] for at in range(len(WAYS))]
                rounds.append(
                    {way: measured(args, recipe, f"{way.replace(' ', '-')}-{turn}", addresses[way]) for way in ways}
                )
            for way in WAYS:
                print(f"round {turn + 1}: {way:<9} {rounds[-1][way]}", flush=True)
    result = {**about(args, args.work / "none-0"), "rounds": rounds, **summed(rounds)}
    print(json.dumps(summed(rounds), indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def measure_turns(args: argparse.Namespace, recipe: Path) -> None:
    """Trains once beside all three, which are stopped and woken in turn."""
    recipe.write_text(RECIPE.format(steps=1_000_000, width=args.width, every=1_000_000))
    out = args.work / "turns"
    environment = os.environ | {"PYTHONPATH": str(HERE), "STAGEWRIGHT_CACHE": str(args.work / "cache")}
    command = [sys.executable, "-m", "stagewright", "train", "digits", "--recipe", str(recipe), "--out", str(out)]
    command += ["--device", "cpu", "--threads", str(args.threads), "--no-pages", "--quiet"]
    nowhere = subprocess.DEVNULL
    with services(args.work) as addresses:
        own = environment | dict(addresses["all three"] or {})
        process = subprocess.Popen([*command, "--track", "tensorboard,wandb,mlflow"], env=own, stdout=nowhere)
        try:
            trackers = awaited(out)
            turns = list[dict[str, Any]]()
            for at in range(2 * args.turns + 1):
                working = at % 2 == 1
                for pid in trackers:
                    os.kill(pid, signal.SIGCONT if working else signal.SIGSTOP)
                began = cpu_of(trackers)
                rows = next_rows(out, 5)
                milliseconds = 1000 * (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
                used = round(cpu_of(trackers) - began, 2)
                turns.append({"working": working, "step_ms": round(milliseconds, 3), "cpu_seconds": used})
                print(turns[-1], flush=True)
        finally:
            for pid in [*pids_of(out), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    times = [one["step_ms"] for one in turns]
    added = [200 * times[at] / (times[at - 1] + times[at + 1]) - 100 for at in range(1, len(times), 2)]
    half_width = 2 * statistics.stdev(added) / len(added) ** 0.5
    found = {"added_percent": {"mean": statistics.mean(added), "2 standard errors": half_width}}
    found["added_percent"] |= {"median": statistics.median(added)}
    print(json.dumps(found, indent=1))
    if args.out is not None:
        about_it = {**about(args, out), "pairs": [round(one, 2) for one in added], "turns": turns}
        args.out.write_text(json.dumps({**about_it, **found}, indent=1) + "\n")


def awaited(out: Path) -> list[int]:
    """Waits until each tracker has sent a step; returns the processes of all of them, and those that they began."""
    while True:
        time.sleep(1)
        with contextlib.suppress(OSError, ValueError, KeyError):
            files = [out / "trackers" / f"{name}.json" for name in ("tensorboard", "wandb", "mlflow")]
            if all(json.loads(file.read_bytes())["sent"] for file in files):
                break
    found = pids_of(out)
    for pid in found:  # grows meanwhile
        children = Path(f"/proc/{pid}/task").glob("*/children")
        found += [int(child) for file in children for child in file.read_text().split() if int(child) not in found]
    return found


def next_rows(out: Path, count: int) -> list[tuple[int, float]]:
    """Waits for so many more rows of timing.csv: (step, seconds of training)."""

    def rows() -> list[tuple[int, float]]:
        with open(out / "timing.csv", newline="") as file:
            return [(int(row["step"]), float(row["train_seconds"])) for row in csv.DictReader(file)]

    known = len(rows())
    while len(found := rows()) < known + count:
        time.sleep(0.1)
    return found[known : known + count]


def cpu_of(pids: list[int]) -> float:
    """Seconds of processor time that the processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def summed(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds: milliseconds a step, and what a way adds to ``none`` of the same round in percent."""
    medians: dict[str, Any] = {"median_step_ms": {}, "added_percent": {}, "cpu_seconds_beside": {}}
    for way in WAYS:
        medians["median_step_ms"][way] = round(statistics.median(one[way]["step_ms"] for one in rounds), 3)
        if way != "none":
            medians["added_percent"][way] = {
                key: round(statistics.median(100 * (one[way][key] / one["none"][key] - 1) for one in rounds), 2)
                for key in ("step_ms", "later_step_ms")
            }
            beside = statistics.median(one[way]["cpu_seconds"] - one["none"]["cpu_seconds"] for one in rounds)
            medians["cpu_seconds_beside"][way] = round(beside, 1)
    return medians


def measured(
    args: argparse.Namespace, recipe: Path, name: str, addresses: Mapping[str, str] | None
) -> dict[str, float]:
    """Trains once, with trackers unless ``addresses`` is None; returns milliseconds a step and seconds of processor time."""
    out = args.work / name
    environment = os.environ | {"PYTHONPATH": str(HERE), "STAGEWRIGHT_CACHE": str(args.work / "cache")}
    command = [sys.executable, "-m", "stagewright", "train", "digits", "--recipe", str(recipe), "--out", str(out)]
    command += ["--device", "cpu", "--threads", str(args.threads), "--no-pages", "--quiet"]
    command += [] if addresses is None else ["--track", "tensorboard,wandb,mlflow"]
    load, before = os.getloadavg()[0], cpu_seconds()
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment | dict(addresses or {}), stdout=nowhere, stderr=nowhere)
    while process.poll() is None:
        time.sleep(0.5)
        if name.startswith("unplugged") and status(out) == "finished":  # they would try for a minute to send the rest
            for pid in pids_of(out):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    if process.returncode != 0 or status(out) != "finished":
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}")
    if name.startswith("all"):
        sent = {
            one: json.loads((out / "trackers" / f"{one}.json").read_bytes())["sent"]
            for one in ("tensorboard", "wandb", "mlflow")
        }
        assert set(sent.values()) == {args.steps}, sent
    summary = json.loads((out / "summary.json").read_bytes())
    with open(out / "timing.csv", newline="") as file:
        times = [(int(row["step"]), float(row["train_seconds"])) for row in csv.DictReader(file)]
    step, at = next(one for one in times if one[0] >= args.steps / 3)
    return {
        "step_ms": round(1000 * summary["train_seconds"] / summary["step"], 3),
        "later_step_ms": round(1000 * (times[-1][1] - at) / (times[-1][0] - step), 3),
        "cpu_seconds": round(cpu_seconds() - before, 2),
        "load_before": round(load, 2),
    }


@contextlib.contextmanager
def services(work: Path) -> Iterator[dict[str, dict[str, str] | None]]:
    """Context manager: yields the variables of each way, and runs what they point to."""
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)  # takes connections and never answers
    with socket.create_server(("127.0.0.1", 0)) as free:
        refusing = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(HERE / "tests")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _SERVICE], env=environment, stdin=pipe, stdout=pipe, text=True
    ) as service:
        assert service.stdout is not None and service.stdin is not None
        common = {"WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}
        there = {
            "WANDB_BASE_URL": service.stdout.readline().strip(),
            "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        }
        away = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{refusing}",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        try:
            yield {"none": None, "all three": common | there, "unplugged": common | away}
        finally:
            service.stdin.write("\n")
            service.stdin.close()
            silent.close()


@contextlib.contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Context manager: holds the exclusive lock of ``file``, if there is one."""
    if file is None:
        yield
        return
    with open(file, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def about(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """What was measured, on what, and by which command."""
    env = json.loads((run / "env.json").read_bytes())
    libraries = {name: metadata.version(name) for name in ("tensorboard", "wandb", "mlflow-skinny")}
    return {
        "device": f"CPU, {env['cpu']}, {env['cores']} cores, {args.threads} threads for the training",
        "versions": {key: env[key] for key in ("stagewright", "python", "torch")} | libraries,
        "commit": env["git_commit"],
        "command": shlex.join(["python", "benchmarks/trackers.py", *words(args)]),
        **({} if args.turns is not None else {"steps": args.steps}),
    }


def words(args: argparse.Namespace) -> list[str]:
    keys = ("steps", "width", "rounds", "threads") if args.turns is None else ("turns", "width", "threads")
    found = [f"--{key}={getattr(args, key)}" for key in keys]
    return ["--work", "/tmp/trackers-cost", *found]


def status(out: Path) -> str | None:
    try:
        return json.loads((out / "summary.json").read_bytes())["status"]
    except (OSError, ValueError, KeyError):
        return None


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
