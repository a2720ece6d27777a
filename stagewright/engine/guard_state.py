"""The state of the divergence guard. It is saved in checkpoints, so that a resumed run continues with it."""

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
    """What the guard has observed and done.

    The fields from ``checked`` on are observations, which a rollback resets to those of the earlier state. All others are
    remedies, which a rollback keeps.
    """

    rollbacks: int = 0
    left_out: list[int] = field(default_factory=list)
    """Indices (from 0) of updates that are not carried out."""
    masked: list[int] = field(default_factory=list)
    """Manifest rows of images that are excluded from all batches."""
    lr_reductions: list[LrReduction] = field(default_factory=list)
    bad_image_search: tuple[int, int, int] | None = None
    """(update, at, culprit) of a pending search: once ``at`` updates are finished, the images of ``update`` are checked one by
    one. If each of them gives a finite loss, ``update`` is left out, and so is ``culprit``, the update before it that may have
    corrupted the weights."""
    micro_batch_size: int | None = None
    """Micro-batch size after running out of memory; None: as planned."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Rollbacks in progress: the fields of their events, which are written when the run reaches the step they go back to."""
    restores: int = 0
    """Number of rollbacks of any kind so far; it numbers their events."""

    checked: int = 0
    """Number of finished updates whose losses were checked."""
    stage: int = -1
    lowest: float | None = None
    """Lowest median loss of any window of the stage so far."""
    high_since: int | None = None
    """First update of the current series of windows with high losses; None if the last window was not high."""
    overflows: int = 0
    """Number of fp16 overflows in a row."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as plain containers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GuardState:
        """Makes a state from the result of :meth:`to_dict`."""
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
        """Returns the state after a rollback: the observations of ``before``, and the present remedies."""
        return replace(
            self,
            checked=before.checked,
            stage=before.stage,
            lowest=before.lowest,
            high_since=before.high_since,
            overflows=before.overflows,
        )

    def lr_factor(self, update: int) -> float:
        """Returns the factor, in (0, 1], for the plan's learning rate of ``update``."""
        return math.prod(one.factor for one in self.lr_reductions if one.first <= update < one.end)
