"""Trees: seconds of training and of saving with two versions of the code, in runs that take turns on one machine.

    git worktree add ../before COMMIT        (its native module: copy stagewright/data/_native*.so)
    python benchmarks/trees.py ../before . --rounds 5 --out benchmarks/results/trees-cpu.json

Each run trains a CIFAR-style ResNet-18 of half width on the digits and saves its 34 MB of state after every 5 updates. A ratio
is seconds before / seconds now: above 1 is faster now. Python's full garbage collections (0.2 s each) fall into saves or
updates by chance, so runs are long enough for several.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ENTRY = """
try:
    from stagewright.cli.main import main
except ImportError:  # before the package had rooms
    from stagewright.cli import main
sys.exit(main())
"""


def seconds(tree: Path, updates: int, folder: Path) -> tuple[float, float]:
    """Seconds of training and of saving in a run of the code in ``tree``."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "STAGEWRIGHT_CACHE": str(folder / "cache")}
    start = "import sys; sys.argv[0] = 'stagewright'; " + ENTRY
    words = ["train", "digits", "-r", "quick", "--model", "cifar_resnet18", "--set", "model.options={width: 32}"]
    words += ["--img-size", "8", "--batch-size", "32", "--epochs", f"{updates}st", "--set", f"eval.every={updates}st"]
    words += ["--set", "checkpoints.every=5st", "--no-pages", "-q", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", start, *words], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
    summary = json.loads((out / "summary.json").read_text())
    return summary["train_seconds"], summary["checkpoint_seconds"]


def main() -> None:
    """Parses, lets the trees take turns, prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    asked = parser.parse_args()
    trees = {"before": asked.before.resolve(), "now": asked.now.resolve()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory(prefix="stagewright-trees-") as folder:
        for number in range(asked.rounds):
            for name in list(trees)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(seconds(trees[name], asked.updates, Path(folder)))
    ratios = {}
    for at, what in enumerate(("train", "checkpoint")):
        pairs = [(one[at], other[at]) for one, other in zip(found["before"], found["now"], strict=True)]
        ratios[what] = [before / now for before, now in pairs]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        print(f"{what:10} before {medians[0]:.2f} s, now {medians[1]:.2f} s, "
              f"before / now {statistics.median(ratios[what]):.3f} ({min(ratios[what]):.3f} to "
              f"{max(ratios[what]):.3f})")  # fmt: skip
    if asked.out:
        import torch

        commits = {name: _commit(tree) for name, tree in trees.items()}
        content = {
            "seconds": found,
            "ratios": ratios,
            "commits": commits,
            "updates": asked.updates,
            "torch": torch.__version__,
        }
        asked.out.write_text(json.dumps({**content, "python": sys.version.split()[0]}, indent=1) + "\n")


def _commit(tree: Path) -> str:
    """The commit that is checked out in ``tree``."""
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
