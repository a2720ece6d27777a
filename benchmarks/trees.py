"""Trees: seconds of training, of saving and of reading with two versions of the code that take turns on one machine.

    git worktree add ../before COMMIT        (and there: python setup.py build_ext --inplace, for its native module)
    python benchmarks/trees.py ../before . --rounds 5 --out benchmarks/results/trees-cpu.json

A run trains a CIFAR-style ResNet-18 of half width on the digits and saves its 34 MB of state after every 5 updates. Reading is
the scan of 1,000 photographs, a second scan whose results are known, and the loader of ``loader.py`` for 224 px and for small
images in memory. A ratio is seconds before / seconds now: above 1 is faster now. Python's full garbage collections (0.2 s each)
fall into saves or updates by chance, so runs are long enough for several.
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
from contextlib import ExitStack
from pathlib import Path

from loader import photographs

from stagewright.rundir.environment import environment

ENTRY = """
try:
    from stagewright.cli.main import main
except ImportError:  # before the package had rooms
    from stagewright.cli import main
sys.exit(main())
"""

READING = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from loader import measured, small_ways, stagewright_way
from stagewright.data.dataset import load_dataset
from stagewright.recipe.recipe import Data

def scan():
    began = time.perf_counter()
    dataset = load_dataset(sys.argv[2], Data(val=0.01, test=0), workers=2)
    return time.perf_counter() - began, dataset

first, _ = scan()
again, dataset = scan()
photos = 2000 / measured(stagewright_way(dataset.images, dataset.manifest, 224, 2), 2000)
memory = 200_000 / measured(small_ways(1)["stagewright"], 200_000)
print(json.dumps({"scan": first, "scan again": again, "loader 224 px": photos, "loader 32 px in memory": memory}))
"""


def reading(tree: Path, photos: Path, folder: Path) -> dict[str, float]:
    """Seconds of the kinds of reading, with the code in ``tree``."""
    cache = folder / "fresh"
    shutil.rmtree(cache, ignore_errors=True)
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "STAGEWRIGHT_CACHE": str(cache)}
    words = [sys.executable, "-c", READING, str(tree / "benchmarks"), str(photos)]
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def training(tree: Path, updates: int, folder: Path) -> dict[str, float]:
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
    return {"train": summary["train_seconds"], "checkpoint": summary["checkpoint_seconds"]}


def main() -> None:
    """Parses, lets the trees take turns, prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--only", choices=("training", "reading"), help="leave out the other one")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    asked = parser.parse_args()
    trees = {"before": asked.before.resolve(), "now": asked.now.resolve()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with ExitStack() as open_folders:
        folder = Path(open_folders.enter_context(tempfile.TemporaryDirectory(prefix="stagewright-trees-")))
        photos = None if asked.only == "training" else open_folders.enter_context(photographs(None))
        for number in range(asked.rounds):
            for name in list(trees)[:: 1 if number % 2 == 0 else -1]:
                one = {} if asked.only == "reading" else training(trees[name], asked.updates, folder)
                found[name].append(one if photos is None else one | reading(trees[name], photos, folder))
    ratios = {}
    for what in found["now"][0]:
        pairs = [(one[what], other[what]) for one, other in zip(found["before"], found["now"], strict=True)]
        ratios[what] = [before / now for before, now in pairs]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        print(f"{what:22} before {medians[0]:.3f} s, now {medians[1]:.3f} s, "
              f"before / now {statistics.median(ratios[what]):.3f} ({min(ratios[what]):.3f} to "
              f"{max(ratios[what]):.3f})")  # fmt: skip
    if asked.out:
        found_here = environment("digits, photos-250", sys.argv, "cpu", "")
        commits = {name: _commit(tree) for name, tree in trees.items()}
        content = {
            "seconds": found,
            "ratios": ratios,
            "commits": commits,
            "updates": asked.updates,
        }
        asked.out.write_text(json.dumps({"environment": found_here, **content}, indent=1) + "\n")


def _commit(tree: Path) -> str:
    """The commit that is checked out in ``tree``."""
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
