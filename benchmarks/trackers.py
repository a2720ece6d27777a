"""What trackers cost a training: the time of a step with all three beside the run, with none, and with services that are away.

In each round the ways take turns, in another order each time; the times are those of the steps alone (``train_seconds`` of
summary.json over the steps), so that starts and ends do not count. The medians over rounds are compared. MLflow and W&B get
real work: MLflow a SQLite file, W&B the stand-in of tests/wandb_service.py. ``away`` gives both an address nobody answers at.

    python benchmarks/trackers.py --work /tmp/trackers-cost --out benchmarks/results/trackers-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE / "tests"))

from wandb_service import WandbService  # noqa: E402 # pyright: ignore[reportMissingImports]

RECIPE = """\
model: {{name: cifar_resnet18, options: {{width: {width}}}}}
image_size: 32
batch_size: 64
epochs: {steps}st
lr: {{schedule: constant, peak: 0.02}}
augment: {{crop: none}}
eval: {{every: {every}st}}
"""
WAYS = ("none", "all three", "away")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    recipe = args.work / "recipe.yaml"
    recipe.write_text(RECIPE.format(steps=args.steps, width=args.width, every=max(1, args.steps // 4)))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    loads: list[float] = []
    with WandbService() as wandb:
        for turn in range(args.rounds):
            for at in range(len(WAYS)):
                way = WAYS[(turn + at) % len(WAYS)]
                loads.append(os.getloadavg()[0])
                times[way].append(step_ms(args, recipe, args.work / f"{way.replace(' ', '-')}-{turn}", way, wandb))
                print(f"round {turn + 1}: {way:<9} {times[way][-1]:.2f} ms a step, load {loads[-1]:.1f}", flush=True)
    medians = {way: statistics.median(found) for way, found in times.items()}
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "steps": args.steps,
        "step_ms": times,
        "median_step_ms": medians,
        "cost_percent": {way: 100 * (medians[way] / medians["none"] - 1) for way in WAYS[1:]},
        "load_before": loads,
    }
    print(json.dumps({key: result[key] for key in ("median_step_ms", "cost_percent")}, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def step_ms(args: argparse.Namespace, recipe: Path, out: Path, way: str, wandb: WandbService) -> float:
    """Trains once; returns milliseconds a step."""
    environment = os.environ | {"PYTHONPATH": str(HERE), "STAGEWRIGHT_CACHE": str(args.work / "cache")}
    environment |= wandb.environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{args.work}/mlflow.db"}
    if way == "away":
        environment |= {"MLFLOW_TRACKING_URI": "http://10.255.255.1:5000", "WANDB_BASE_URL": "http://10.255.255.1:5001"}
    command = [sys.executable, "-m", "stagewright", "train", "digits", "--recipe", str(recipe), "--out", str(out)]
    command += ["--device", "cpu", "--threads", str(args.threads), "--no-pages", "--quiet"]
    command += [] if way == "none" else ["--track", "tensorboard,wandb,mlflow"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    summary = json.loads((out / "summary.json").read_bytes())
    return 1000 * summary["train_seconds"] / summary["step"]


if __name__ == "__main__":
    main()
