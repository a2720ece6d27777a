"""Whether enough of a run's pictures can be read: data that is gone must stop a run, not be trained on as black.

Pure: it sees how many pictures of each update could not be read, which the loader says anyway.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from stagewright.plan.plan import Plan


@dataclass
class ReadWatch:
    """What could not be read in the last updates."""

    share: float
    """Of the pictures of a window, in [0, 1]: more than this stops the run."""
    window: int
    """Updates."""
    recent: deque[tuple[int, int, int]] = field(init=False)
    """(update, unreadable, pictures), the oldest first."""

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.window)

    @classmethod
    def for_plan(cls, plan: Plan) -> ReadWatch:
        """The watch for a plan: its window is the guard's, or the whole of a shorter run."""
        return cls(plan.recipe.data.max_unreadable, min(plan.recipe.guard.window, plan.total_steps))

    def missing_images(self) -> tuple[int, int, str]:
        """How many pictures of how many are missing in the updates that were looked at, and which these are."""
        first, last = self.recent[0][0] + 1, self.recent[-1][0] + 1
        where = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
        return sum(count for _, count, _ in self.recent), sum(of for _, _, of in self.recent), where

    def is_gone(self, unreadable: int, pictures: int) -> bool:
        """Whether a part of the data counts as gone; a single picture of a small part does not make it so."""
        return unreadable == pictures > 0 or unreadable > max(self.share * pictures, 1)

    def check(self, update: int, unreadable: int, pictures: int) -> int | None:
        """The first update that pictures are missing from, where ``update``, not carried out yet, shows that the data is
        gone: not one of its ``pictures`` can be read, or too few of the window's. Else None."""
        while self.recent and self.recent[-1][0] >= update:  # the run has gone back
            self.recent.pop()
        self.recent.append((update, unreadable, pictures))
        missing = sum(count for _, count, _ in self.recent)
        gone = 0 < pictures == unreadable and self.share < 1.0
        if not gone and missing <= self.share * pictures * self.window:
            return None
        return next((one for one, count, of in self.recent if count > self.share * of), update)
