"""The account of DATA: how many images were read, what was left out and what could not be read, with reasons and examples.

Every command that reads images shows it, in the same words and with the same keys in JSON.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from stagewright.text import counted

_MOST_REASONS = 20
_SAID = 5
"""Maximum number of reasons in a sentence."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Files, folders or rows that are not used for one reason."""

    reason: str
    count: int
    example: str
    """The first of them."""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the files and rows of DATA."""

    read: int
    """Number of readable images."""
    left_out: tuple[Omission, ...] = ()
    """What is no image of DATA: hidden and foreign files, other files, folders that cannot be opened, rows without a file."""
    unreadable: tuple[Omission, ...] = ()
    """Images that cannot be read."""

    @property
    def num_left_out(self) -> int:
        """Number of files, folders and rows that are left out."""
        return sum(one.count for one in self.left_out)

    @property
    def num_unreadable(self) -> int:
        """Number of images that cannot be read."""
        return sum(one.count for one in self.unreadable)

    def lines(self) -> list[str]:
        """Returns at most two sentences: what was left out, and what could not be read."""
        lines = []
        if self.left_out:
            said = [f"{one.reason} {one.count:,} ({one.example})" for one in self.left_out[:_SAID]]
            lines.append(f"left out {self.num_left_out:,}: {'; '.join(said)}{self._rest(self.left_out)}")
        if self.unreadable:
            said = [
                f"{one.example} ({one.reason}{f'; {one.count - 1:,} more' if one.count > 1 else ''})"
                for one in self.unreadable[:_SAID]
            ]
            what = counted(self.num_unreadable, "picture")
            lines.append(f"excluded {what} that cannot be read: {', '.join(said)}{self._rest(self.unreadable)}")
        return lines

    def _rest(self, omissions: tuple[Omission, ...]) -> str:
        rest = sum(one.count for one in omissions[_SAID:])
        return f"; {rest:,} for other reasons" if rest else ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the account as plain data for JSON: ``read``, and lists of {reason, count, example}."""
        lists = {"left_out": self.left_out, "unreadable": self.unreadable}
        return {"read": self.read, **{name: [asdict(one) for one in ones] for name, ones in lists.items()}}


def not_a_picture(path: str) -> str:
    """Returns the reason for a file that is no image by its content nor by its name."""
    return f"not a picture, {os.path.splitext(path)[1].lower() or 'without extension'}"


def by_reason(items: Iterable[tuple[str, str]]) -> tuple[Omission, ...]:
    """Groups ``items``, pairs of (example, reason), by reason: the most frequent first, at most 20; the rest become one."""
    found: dict[str, tuple[int, str]] = {}
    for example, reason in items:
        count, first = found.get(reason, (0, example))
        found[reason] = count + 1, first
    groups = [Omission(reason, count, example) for reason, (count, example) in found.items()]
    groups.sort(key=lambda one: -one.count)
    rest = groups[_MOST_REASONS:]
    if rest:
        groups[_MOST_REASONS:] = [Omission("other reasons", sum(one.count for one in rest), rest[0].example)]
    return tuple(groups)
