"""What a mirror costs a training: the time of a step with none, with one, and with one whose store is away.

    python benchmarks/mirror.py --work /tmp/mirror-cost --out benchmarks/results/mirror-cpu.json

In each round the ways take turns, in another order each time: no mirror; a mirror in the stand-in store of the tests (moto, a
process of its own on the same machine); and the same while the store stalls, as it does when a network is gone, and answers 503,
in turn. A checkpoint is saved every 40 steps, so that there is much to upload. The times are those of the steps
(``train_seconds`` of the run's timing.csv over the steps). Ratios are taken within a round; of them the median counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests")]

from object_server import ObjectServer, start_object_server  # noqa: E402 # pyright: ignore[reportMissingImports]

RECIPE = """\
model: {{name: cifar_resnet18, options: {{width: 8}}}}
image_size: 32
batch_size: 32
epochs: {steps}st
lr: {{schedule: constant, peak: 0.02}}
augment: {{crop: none}}
eval: {{every: {steps}st}}
checkpoints: {{every: 40st}}
"""
WAYS = ("none", "mirror", "store away")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir(parents=True)
    recipe = asked.work / "recipe.yaml"
    recipe.write_text(RECIPE.format(steps=asked.steps))
    rounds: list[dict[str, dict[str, float]]] = []
    with start_object_server(asked.work / "server.log") as server:
        for turn in range(asked.rounds):
            ways = [WAYS[(turn + at) % len(WAYS)] for at in range(len(WAYS))]
            rounds.append({way: measured(asked, recipe, way, turn, server) for way in ways})
            print(f"round {turn + 1}: {rounds[-1]}", flush=True)
    added = {
        way: [100 * (one[way]["step_ms"] / one["none"]["step_ms"] - 1) for one in rounds]
        for way in WAYS
        if way != "none"
    }
    result: dict[str, Any] = {
        "median_step_ms": {way: statistics.median(one[way]["step_ms"] for one in rounds) for way in WAYS},
        "added_percent": {way: round(statistics.median(own), 2) for way, own in added.items()},
        "added_percent_by_round": {way: [round(one, 2) for one in own] for way, own in added.items()},
    }
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        env = json.loads((asked.work / "none-0" / "env.json").read_bytes())
        about = {key: env[key] for key in ("cpu", "cores", "python", "torch", "git_commit")}
        words = ["python", "benchmarks/mirror.py", f"--steps={asked.steps}", f"--rounds={asked.rounds}"]
        result = {"command": shlex.join(words), **about, **result, "rounds": rounds}
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(asked: argparse.Namespace, recipe: Path, way: str, turn: int, server: ObjectServer) -> dict[str, float]:
    """Trains once; returns milliseconds a step, and how many requests the store got."""
    out = asked.work / f"{way.replace(' ', '-')}-{turn}"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "STAGEWRIGHT_CACHE": str(asked.work / "cache")}
    environment |= server.environment()
    command = [sys.executable, "-m", "stagewright", "train", "digits", "--recipe", str(recipe), "--out", str(out)]
    command += ["--device", "cpu", "--threads", "1", "--no-pages", "--quiet"]
    if way != "none":
        command += ["--mirror", f"{server.new_bucket()}/run", "--mirror-wait", "1s"]
    server.requests(clear=True)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        if way == "store away":
            while not (out / "steps.csv").exists() and process.poll() is None:
                pass_seconds(process, 0.2)
            kinds = ("stall", "slow")
            at = 0
            while process.poll() is None:
                with server.fault(kinds[at % 2]):
                    pass_seconds(process, 5.0)
                at += 1
        code = process.wait()
    if code not in (0, 69) or (code == 69) > (way == "store away"):
        raise SystemExit(f"{shlex.join(command)} ended with {code}")
    with open(out / "timing.csv", newline="") as file:
        rows = [(int(row["step"]), float(row["train_seconds"])) for row in csv.DictReader(file)]
    milliseconds = 1000 * (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
    return {"step_ms": round(milliseconds, 3), "requests": server.num_requests()}


def pass_seconds(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits so long, or until the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


if __name__ == "__main__":
    main()
