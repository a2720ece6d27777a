"""Raw against averaged weights: EMA and SWA over seeds, on real pictures, at the end and at every evaluation.

Two recipes on each data set: one that averages by EMA from the first step to the last, and one whose last quarter is SWA.
Every run evaluates raw and averaged weights on the same validation pictures after each epoch; differences are paired, by
seed, with Student's 95 % interval of their mean.

    python benchmarks/averages.py --data imagenette-4k/ --cifar cifar10-jpeg/ --weights mobilenet_v2-imagenet.pth [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from stagewright.api.train import train
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.environment import environment
from stagewright.rundir.event_kinds import Evaluated
from stagewright.rundir.events import live_events

SWA_STAGE = {"name": "swa", "epochs": 0.25, "average": {"kind": "swa", "every": 0.02}}


def cases(weights: Path) -> dict[str, dict[str, Any]]:
    """Plain recipes: fine-tuning photographs, and small pictures from scratch; each with EMA and with SWA."""
    photographs = {
        "model": {"name": "mobilenet_v2", "weights": str(weights)},
        "image_size": 96,
        "batch_size": 32,
        "epochs": "4ep",
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "layer_decay": 0.85},
        "lr": {"schedule": "cosine", "peak": 5e-4, "warmup": 0.1},
        "augment": {"crop": "random_resized", "scale": [0.35, 1.0]},
        "label_smoothing": 0.1,
    }
    small = {
        "model": {"name": "cifar_resnet18", "options": {"width": 16}},
        "image_size": 32,
        "batch_size": 128,
        "data_fraction": 0.3,
        "epochs": "8ep",
        "optimizer": {"nesterov": True, "weight_decay": 5e-4},
        "lr": {"schedule": "one_cycle", "peak": 0.2, "warmup": 0.25},
        "augment": {"crop": "pad"},
        "data": {"val": 0.1},
        "eval": {"crop": 1.0},
    }
    found: dict[str, dict[str, Any]] = {}
    for name, plain, swa_lr in (("imagenette", photographs, 1e-4), ("cifar10", small, 0.02)):
        found[f"{name} ema"] = {**plain, "average": {"kind": "ema", "half_life": 0.02}}
        swa = {**SWA_STAGE, "lr": {"schedule": "swa", "peak": swa_lr, "warmup": 0.02}}
        found[f"{name} swa"] = {**plain, "stages": [{"name": "train", "epochs": 0.75}, swa]}
    return found


def evaluations(folder: Path) -> list[dict[str, float]]:
    """Validation top-1 by kind of weights at every evaluation that had both."""
    events = [event for event in live_events(folder / "events.jsonl") if isinstance(event, Evaluated)]
    rows = [{kind: result.top1 for kind, result in event.results.items()} for event in events]
    return [{"epoch": event.epoch, **row} for event, row in zip(events, rows, strict=True) if len(row) > 1]


def paired(differences: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's; infinite for one)."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("inf")
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return mean, float(student.ppf(0.975, len(differences) - 1)) * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="imagenette-4k, unpacked")
    parser.add_argument("--cifar", type=Path, required=True, help="cifar10-jpeg, unpacked")
    parser.add_argument("--weights", type=Path, required=True, help="mobilenet_v2-imagenet.pth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plain in cases(options.weights).items():
            if options.only not in name:
                continue
            data = options.data if name.startswith("imagenette") else options.cifar
            results[name] = []
            for seed in range(options.seeds):
                out = Path(folder, f"{name.replace(' ', '-')}-{seed}")
                recipe = recipes.from_dict({**plain, "seed": seed})
                done = train(str(data), recipe, out=out, execution=Execution(pages=False, quiet=True), say=_silent)
                if not done.finished:
                    raise SystemExit("stopped: nothing is kept")
                results[name].append(evaluations(out))
            print(lines(name, results[name]), flush=True)
    if options.out:
        command = ["python", "benchmarks/averages.py", "--seeds", str(options.seeds), "--only", options.only]
        found = environment("imagenette-4k, cifar10-jpeg", command, "cpu", "")
        del found["cwd"]
        options.out.write_text(json.dumps({"environment": found, "results": results}, indent=1) + "\n")


def _silent(text: str) -> None: ...


def lines(name: str, runs: list[list[dict[str, float]]]) -> str:
    """A case in words: both means at the end, and the paired difference at every evaluation."""
    kind = name.split()[1]
    last = [(run[-1]["raw"], run[-1][kind]) for run in runs]
    told = [
        f"{name}: raw {statistics.fmean(raw for raw, _ in last):.2f}, {kind} "
        f"{statistics.fmean(averaged for _, averaged in last):.2f} % at the end (n = {len(runs)}); averaged minus raw:"
    ]
    for rows in zip(*runs, strict=True):
        differences = [row[kind] - row["raw"] for row in rows]
        mean, half = paired(differences)
        each = ", ".join(f"{one:+.2f}" for one in differences)
        told.append(f"  epoch {rows[0]['epoch']:.2f}: {mean:+.2f} +- {half:.2f} ({each})")
    return "\n".join(told)


if __name__ == "__main__":
    main()
