"""What a run says it will take, against what it takes; and how soon a start shows its first lines.

Each case is a whole ``stagewright train`` in a process of its own, from its start to the report. "told" is the time in the line
"It should take about ...". The ETA of later lines is added to the time that had passed, and given as a share of what was taken:
of the first ETA and of the one nearest to the middle of the run. "first line" is the first text of the command, "first progress"
the first line of steps or results.
With ``--earlier CHECKOUT`` the starts of an earlier version are timed in turns with this one's; both end at their first progress.

    python benchmarks/time_told.py --sets SETS --weights mobilenet_v2-imagenet.pth --rounds 3 --out results/time-told-cpu.json
    python benchmarks/time_told.py --sets SETS --weights mobilenet_v2-imagenet.pth --starts --earlier ../before --rounds 7

SETS is a folder with ``nette`` and ``cifar`` (folders with train and val or test) and ``breeds.csv`` (a table). The machine must
have nothing else to do: the time told is measured at the start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent
CASES = {
    "auto, photographs": "{sets}/nette --weights {weights}",
    "auto, table of cats": "{sets}/breeds.csv --weights {weights}",
    "finetune, small pictures": "{sets}/cifar -r finetune --model mobilenet_v2 --weights {weights} --img-size 96 --epochs 4",
    "quick, small pictures": "{sets}/cifar -r quick --epochs 6",
    "progressive, photographs": "{sets}/nette -r progressive --model resnet18 --epochs 3",
    "all layers, photographs": "{sets}/nette -r standard --model mobilenet_v2 --img-size 128 --epochs 3",
}
_PROGRESS = re.compile(r"^stage \d+/\d+ |^ *\d+\.\d\d  \S|^epoch +\d|step +\d+/\d+")
_ETA = re.compile(r"(?:ETA |  )((?:[\d.,]+ (?:s|min|h) ?)+)$")


@dataclass(frozen=True)
class Start:
    """Seconds since the process began; ``told`` is None where the command said no time."""

    told: float | None
    first_line: float
    first_progress: float
    taken: float
    code: int
    etas: tuple[tuple[float, float], ...] = ()
    """Seconds passed and seconds left, as later lines said."""

    def expected(self, share: float) -> float | None:
        """What the ETA nearest to ``share`` of the run let expect, as a share of what was taken; None without one."""
        if not self.etas:
            return None
        passed, left = min(self.etas, key=lambda one: abs(one[0] - share * self.taken))
        return (passed + left) / self.taken


def seconds_of(text: str) -> float:
    """Returns the seconds of a span such as ``2 min 1 s``."""
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(
        float(number.replace(",", "")) * units[unit] for number, unit in re.findall(r"([\d.,]+) (s|min|h)\b", text)
    )


def start(words: str, checkout: Path, *, until_progress: bool) -> Start:
    """Runs ``stagewright train WORDS`` with the code of ``checkout``."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    told = first_line = first_progress = None
    with tempfile.TemporaryDirectory(prefix="told-") as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "stagewright", "train", *shlex.split(words), "--out", f"{folder}/run"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
        assert process.stdout is not None
        lines: list[str] = []
        etas: list[tuple[float, float]] = []
        for line in process.stdout:
            passed = time.perf_counter() - began
            lines.append(line)
            if first_line is None and line.strip():
                first_line = passed
            if match := re.search(r"should take about (.*?) on this", line):
                told = seconds_of(match[1])
            if found := _ETA.search(line):
                etas.append((passed, seconds_of(found[1])))
            if first_progress is None and _PROGRESS.search(line):
                first_progress = passed
                if until_progress:
                    process.kill()
        code = process.wait()
        taken = time.perf_counter() - began
    if code and not until_progress:
        sys.stderr.write("".join(lines[-15:]))
    return Start(told, first_line or taken, first_progress or taken, taken, code, tuple(etas))


def whole_runs(cases: dict[str, str], rounds: int) -> list[dict[str, object]]:
    """Returns a row for each case: what was told and taken in each round."""
    runs: dict[str, list[Start]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, words in cases.items():
            found = start(words, HERE, until_progress=False)
            runs[name].append(found)
            told = "-" if found.told is None else f"{found.told / found.taken:.2f}"
            first, middle = (f"{found.expected(share) or 0:.2f}" for share in (0.0, 0.5))
            print(
                f"{name:28} took {found.taken:6.1f} s  told {told}  by ETA {first} first, {middle} in the middle  first line "
                f"{found.first_line:4.1f} s  first progress {found.first_progress:5.1f} s  exit {found.code}",
                flush=True,
            )
    return [
        {
            "case": name,
            "taken_seconds": [round(one.taken, 1) for one in found],
            "told_by_taken": [round(one.told / one.taken, 2) for one in found if one.told],
            "first_eta_by_taken": [round(value, 2) for one in found if (value := one.expected(0.0))],
            "middle_eta_by_taken": [round(value, 2) for one in found if (value := one.expected(0.5))],
        }
        for name, found in runs.items()
    ]


def starts(cases: dict[str, str], rounds: int, checkouts: dict[str, Path]) -> list[dict[str, object]]:
    """Returns a row for each case: seconds to the first lines of each checkout, in turns."""
    rows: list[dict[str, object]] = []
    for name, words in cases.items():
        found: dict[str, list[Start]] = {which: [] for which in checkouts}
        for turn in range(rounds + 1):
            for which, folder in checkouts.items():
                one = start(words, folder, until_progress=True)
                if turn:  # the first one fills the caches
                    found[which].append(one)
        row: dict[str, object] = {"case": name}
        for which, those in found.items():
            row[f"{which}_first_line"] = _median([one.first_line for one in those])
            row[f"{which}_first_progress"] = _median([one.first_progress for one in those])
        print(row, flush=True)
        rows.append(row)
    return rows


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="text that the names of the cases have in them")
    parser.add_argument("--starts", action="store_true", help="time the first lines alone")
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier version, for --starts")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    places = {"sets": args.sets.resolve(), "weights": args.weights.resolve()}
    cases = {name: words.format(**places) for name, words in CASES.items() if (args.only or "") in name}
    if args.starts:
        checkouts = {"now": HERE} | ({"earlier": args.earlier.resolve()} if args.earlier else {})
        rows = starts(cases, args.rounds, checkouts)
    else:
        rows = whole_runs(cases, args.rounds)
    if args.out:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
        about = {
            "device": f"CPU, {platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "command": shlex.join(["python", "benchmarks/time_told.py", *sys.argv[1:]]),
        }
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        kept["starts" if args.starts else "whole runs"] = {"about": about, "rows": rows}
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
