"""What the guard has done: part of a state, so that a resumed run knows it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class LrReduction:
    """The learning rate of updates ``first .. end - 1`` is multiplied by ``factor``."""

    first: int
    end: int
    factor: float


@dataclass
class GuardState:
    """What the guard remembers. ``remedies`` outlive a rollback, the rest is part of the state that is gone back to."""

    rollbacks: int = 0
    left_out: list[int] = field(default_factory=list)
    """Updates that are left out."""
    masked: list[int] = field(default_factory=list)
    """Manifest rows of pictures that are left out wherever they come."""
    lr_reductions: list[LrReduction] = field(default_factory=list)
    bad_image_search: tuple[int, int, int] | None = None
    """(update, at, culprit): once ``at`` updates are finished, the pictures of ``update`` are looked at one by one; where none
    of them is to blame, ``culprit`` is left out too, the update whose weights those pictures met."""
    micro_batch_size: int | None = None
    """Pictures at a time, since more of them did not fit into memory; None: as planned."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Rollbacks under way, as their events will say it once the step that they go back to is reached."""
    restores: int = 0
    """Rollbacks of any kind so far; numbers their events."""

    checked: int = 0
    """Finished updates that were looked at."""
    stage: int = -1
    lowest: float | None = None
    """Lowest median loss of a window of the stage."""
    high_since: int | None = None
    """First update of the windows that are high now."""
    overflows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GuardState:
        """The record that :meth:`to_dict` gave."""
        search = content["bad_image_search"]
        return cls(
            **{
                **content,
                "lr_reductions": [LrReduction(**one) for one in content["lr_reductions"]],
                "bad_image_search": None if search is None else tuple(search),
                "left_out": list(content["left_out"]),
                "masked": list(content["masked"]),
            }
        )

    def rewound(self, before: GuardState) -> GuardState:
        """The record after going back to a state that held ``before``: its observations, and the remedies of now."""
        return replace(
            self,
            checked=before.checked,
            stage=before.stage,
            lowest=before.lowest,
            high_since=before.high_since,
            overflows=before.overflows,
        )

    def lr_factor(self, update: int) -> float:
        """What the plan's learning rate of ``update`` is multiplied by."""
        return math.prod(
            reduce_lr.factor for reduce_lr in self.lr_reductions if reduce_lr.first <= update < reduce_lr.end
        )
