"""Parts of events (:mod:`stagewright.rundir.event_kinds`): results, weights, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

IF_KNOWN: Mapping[str, object] = {"if_known": True}
"""Marks a field that is written unless it is None."""


@dataclass(frozen=True, kw_only=True)
class ChosenWeights:
    """The weights that became the model."""

    step: int
    """Number of finished updates that they come from."""
    weights: str
    """``raw``, ``ema``, ``swa``, ``head`` (the head alone), or a mixture such as ``0.75 ema + 0.25 head``."""


@dataclass(frozen=True, kw_only=True)
class ScoreRange:
    """How sure the top-1 of the chosen weights on a split is."""

    images: int
    """Images that could be read."""
    low: float
    """Lower end of its 95 % interval in percent: Wilson's, or over groups where the data set has them."""
    high: float
    """Upper end of that interval."""


@dataclass(frozen=True, kw_only=True)
class AgainstHead:
    """Top-1 of the chosen weights minus that of the head alone, on the same images of a split."""

    points: float
    """The difference in percentage points; positive where the chosen weights are better."""
    low: float
    """Lower end of its 95 % interval for paired proportions, with images as units."""
    high: float
    """Upper end of that interval."""
    gained: int
    """Images that only the chosen weights answer correctly."""
    lost: int
    """Images that only the head alone answers correctly."""
    images: int
    """Images that could be read."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one set of weights answered a split."""

    loss: float
    """Mean cross-entropy over the images that could be read; NaN where there is none."""
    top1: float
    """Percentage of images whose most probable class is the right one, in [0, 100]."""
    top5: float | None
    """Percentage of images whose class is among the five most probable ones; None for five classes and fewer."""
    images: int
    """Number of images that could be read."""
    unreadable: int
    """Number of images that could not be read."""
    metric: float | None = field(default=None, metadata=IF_KNOWN)
    """The value of the recipe's ``eval.metric``; None where that is top-1, and where it is not defined."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A checkpoint that a resume could not use."""

    name: str
    """Its folder, such as ``step_000200``."""
    reason: str
    """What is wrong with it."""
