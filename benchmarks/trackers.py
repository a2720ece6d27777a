"""What trackers cost a training: the time of a step with all three beside the run, with none, and with services that are away.

In each round the ways take turns, in another order each time. The times are those of the steps (``train_seconds`` over the
steps), once over the whole run, so that the start of the trackers' processes counts, and once without its first third. MLflow
and W&B get real work: MLflow a SQLite file, W&B the stand-in of tests/wandb_service.py, in a process of its own. ``unplugged``
gives W&B an address that refuses, and MLflow one that never answers. Ratios are taken within a round; of them the median
counts.

    python benchmarks/trackers.py --work /tmp/trackers-cost --out benchmarks/results/trackers-cpu.json

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
    parser.add_argument("--alone", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    recipe = args.work / "recipe.yaml"
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
    result = {**about(args), "rounds": rounds, **summed(rounds)}
    print(json.dumps(summed(rounds), indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


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


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What was measured, on what, and by which command."""
    env = json.loads((args.work / "none-0" / "env.json").read_bytes())
    libraries = {name: metadata.version(name) for name in ("tensorboard", "wandb", "mlflow-skinny")}
    return {
        "device": f"CPU, {env['cpu']}, {env['cores']} cores, {args.threads} threads for the training",
        "versions": {key: env[key] for key in ("stagewright", "python", "torch")} | libraries,
        "commit": env["git_commit"],
        "command": shlex.join(["python", "benchmarks/trackers.py", *words(args)]),
        "steps": args.steps,
    }


def words(args: argparse.Namespace) -> list[str]:
    found = [f"--{key}={getattr(args, key)}" for key in ("steps", "width", "rounds", "threads")]
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
