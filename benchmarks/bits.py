"""Bits: what tiny runs of every recipe leave behind, to compare one version of the code with another on the same machine.

    python benchmarks/bits.py before.json          writes the digests of the code at hand
    python benchmarks/bits.py after.json --against before.json

A change that should not change results (files moved, names changed, loops made faster) leaves every digest as it was. The runs
cover every shipped recipe, and a recipe with EMA and SWA, guard rollback, cached features and balanced sampling, as it is and
compiled. Exits with 1 where a digest differs. Bits of weights hold for one machine, number of threads and version of torch
alone: do not commit them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from storm import RECIPE, draw_pictures

FILES = ("model/weights.safetensors", "model/golden.safetensors", "steps.csv", "metrics.csv")


def stagewright(words: list[str], folder: Path, codes: tuple[int, ...] = (0,)) -> None:
    """Runs the command line of the code at hand."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "STAGEWRIGHT_OFFLINE": "1", "STAGEWRIGHT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-P", "-m", "stagewright", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-800:]}\n{done.stderr[-2000:]}")


def digests(run: Path) -> dict[str, str]:
    """The digests of a run's results, and of its plan."""
    found = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in FILES}
    summary = json.loads((run / "summary.json").read_text())
    guard = summary["guard"]
    return {**found, "plan": summary["plan_digest"], "guard": json.dumps(guard, sort_keys=True)}


def runs(folder: Path, compiled: bool) -> dict[str, dict[str, str]]:
    """Trains all of them below ``folder``."""
    from stagewright.recipe import recipes

    data, recipe = folder / "images", folder / "storm.yaml"
    draw_pictures(data)
    recipe.write_text(RECIPE)
    found = {}
    quiet = ["--no-pages", "--quiet", "--device", "cpu"]
    for name in [one for one in recipes.shipped() if one != "auto"]:
        out = folder / name
        stagewright(["train", str(data), "-r", name, "--tiny", "--out", str(out), *quiet], folder)
        found[name] = digests(out)
        print(name, flush=True)
    out = folder / "storm"
    stagewright(["train", str(data), "-r", str(recipe), "--out", str(out), *quiet], folder)
    found["storm"] = digests(out)
    if not json.loads((out / "summary.json").read_text())["guard"]["rollbacks"]:
        raise SystemExit("the guard had nothing to do in the run that should show its work")
    digits = folder / "digits"
    extra = ["--epochs", "40st", "--set", "eval.every=20st", "--out", str(digits)]
    stagewright(["train", "digits", "-r", "quick", *extra, *quiet], folder)
    found["digits"] = digests(digits)
    if compiled:
        out = folder / "compiled"
        words = ["train", str(data), "-r", str(recipe), "--set", "compile=true", "--epochs", "12st", "--out", str(out)]
        stagewright([*words, *quiet], folder)
        found["compiled"] = digests(out)
    return found


def main() -> int:
    """Parses, trains, writes and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument(
        "--no-compiled", action="store_true", help="leave out the compiled run, which needs a C++ compiler"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stagewright-bits-") as folder:
        found = runs(Path(folder).resolve(), not asked.no_compiled)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.against is None:
        return 0
    before, wrong = json.loads(asked.against.read_text()), 0
    for name in sorted(before | found):
        one, other = before.get(name, {}), found.get(name, {})
        for key in sorted(one | other):
            if one.get(key) != other.get(key):
                wrong += 1
                print(f"{name}: {key} differs: {one.get(key)} and {other.get(key)}")
    print(f"{len(found)} runs, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
