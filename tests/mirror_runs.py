"""Runs with a mirror, for tests: a short recipe that has what a checkpoint must carry, and their start, kill and comparison."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_runs import QUIET, Parent
from ranks import Ranks

from stagewright.mirror.owner import Ownership, own_record, take_over
from stagewright.rundir import checkpoint
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import read_summary


def mirror_recipe(folder: Path, steps: int = 8, *, saves: str = "2st", **fields: Any) -> Path:
    """Writes a recipe of two stages, of ``steps`` updates each, for 1 to 4 ranks; returns its path."""
    recipe = {
        "model": {"name": "cifar_resnet18", "drop_path": 0.2, "options": {"width": 4}},
        **{"image_size": 16, "batch_size": 12, "spread": 4, "optimizer": {"name": "sgd"}},
        "lr": {"schedule": "cosine", "peak": 0.05},
        "augment": {"crop": "random_resized", "scale": [0.4, 1.0], "flip": 0.5},
        "mix": {"mixup": 0.4},
        "eval": {"every": f"{steps // 2}st"},
        "checkpoints": {"every": saves, "keep": 2},
        "stages": [
            {"name": "head", "train": "head", "epochs": f"{steps}st", "mix": "none"},
            {"name": "all", "epochs": f"{steps}st", "average": {"kind": "ema", "half_life": "2st"}},
        ],
        **fields,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def start(parent: Parent, data: Path, recipe: Path, out: Path, url: str, size: int = 1, *more: str | Path) -> Ranks:
    """Starts the training, or goes on with it from ``out`` or the mirror ``url``, as ``size`` ranks."""
    command = ("train", data, "-r", recipe, "--out", out, "--mirror", url, "--resume", "auto", *QUIET, *more)
    return parent.start(command, size)


def until(condition: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Waits for ``condition()``; TimeoutError after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what or "the condition does not come true")
        time.sleep(0.01)


def kill_all(ranks: Ranks) -> None:
    """Kills all processes of a run at once, as when a machine is taken away."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for rank in range(ranks.size):
            try:
                os.kill(ranks.pid(rank), number)
            except ProcessLookupError:  # it has ended already
                continue


def same_results(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ: weights of every kind, logs, predictions, bundle; [] if every bit is equal."""
    from stagewright.api.resume_check import differences

    found = differences(RunDir(one), RunDir(other))
    for name in ("model/golden.safetensors", "model/weights.safetensors"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name} differs")
    first, second = (_plain(json.loads((run / "model" / "model.json").read_bytes())) for run in (one, other))
    if first != second:
        found.append("model.json differs")
    return found


def _plain(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in ("created", "provenance", "run")}


def lacks(run: Path) -> list[str]:
    """What the mirror of ``run`` lacks, as its summary.json says."""
    told = read_summary(RunDir(run)).get("mirror")
    assert told is not None
    return told["missing"]


PLAN = "p" * 64
"""The digest of the plan of :func:`saved`'s checkpoints."""


def saved(run: RunDir, step: int, *, size: int = 100, protect: Sequence[int] = (), keep: int = 2, **more: Any) -> None:
    """Saves a checkpoint of ``size`` random numbers, which differ by its step."""
    import torch

    generator = torch.Generator().manual_seed(step)
    tensors = {"step": step, "x": torch.randn(size, generator=generator)}
    checkpoint.save(run.checkpoints, step, tensors, {"plan_digest": PLAN}, keep=keep, protect=protect, **more)


def run_directory(root: Path) -> RunDir:
    """A run directory with a few small files, ready for checkpoints."""
    run = RunDir.create(root)
    for name in ("plan.json", "manifest.parquet", "recipe.yaml", "env.json"):
        (root / name).write_text(f"the {name}")
    run.steps.write_text("step\n")
    return run


def owned(store: Any, url: str, name: str = "run") -> Ownership:
    """The right to write to the mirror, taken over from whoever had it."""
    return take_over(store, url, own_record(PLAN, name), conditional=True)
