"""Detects that too many images of a run cannot be read, so that a run stops if its data is gone.

Otherwise it would go on training on masked images. The decision is a pure function of the number of unreadable images of each
update, which the loader reports.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from stagewright.plan.plan import Plan


@dataclass
class ReadWatch:
    """Counts unreadable images over a window of updates."""

    share: float
    """The run stops if more than this share, in [0, 1], of the images of a window is unreadable."""
    window: int
    """Number of updates in a window."""
    recent: deque[tuple[int, int, int]] = field(init=False)
    """(update, unreadable images, images) of the last updates, the oldest first."""

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.window)

    @classmethod
    def for_plan(cls, plan: Plan) -> ReadWatch:
        """Makes the watch of a plan: its window is the guard's, or the length of the run if that is shorter."""
        return cls(plan.recipe.data.max_unreadable, min(plan.recipe.guard.window, plan.total_steps))

    def missing_images(self) -> tuple[int, int, str]:
        """Returns unreadable images, all images and the range of steps in words, for the present window."""
        first, last = self.recent[0][0] + 1, self.recent[-1][0] + 1
        where = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
        return sum(count for _, count, _ in self.recent), sum(of for _, _, of in self.recent), where

    def is_gone(self, unreadable: int, images: int) -> bool:
        """Returns whether too many of the ``images`` of a split are unreadable; one is too many only if it is the only one."""
        return unreadable == images > 0 or unreadable > max(self.share * images, 1)

    def check(self, update: int, unreadable: int, images: int) -> int | None:
        """Counts ``update``, which is not carried out yet, and returns where the data began to be missing, or None.

        The data counts as gone if all ``images`` of this update are unreadable, or too many of the window. The result is then the
        first update of the window in which more than ``share`` of the images are unreadable, or an earlier one if some are in
        each update from there on: a disk or a store that goes away takes few images of its first update.
        """
        while self.recent and self.recent[-1][0] >= update:  # after a rollback
            self.recent.pop()
        self.recent.append((update, unreadable, images))
        missing = sum(count for _, count, _ in self.recent)
        gone = 0 < images == unreadable and self.share < 1.0
        if not gone and missing <= self.share * images * self.window:
            return None
        first = next((one for one, count, of in self.recent if count > self.share * of), update)
        for one, count, _ in reversed(self.recent):
            if one < first:
                if not count:
                    break
                first = one
        return first
