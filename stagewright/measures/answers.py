"""The answers of a model to images with known classes, and the units over which they vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to N images that could be read. Images with the same group vary together; by default each for itself."""

    labels: Ints
    """(N,) true class of each image, 0 to ``num_classes`` - 1."""
    predicted: Ints
    """(N,) predicted class."""
    num_classes: int
    losses: Floats
    """(N,) cross-entropy of each image, in nats."""
    confidence: Floats
    """(N,) probability of the predicted class, in [0, 1]."""
    probabilities: NDArray[np.float32] | None = None
    """(N, ``num_classes``); None where they were not kept."""
    groups: Ints | None = None
    """(N,) number of each image's group, from 0; None where the data set has no groups."""

    def __post_init__(self) -> None:
        shapes = {len(self.predicted), len(self.losses), len(self.confidence), len(self.labels)}
        shapes |= {len(one) for one in (self.probabilities, self.groups) if one is not None}
        if len(shapes) > 1:
            raise ValueError(f"columns of answers have the lengths {sorted(shapes)}; they must be equal")
        if self.probabilities is not None and self.probabilities.shape[1] != self.num_classes:
            raise ValueError(f"probabilities of {self.probabilities.shape[1]} classes, not of {self.num_classes}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the predicted class is the true one."""
        return self.labels == self.predicted

    @cached_property
    def units(self) -> Ints:
        """(N,) number of the unit of each image, from 0: its group, or where there are no groups the image itself."""
        if self.groups is None:
            return np.arange(len(self))
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def num_units(self) -> int:
        """How many units there are."""
        return int(self.units.max(initial=-1)) + 1


def group_numbers(names: Sequence[str | None] | NDArray[np.object_] | None) -> Ints | None:
    """Returns the number of each image's group (N,), from 0; an image without a group is one of its own. None for None, and
    where no image has a group."""
    if names is None or all(name is None for name in names):
        return None
    known: dict[object, int] = {}
    return np.array(
        [known.setdefault(at if name is None else name, len(known)) for at, name in enumerate(names)], np.int64
    )
