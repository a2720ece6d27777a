"""Fine-tuning on small sets: auto beside the head alone, an earlier version of stagewright and fastai's fine_tune.

Each run is a process of its own, from pictures to a model and its answers to the test pictures; the runs of a set and seed follow
each other, so that what else the machine does meets all of them. Accuracy is on the set's own test pictures, with Wilson's 95 %
interval; the difference to auto is paired by picture: its interval is over pictures, of each picture's mean over the seeds.
Seconds are wall seconds of the whole process.

    python benchmarks/rivals.py run --data ../shared/data --work /tmp/rivals --out benchmarks/results/rivals-cpu.json \
        --earlier /tmp/earlier-checkout --fastai /tmp/venv-with-fastai/bin/python --seeds 3
    python benchmarks/rivals.py table --out benchmarks/results/rivals-cpu.json

``--data`` is the folder of the project's real pictures. A run that is in ``--out`` already is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stagewright.api.data import split as split_data
from stagewright.measures.intervals import wilson

HERE = Path(__file__).resolve().parent
WEIGHTS = "mobilenet_v2-imagenet.pth"
SIZE = 160
HEAD = "{name: head, train: head, fit: optimum, augment: {crop: none, flip: 0.5}, label_smoothing: 0.0}"
"""The first stage of finetune, which is all of the way ``head``."""
WAYS = ("head", "auto", "earlier", "fastai")
FASTAI_EPOCHS = 5
"""Epochs of fine_tune after its first one with the head alone, as in the issue's comparison."""


def make_sets(data: Path, work: Path) -> dict[str, Path]:
    """Returns DATA of each set, made below ``work`` where it is not there yet: tables with the parts train, val and test."""
    work.mkdir(parents=True, exist_ok=True)
    for name in ("breeds-csv", "cifar10-jpeg", "imagenette-4k"):
        if not (work / name).exists():
            with zipfile.ZipFile(data / f"{name}.zip") as archive:
                archive.extractall(work)
    cifar, nette = work / "cifar10-jpeg", work / "imagenette-4k"
    classes = sorted(folder.name for folder in (cifar / "train").iterdir())
    folders = {
        "cats-dogs": _few(cifar, work / "cats-dogs", ["cat", "dog"], 300, "test", 250),
        "cifar-1000": _few(cifar, work / "cifar-1000", classes, 100, "test", 60),
        "nette-300": _few(
            nette, work / "nette-300", sorted(f.name for f in (nette / "train").iterdir()), 30, "val", 100
        ),
    }
    made: dict[str, Path] = {}
    for name, folder in folders.items():
        made[name] = work / f"{name}.csv"
        if not made[name].exists():
            split_data(folder, val=0.2, seed=1, out=made[name])
    made["breeds"] = work / "breeds.csv"
    if not made["breeds"].exists():
        split_data(work / "breeds-csv" / "labels.csv", val=0.15, test=0.35, seed=1, out=made["breeds"])
    return made


def _few(source: Path, target: Path, classes: list[str], train: int, test_part: str, test: int) -> Path:
    """Returns a folder with the first ``train`` and ``test`` pictures of each of ``classes``."""
    if not target.exists():
        for part, given, count in (("train", "train", train), ("test", test_part, test)):
            for name in classes:
                (target / part / name).mkdir(parents=True)
                for file in islice(sorted((source / given / name).iterdir()), count):
                    shutil.copy(file, target / part / name)
    return target


def run_once(way: str, table: Path, seed: int, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Returns seconds and the answers to the test pictures, by path, of one run in the folder ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    weights = args.data / WEIGHTS
    begun = time.perf_counter()
    if way == "fastai":
        command = [args.fastai, HERE / "fastai_finetune.py", table, weights, seed, SIZE, FASTAI_EPOCHS, f"{out}.json"]
        _call(command, {})
        seconds = time.perf_counter() - begun
        answers = json.loads(Path(f"{out}.json").read_text())
    else:
        tree = args.earlier if way == "earlier" else HERE.parent
        words = ["train", table, "--weights", weights, "--seed", seed, "--out", out, "--quiet"]
        if way == "head":
            words += ["--recipe", "finetune", "--model", "mobilenet_v2"]
            words += ["--set", f"image_size={SIZE}", "--set", f"stages=[{HEAD}]"]
        _call([sys.executable, "-m", "stagewright", *words], {"PYTHONPATH": str(tree)})
        seconds = time.perf_counter() - begun
        answers = _answers(out)
    truth = {row["path"]: row["label"] for row in csv.DictReader(table.open()) if row["split"] == "test"}
    if answers.keys() != truth.keys():
        raise SystemExit(f"{way} answered {len(answers)} of {len(truth)} test pictures of {table}")
    right = "".join(str(int(answers[path] == label)) for path, label in sorted(truth.items()))
    return {"seconds": round(seconds, 1), "right": right}


def _call(command: list[Any], env: dict[str, str]) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd="/", env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _commit(tree: Path) -> str:
    return subprocess.run(
        ["git", "-C", tree, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _answers(run: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    classes = json.loads((run / "plan.json").read_text())["dataset"]["classes"]
    table = pq.read_table(run / "evaluations" / "test.parquet").to_pydict()
    return {path: classes[at] for path, at in zip(table["path"], table["predicted"], strict=True)}


def run(args: argparse.Namespace) -> None:
    """Makes the runs that are missing in ``--out``."""
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    sets = make_sets(args.data, args.work)
    ways = [way for way in WAYS if way not in ("earlier", "fastai") or getattr(args, way)]
    for seed in range(1, args.seeds + 1):
        for name in args.sets or sets:
            for way in ways:
                key = f"{name}/{way}/{seed}"
                if key in found["runs"]:
                    continue
                found["runs"][key] = {
                    **run_once(way, sets[name], seed, args, args.work / key.replace("/", "-")),
                    "load": round(os.getloadavg()[0], 1),
                    "commit": None if way == "fastai" else _commit(args.earlier if way == "earlier" else HERE.parent),
                }
                print(key, {**found["runs"][key], "right": found["runs"][key]["right"].count("1")}, flush=True)
                args.out.write_text(json.dumps(found, indent=1) + "\n")


def table(args: argparse.Namespace) -> None:
    """Prints accuracy, seconds and the paired difference to auto, for each set and way."""
    runs = json.loads(args.out.read_text())["runs"]
    rights: dict[tuple[str, str], list[str]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, one in sorted(runs.items()):
        name, way, _ = key.split("/")
        rights[name, way].append(one["right"])
        seconds[name, way].append(one["seconds"])
    print("| set | n | way | seeds | top-1 (95 %, pictures) | minus auto (95 %, paired) | median seconds |")
    print("|---|---|---|---|---|---|---|")
    for (name, way), texts in rights.items():
        mean = _mean(texts)
        low, high = wilson(round(mean.sum()), len(mean))
        against = ""
        if way != "auto" and (name, "auto") in rights:
            gap = mean - _mean(rights[name, "auto"])
            half = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
            against = f"{100 * gap.mean():+.1f} ({100 * (gap.mean() - half):+.1f} to {100 * (gap.mean() + half):+.1f})"
        print(
            f"| {name} | {len(mean)} | {way} | {len(texts)} | {100 * mean.mean():.1f} ({100 * low:.1f} to {100 * high:.1f}) "
            f"| {against} | {float(np.median(seconds[name, way])):.0f} |"
        )


def _mean(texts: list[str]) -> np.ndarray:
    """Returns for each picture the share of the seeds that are right, (N,)."""
    return np.mean([[int(one) for one in text] for text in texts], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=lambda text: Path(text).resolve())
    parser.add_argument("--work", type=lambda text: Path(text).resolve())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--earlier", type=lambda text: Path(text).resolve(), help="a checkout of an earlier version")
    parser.add_argument("--fastai", help="the Python of an environment with fastai")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*")
    args = parser.parse_args()
    (run if args.what == "run" else table)(args)


if __name__ == "__main__":
    main()
