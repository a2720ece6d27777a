"""What a worker leaves for the launcher: its exit code and a sentence, in a small JSON file.

torch's elastic agent takes every exit code but 0 for a failure and ends the other workers. So a worker of our launcher ends
with 0 and leaves its own code in the folder that the environment variable ``STAGEWRIGHT_VERDICTS`` names. Under plain
``torchrun`` the variable is missing, and a worker ends with its own code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.system.signals import EXIT_LOST, EXIT_STOPPED

VERDICTS = "STAGEWRIGHT_VERDICTS"
"""The environment variable with the folder for the verdicts of one launch."""
EXIT_BAD_INPUT = 2
"""Exit code of an error that the user can correct; starting again does not help."""


@dataclass(frozen=True)
class Verdict:
    """How a worker says that it ended: its exit code (0 to 255), and a text for people, which may be empty."""

    code: int
    text: str = ""


def is_launched() -> bool:
    """Returns whether our launcher has started this process."""
    return bool(os.environ.get(VERDICTS)) and "RANK" in os.environ


def leave_verdict(code: int, text: str = "") -> int:
    """Leaves ``code`` (0 to 255) and ``text`` for the launcher; returns the code with which this process is to end.

    That is 0 if the launcher can read the verdict. It is ``code`` without the launcher, and if the verdict cannot be written.
    The launcher prints ``text`` once for all ranks that leave the same one; a worker that has printed it leaves none.
    """
    folder, rank = os.environ.get(VERDICTS), os.environ.get("RANK")
    if not folder or rank is None:
        return code
    target = _path(Path(folder), int(rank))
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"code": code, "text": text}), encoding="utf-8")
        os.replace(temporary, target)
    except OSError:
        return code
    return 0


def read_verdict(folder: Path, rank: int) -> Verdict | None:
    """Returns the verdict that ``rank`` has left in ``folder``, or None if there is none that can be read."""
    try:
        content = json.loads(_path(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    code, text = content.get("code"), content.get("text", "")
    if type(code) is not int or not 0 <= code <= 255 or not isinstance(text, str):
        return None
    return Verdict(code, text)


def combined_code(codes: Sequence[int | None], passed: int | None = None) -> int:
    """Returns the launcher's exit code for the codes of its ranks; None stands for a rank that was lost.

    2 if a rank met bad input, because of which the others end; 69 if a rank was lost or says so; 75 if a rank was stopped and
    all others were too or had finished; 0 if all have finished; else 1. ``passed`` is the number of the signal that the launcher
    passed on: ranks that it ended before they could save count as stopped, and if no rank has saved, the code is 128 and
    ``passed``.
    """
    found = {EXIT_LOST if code is None else code for code in codes}
    for code in (EXIT_BAD_INPUT, EXIT_LOST):
        if code in found:
            return code
    if found <= {0}:
        return 0
    ended = None if passed is None else 128 + passed
    if found <= {0, EXIT_STOPPED, ended}:
        return EXIT_STOPPED if EXIT_STOPPED in found else 128 + (passed or 0)
    return 1


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"
