"""What auto chooses against finetune and quick picked by hand: accuracy and seconds on sets of five kinds.

A cell is one run of one recipe on one set; cells are run one at a time and gathered in a JSON file, from which ``table``
prints the comparison. Every recipe has its own length. By hand means: quick as it is, and finetune with the network that
the weights belong to at 160 px. Accuracy is on the test pictures, or on the validation pictures where there are no others
(which then also chose the weights), with Wilson's 95 % interval: of the sampling of pictures, not of seeds.

    python benchmarks/auto.py run digits auto --data ../shared/data --work /tmp/auto --out benchmarks/results/auto-cpu.json
    python benchmarks/auto.py table --out benchmarks/results/auto-cpu.json

``--data`` is the folder of the project's real pictures (zips, read into ``--work`` once); digits needs none.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stagewright as sw
from stagewright.measures.intervals import wilson
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.rundir.claim import next_free
from stagewright.rundir.directory import RunDir

WEIGHTS, NETWORK = "mobilenet_v2-imagenet.pth", "mobilenet_v2"
CIFAR = {"train": 200, "test": 100}
"""Pictures a class of the CIFAR-10 subset, the first by name."""


@dataclass(frozen=True)
class Set:
    """Pictures, and whether ImageNet weights are given along with them."""

    archive: str | None
    path: str
    weights: bool


SETS = {
    "digits": Set(None, "digits", False),
    "imagenette": Set("imagenette-4k.zip", "imagenette-4k", False),
    "imagenette-weights": Set("imagenette-4k.zip", "imagenette-4k", True),
    "cifar": Set("cifar10-jpeg.zip", "cifar10-jpeg", False),
    "cifar-weights": Set("cifar10-jpeg.zip", "cifar10-jpeg", True),
    "breeds-weights": Set("breeds-csv.zip", "breeds-csv/labels.csv", True),
}
RECIPES = ("auto", "finetune", "quick")


def unpacked(chosen: Set, data: Path, work: Path) -> str:
    """DATA of the set, unpacked below ``work`` where it is not there yet; of CIFAR-10 the subset alone."""
    if chosen.archive is None:
        return chosen.path
    target = work / chosen.path
    if not target.exists():
        taken: Counter[str] = Counter()
        with zipfile.ZipFile(data / chosen.archive) as archive:
            for name in sorted(archive.namelist()):
                folder = name.rpartition("/")[0]
                taken[folder] += 1
                if "cifar" not in name or taken[folder] <= CIFAR.get(Path(folder).parent.name, 0):
                    archive.extract(name, work)
    return str(target)


def overrides(recipe: str, chosen: Set, data: Path) -> list[str]:
    """What a person would type beside the recipe's name."""
    file = data / WEIGHTS
    if recipe == "finetune":
        return [f"model.name={NETWORK}", f"model.weights={file}", "image_size=160"]
    return [f"model.weights={file}"] if recipe == "auto" and chosen.weights else []


def run(name: str, recipe: str, data: Path, work: Path) -> dict[str, Any]:
    """Trains one cell and returns its figures."""
    chosen = SETS[name]
    if recipe == "finetune" and not chosen.weights:
        raise SystemExit("finetune needs weights, and this set is the one without")
    given = overrides(recipe, chosen, data)
    out = next_free(work / "runs", f"{name}-{recipe}")
    quiet = Execution(pages=False, quiet=True)
    done = sw.train(unpacked(chosen, data, work), recipe, overrides=given, out=out, execution=quiet)
    summary, plan, env = done.summary, RunDir(out).read_plan(), RunDir(out).read_env()
    split = "test" if plan.dataset.num_test else "val"
    total = plan.dataset.num_test or plan.dataset.num_val
    correct = round((summary["top1"][split] or 0.0) * total / 100)
    for private in ("cwd", "command", "data", "data_notes", "parent"):
        env.pop(private, None)
    return {
        "split": split,
        "correct": correct,
        "total": total,
        "train_pictures": plan.dataset.num_train,
        **{key: summary[key] for key in ("top1", "chosen", "train_seconds", "eval_seconds", "wall_seconds")},
        "given": [text.replace(f"{data}/", "") for text in given],
        **_shape(plan),
        "environment": env,
    }


def _shape(plan: Plan) -> dict[str, Any]:
    """The plan in a few words."""
    stages = [f"{stage.name}: {stage.epochs_given:.3g} epochs, {stage.image_size} px" for stage in plan.stages]
    return {
        "plan": plan.digest,
        "model": plan.recipe.model.name,
        "options": plan.recipe.model.options,
        "stages": stages,
    }


def table(cells: dict[str, Any]) -> str:
    """The cells as Markdown: a row for each set, accuracy in percent with its interval and seconds of training for each
    recipe."""
    lines = ["| set | " + " | ".join(RECIPES) + " |", "|---" * (1 + len(RECIPES)) + "|"]
    for name in SETS:
        found = [cells.get(f"{name}/{recipe}") for recipe in RECIPES]
        if any(found):
            lines.append(f"| {name} | " + " | ".join(_cell(one) if one else "" for one in found) + " |")
    return "\n".join(lines)


def _cell(figures: dict[str, Any]) -> str:
    low, high = wilson(figures["correct"], figures["total"])
    share = 100 * figures["correct"] / figures["total"]
    return f"{share:.1f} ({100 * low:.1f} to {100 * high:.1f}), {figures['train_seconds']:.0f} s"


def main() -> None:
    """Runs a cell, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deed", choices=("run", "table"))
    parser.add_argument("set", nargs="?", choices=tuple(SETS))
    parser.add_argument("recipe", nargs="?", choices=RECIPES)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/auto-benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto-cpu.json"))
    asked = parser.parse_args()
    content: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.is_file() else {"cells": {}}
    if asked.deed == "run":
        if asked.set is None or asked.recipe is None:
            parser.error("run needs a set and a recipe")
        asked.work.mkdir(parents=True, exist_ok=True)
        content["command"] = "python benchmarks/auto.py run SET RECIPE"
        content["cells"][f"{asked.set}/{asked.recipe}"] = run(asked.set, asked.recipe, asked.data, asked.work)
        asked.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content["cells"]))


if __name__ == "__main__":
    main()
