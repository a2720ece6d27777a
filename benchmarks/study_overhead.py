"""What a study costs beside a shell loop: ``study run -j 1`` against the same 6 runs by ``stagewright train``, in turns.

Both compute with the same number of threads and write the same runs. The loop pays for a start of Python and torch at each run,
the study once; the study checks every plan and network before its first run, and keeps a store.

    python benchmarks/study_overhead.py --data cifar/ --work /tmp/overhead --out benchmarks/results/study-overhead-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent
STUDY = """\
data: {data}
recipe: quick
equal: {{steps: {steps}}}
seeds: [0, 1, 2]
set: {{data.val: 0.1}}
grid:
  lr.peak: [0.05, 0.1]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of small pictures")
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    study = args.work / "overhead.yaml"
    study.write_text(STUDY.format(data=args.data.resolve(), steps=args.steps))
    environment = os.environ | {"PYTHONPATH": str(HERE), "STAGEWRIGHT_CACHE": str(args.work / "cache")}

    def timed(words: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "stagewright", *words], cwd=args.work, env=environment, check=True)
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {"study": [], "loop": []}
    commands: list[list[str]] = []
    for turn in range(args.rounds + 1):
        out = args.work / f"study-{turn}"
        words = ["study", "run", str(study), "--out", str(out), "-j", "1", "--threads", str(args.threads), "--quiet"]
        taken = timed(words)
        jobs = [json.loads(place.read_text()) for place in sorted((out / "jobs").glob("*.json"))]
        commands = [[word.replace(str(out / "runs"), f"loop-{turn}") for word in job["command"][1:]] for job in jobs]
        loop = sum(timed([*one, "--no-pages", "--quiet"]) for one in commands)
        if turn:  # the first turn fills the caches
            seconds["study"].append(taken)
            seconds["loop"].append(loop)
        print(f"study {taken:6.1f} s  loop {loop:6.1f} s  {taken / loop:.3f}", flush=True)
    ratio = statistics.median(one / other for one, other in zip(seconds["study"], seconds["loop"], strict=True))
    print(f"median of study / loop: {ratio:.3f}")
    if args.out:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
        content = {
            "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores, {args.threads} threads",
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "command": shlex.join(["python", "benchmarks/study_overhead.py", *sys.argv[1:]]),
            "runs": len(commands),
            "seconds": {name: [round(one, 1) for one in those] for name, those in seconds.items()},
            "study_by_loop": round(ratio, 3),
        }
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
