"""The command ``demo``: trains a small network, evaluates it, predicts a few images and names the report."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from stagewright.api.evaluate import evaluate
from stagewright.api.run import Run
from stagewright.api.train import train
from stagewright.cli.evaluation_view import evaluation_view
from stagewright.cli.predictions_view import predictions_view
from stagewright.plan.execution import Execution
from stagewright.recipe import recipes
from stagewright.rundir.claim import next_free
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.system.terminal import Terminal

# Digits must not be flipped; 16 px is twice their original size.
_DIGITS = ["image_size=16", "augment.flip=0", "augment.scale=[0.7, 1.0]"]


def run_demo(data: str, out: Path | None) -> Run:
    """Trains the recipe ``quick`` on ``data``, evaluates and predicts; prints the equivalent command before each step."""
    overrides = _DIGITS if data == "digits" else []
    target = out or next_free(Path("runs"), "demo")
    flags = "".join(f" --set {shlex.quote(one.replace(' ', ''))}" for one in overrides)
    print(f"$ stagewright train {data} --recipe quick{flags} --out {target}\n")
    run = train(data, recipes.load("quick", overrides), out=target, execution=Execution())
    if not run.finished:
        return run
    split = next((part for part in ("test", "val") if run.summary["top1"][part] is not None), None)
    console = Terminal()
    if split is None:
        print(f"\nNothing to evaluate: {data} is too small for validation or test pictures.")
    else:
        print(f"\n$ stagewright evaluate {target} --split {split}\n")
        console.print(evaluation_view(evaluate(target, split=split)))
    if pictures := _samples(run):
        print(f"\n$ stagewright predict {target} {shlex.join(map(str, pictures))}\n")
        console.print(predictions_view(list(run.model.predict(pictures, topk=3))))
    print(f"\nThe report is {run.path / 'report.html'}: open it in a browser.")
    return run


def _samples(run: Run) -> list[Path]:
    """Copies a few test (else validation, else training) images to the run, named CLASS-FILE; returns their paths."""
    manifest = readable_manifest(RunDir(run.path))
    rows = next(rows for part in ("test", "val", "train") if len(rows := manifest.rows(part)))
    folder = run.path / "samples"
    folder.mkdir(exist_ok=True)
    copies = []
    for row in rows[:: max(1, len(rows) // 5)][:5]:
        original = Path(manifest.root, manifest.paths[int(row)].as_py())
        if not original.is_file():  # built-in arrays have no files
            continue
        name = f"{manifest.classes[manifest.labels[row]]}-{original.name}"
        copies.append(Path(shutil.copyfile(original, folder / name)))
    return copies
