"""What a new user does in the first hours, typed as documented, on a set of photographs; each answer is kept to be looked at.

Every command runs in a terminal of 80 columns (a pseudo-terminal, with colour), in a folder of its own; what it shows is written
to ``NN-name.txt`` without colour codes. Pages and tables stay where the commands put them. The script ends with 1 where a
command ends otherwise than it should, where a line is wider than the terminal, or where a traceback is shown; what is pleasant
to read, a person must say.

    python benchmarks/new_user.py photos/ --weights mobilenet_v2-imagenet.pth --work /tmp/user
    python benchmarks/new_user.py pets/ --label '(?P<label>[a-z]+)[.][0-9]+' --weights mobilenet_v2-imagenet.pth --work /tmp/user

DATA is a folder of class folders or a table; with ``--label`` a flat folder, whose file names the pattern reads.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import sys
import termios
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

COLUMNS = 80
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[()][A-Z0-9]")


@dataclass
class User:
    """Types commands in ``folder`` and keeps what they show."""

    folder: Path
    count: int = 0
    wrong: int = 0

    def types(self, words: str, *, code: int = 0, kill_after: float | None = None) -> str:
        """Runs ``stagewright WORDS``, or with ``kill_after`` kills it (kill -9) after so many seconds; returns what it showed."""
        self.count += 1
        begun = time.perf_counter()
        found, ended = _in_terminal([sys.executable, "-m", "stagewright", *shlex.split(words)], self.folder, kill_after)
        seconds = time.perf_counter() - begun
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(words.split()[:3]).lower()).strip("-")
        (self.folder / f"{self.count:02d}-{name}.txt").write_text(f"$ stagewright {words}\n{found}")
        problems = []
        if kill_after is None and ended != code:
            problems.append(f"ended with {ended}, not {code}")
        if "Traceback" in found:
            problems.append("shows a traceback")
        # A command is not folded: it must be copied whole.
        lines = [line for line in found.splitlines() if not line.lstrip().startswith("stagewright ")]
        wide = [line for line in lines if len(line) > COLUMNS and "--json" not in words]
        if wide:
            problems.append(f"{len(wide)} lines wider than {COLUMNS}: {wide[0][:100]!r}")
        self.wrong += bool(problems)
        print(f"{self.count:3d} {seconds:6.1f} s  {words[:90]:90}  {'; '.join(problems) or 'ok'}", flush=True)
        return found


def _in_terminal(command: list[str], folder: Path, kill_after: float | None) -> tuple[str, int]:
    """Returns what the command left on a screen that scrolls, line by line, and its exit code."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), STAGEWRIGHT_CACHE=str(folder / "cache"))
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    shown, begun = bytearray(), time.monotonic()
    while True:
        if kill_after is not None and time.monotonic() - begun > kill_after:
            os.kill(process, signal.SIGKILL)
            kill_after = None
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return _screen(shown.decode("utf-8", "replace")), os.waitstatus_to_exitcode(status)


def _screen(text: str) -> str:
    """Returns the lines that stay: of a line that is drawn again and again, the last form."""
    lines = [""]
    for token in re.split(r"(\r\n|\n|\r|\x1b\[\d*A|\x1b\[\d*K|\x1b\[2K)", text):
        if token in ("\n", "\r\n"):
            lines.append("")
        elif token == "\r":
            lines[-1] = lines[-1] if lines[-1] == "" else "\0" + lines[-1]
        elif re.fullmatch(r"\x1b\[\d*A", token):
            up = int(token[2:-1] or 1)
            del lines[max(1, len(lines) - up) :]
        elif token.endswith("K") and token.startswith("\x1b"):
            lines[-1] = ""
        else:
            plain = _CODES.sub("", token)
            lines[-1] = plain if lines[-1].startswith("\0") and plain else lines[-1].removeprefix("\0") + plain
    return "\n".join(line.removeprefix("\0").rstrip() for line in lines) + "\n"


def uses(user: User, data: str, weights: Path, label: str | None, epochs: int) -> None:
    """Types everything, from the first look at ``data`` to the comparison of runs."""
    names = f" --set 'data.label={label}'" if label else ""
    tuned = f"-r finetune --model mobilenet_v2 --weights {weights} --img-size 128"
    user.types("--version")
    user.types("doctor")
    user.types("recipes")
    user.types(f"data inspect {data}{names}")
    user.types(f"data split {data}{names} --near together --test 0.25 --out photos.csv")
    user.types("data inspect photos.csv")
    user.types(f"data preview photos.csv {tuned} --html preview.html")
    user.types(f"plan photos.csv {tuned} --epochs {epochs}")
    user.types(f"train photos.csv {tuned} --epochs {epochs} --out runs/tuned")
    user.types(f"train photos.csv {tuned} --epochs {4 * epochs} --seed 2 --out runs/killed", kill_after=90)
    some = _pictures(user.folder / "photos.csv")
    user.types(f"predict runs/killed {some}")
    user.types("finish runs/killed")
    user.types("evaluate runs/killed")
    user.types("evaluate runs/tuned")
    user.types(f"evaluate runs/tuned {data}{names} --out answers.csv")
    user.types("evaluate runs/tuned --at precision=0.95")
    user.types(f"predict runs/tuned {some}")
    user.types(f"predict runs/tuned {some} --csv answers-new.csv")
    user.types(f"predict runs/tuned {some} --json")
    user.types("report runs/tuned --saliency")
    user.types("runs")
    user.types("runs --json")
    user.types("why runs/tuned runs/killed", code=1)
    user.types("compare runs/tuned runs/killed")
    user.types("compare runs/tuned runs/killed --format html")
    user.types("report runs/tuned runs/killed")
    user.types(f"train {data}{names} {tuned} --epochs 1 --folds 3 --out runs/folds")
    user.types("train phots.csv", code=2)
    user.types("train photos.csv --set epochz=3", code=2)


def _pictures(table: Path) -> str:
    """Returns four pictures of the test part, as words of a command."""
    with table.open(newline="") as file:
        rows = [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    return " ".join(f"'{table.parent / path}'" for path in islice(rows, 0, None, max(1, len(rows) // 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True, help="an empty folder")
    parser.add_argument("--label", help="pattern of the class in the names of a flat folder")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    user = User(args.work)
    uses(user, os.path.relpath(args.data, args.work), args.weights, args.label, args.epochs)
    pages = sorted(str(page.relative_to(args.work)) for page in args.work.rglob("*.html"))
    print(json.dumps({"commands": user.count, "wrong": user.wrong, "pages": pages}, indent=1))
    sys.exit(1 if user.wrong else 0)


if __name__ == "__main__":
    main()
