"""The names of objects in a mirror: those of the run directory, and what a mirror has in addition.

A state is named by its content, ``checkpoints/step_000500/state-0123456789abcdef.pt`` with the first digits of its SHA-256. So
a process that was taken over in the middle of an upload, and wakes up later, cannot replace the state of another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from stagewright.rundir.checkpoint import name_of

OWNER = "owner.json"
RECORD = "mirror.json"
"""In the run directory alone: which mirror it has, and what is missing there."""
LAST, BEST = "checkpoints/last.json", "checkpoints/best.json"

START = ("manifest.parquet", "recipe.yaml", "env.json", "excluded.csv", "weights.json", "costs.json", "plan.json")
"""What a run has before its first step. plan.json comes last: a mirror with a plan has all of them."""
LOGS = ("steps.csv", "metrics.csv", "timing.csv", "events.jsonl")
"""What a checkpoint contains too, from where a fetched run has them."""
_OTHERS = ("log.txt", "report.html", "summary.json")
_FOLDERS = ("lr-find", "fed", "evaluations", "plots", "interim", "model")
_PART = r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}"
_SMALL = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*START, *LOGS, *_OTHERS)))}|(?:{'|'.join(_FOLDERS)})(?:/{_PART}){{1,4}})"
)
_CHECKPOINT = re.compile(r"checkpoints/step_(\d{6,15})/(meta\.json|state-[0-9a-f]{16}\.pt)")


def meta_name(step: int) -> str:
    """Returns the name of the meta.json of the checkpoint of ``step``."""
    return f"checkpoints/{name_of(step)}/meta.json"


def state_name(step: int, sha256: str) -> str:
    """Returns the name of the state of ``step`` whose SHA-256 is ``sha256``, in hexadecimal."""
    return f"checkpoints/{name_of(step)}/state-{sha256[:16]}.pt"


def is_small(name: str) -> bool:
    """Returns whether ``name`` is that of a file of the run outside of its checkpoints; no other may be written from a mirror,
    which may come from anyone."""
    return _SMALL.fullmatch(name) is not None


def checkpoint_parts(names: Iterable[str]) -> dict[int, set[str]]:
    """Returns {step: names of its objects} of all checkpoints among ``names``, complete or not."""
    found: dict[int, set[str]] = {}
    for name in names:
        if (match := _CHECKPOINT.fullmatch(name)) is not None and f"checkpoints/{name_of(int(match[1]))}/" in name:
            found.setdefault(int(match[1]), set()).add(name)
    return found


def complete_steps(names: Iterable[str]) -> list[int]:
    """Returns the steps of the checkpoints whose meta.json is among ``names``, the newest first: only those may be trusted."""
    return sorted((step for step, parts in checkpoint_parts(names).items() if meta_name(step) in parts), reverse=True)


def small_files(root: Path) -> list[str]:
    """Returns the names of the files of the run in ``root`` that are mirrored, without its checkpoints, in the order of upload:
    the plan after the other files of the start, the model's description after its weights, and the summary last."""
    names = [name for name in (*START, *LOGS, *_OTHERS) if (root / name).is_file() and not (root / name).is_symlink()]
    for folder in _FOLDERS:
        if (root / folder).is_dir() and not (root / folder).is_symlink():
            paths = sorted(path for path in (root / folder).rglob("*") if path.is_file() and not path.is_symlink())
            names += [name for path in paths if is_small(name := path.relative_to(root).as_posix())]
    return sorted(names, key=_rank)


def _rank(name: str) -> tuple[int, str]:
    if name in START:
        return START.index(name), name
    last = {"model/model.json": 98, "summary.json": 99}
    return last.get(name, 50 + (name.startswith("model/"))), name
