"""Facts: what auto knows of data, machine and weights when it chooses a recipe, and what follows from names alone.

Pure and without torch. :mod:`stagewright.preflight.survey` gathers facts, :mod:`stagewright.recipe.auto` decides on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_CHARACTERS = ("digits", "torchvision:MNIST", "torchvision:SVHN", "torchvision:USPS", "torchvision:KMNIST")
_DIGIT = re.compile(r"(?:digit|number|num|no)?[\W_]*(\d)(?:[\W_]+[a-z]+)?", re.IGNORECASE)
_MOST_DIGITS = 8
"""So many different digits as classes are no accident; 0 and 1 alone often only say no and yes."""
_LETTERS = 10


@dataclass(frozen=True, slots=True)
class UserChoices:
    """What the person has decided already; None is left to auto."""

    model: str | None = None
    weights: str | None = None
    """``none``, ``default``, or a file or run, as in a recipe."""
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """What the network starts from."""

    value: str | None
    """As in ``model.weights``; None: random weights."""
    model: str | None
    """The network that they belong to; None where that is not known, or they are random."""
    why: str
    """How they were found, or why there are none: a clause."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the network, where it is one of stagewright's own."""


NO_WEIGHTS = Weights(None, None, "nobody has looked for pretrained ones")


@dataclass(frozen=True, slots=True)
class Facts:
    """What auto looks at. Counts are of training pictures, sizes in pixels."""

    source: str
    """DATA as it was given."""
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    smallest: int
    """Pictures of the rarest class; ``median`` and ``largest`` likewise."""
    median: int
    largest: int
    side: int
    """Median of the pictures' shorter sides."""
    longest: int
    """The longest side of any picture."""
    one_size: bool
    """Whether all pictures have the same width and height."""
    gray: float = 0.0
    """Share of pictures without colour, in a sample."""
    groups: int = 0
    """Groups that never straddle a split; 0: none are known."""
    device: Literal["cpu", "cuda"] = "cpu"
    cores: int = 2
    memory_gb: float = 16.0
    """Of the device; of the machine for a CPU."""
    weights: Weights = NO_WEIGHTS
    asked: UserChoices = UserChoices()


def why_not_flip(facts: Facts) -> str | None:
    """Why a mirrored picture may mean something else, as a clause; None where neither DATA nor the classes' names say so."""
    if facts.source in _CHARACTERS:
        return "the pictures show characters, which are others when mirrored"
    matches = [_DIGIT.fullmatch(name) for name in facts.classes]
    digits = {match[1] for match in matches if match}
    if all(matches) and len(digits) >= _MOST_DIGITS:
        return "the classes are digits, which are none when mirrored"
    if len(facts.classes) >= _LETTERS and all(len(name) == 1 and name.isalpha() for name in facts.classes):
        return "the classes are single letters, which are others when mirrored"
    words = {" ".join(re.findall(r"[a-z]+|\d+", name.lower())): name for name in facts.classes}
    turned = sorted(
        name
        for text, name in words.items()
        if re.search(r"\bleft\b", text) and re.sub(r"\bleft\b", "right", text) in words
    )
    return f"the classes tell left from right ({turned[0]})" if turned else None


def shows_symbols(facts: Facts, small: int) -> bool:
    """Whether the pictures are at most ``small`` pixels long and show digits, letters or other figures without colour."""
    return facts.longest <= small and (facts.gray > 0.9 or why_not_flip(facts) is not None)
