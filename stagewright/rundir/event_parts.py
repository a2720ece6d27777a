"""What a finish says of its weights, within events (:mod:`stagewright.rundir.event_kinds`)."""

from __future__ import annotations

from dataclasses import dataclass


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
