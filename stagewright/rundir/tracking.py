"""The command that sends a run to a tracker, and the sentence that gives it where not all was sent."""

from __future__ import annotations

import shlex
from pathlib import Path


def send(run: Path, tracker: str) -> str:
    """Returns the command that sends the rest of ``run``."""
    return f"stagewright track {shlex.quote(str(run))} --to {tracker}"


def not_all_sent(run: Path, tracker: str) -> str:
    """Returns the sentence that says how what is left of ``run`` is sent."""
    return f"{tracker}: not all of {run} was sent; to send the rest: {send(run, tracker)}"
