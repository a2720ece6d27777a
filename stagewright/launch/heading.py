"""The lines at the top of each file: which command made it."""

from __future__ import annotations

MARK = "# Made by: "
"""What the line with the command begins with; a file with it may be written again."""


def heading(command: str, *more: str) -> str:
    """Returns comment lines: the command that made the file, and ``more``."""
    return "".join(f"{line}\n" for line in (f"{MARK}{one_line(command)}", *(f"# {text}" for text in more)))


def one_line(command: str) -> str:
    """Returns ``command`` without line ends, which would end a comment."""
    return " ".join(command.split())
