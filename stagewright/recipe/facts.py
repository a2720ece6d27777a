"""Facts about data, machine and weights from which auto chooses a recipe, and conclusions from the names of classes.

The functions are pure and do not use torch. :mod:`stagewright.preflight.survey` collects the facts,
:mod:`stagewright.recipe.auto` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_CHARACTERS = ("digits", "torchvision:MNIST", "torchvision:SVHN", "torchvision:USPS", "torchvision:KMNIST")
_DIGIT = re.compile(r"(?:digit|number|num|no)?[\W_]*(\d)(?:[\W_]+[a-z]+)?", re.IGNORECASE)
_MIN_DIGITS = 8
"""Smallest number of different digits among the class names that shows that the images are digits; 0 and 1 alone often mean
no and yes."""
_MIN_LETTERS = 10


@dataclass(frozen=True, slots=True)
class UserChoices:
    """What the user has decided; auto chooses the fields that are None."""

    model: str | None = None
    weights: str | None = None
    """``none``, ``default``, or a file or run, as in a recipe."""
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The initial weights of the network."""

    value: str | None
    """The value of ``model.weights``; None: random weights."""
    model: str | None
    """The network that the weights belong to; None if it is unknown or the weights are random."""
    why: str
    """How the weights were found, or why there are none; a clause of a sentence."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The network's options, if it is one of stagewright's networks."""


NO_WEIGHTS = Weights(None, None, "nobody has looked for pretrained ones")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts from which auto chooses. Counts are numbers of training images; sizes are in pixels."""

    source: str
    """DATA as the user has given it."""
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    smallest: int
    """Number of images of the smallest class; ``median`` and ``largest`` likewise."""
    median: int
    largest: int
    side: int
    """Median of the images' shorter sides."""
    longest: int
    """The longest side of any image."""
    one_size: bool
    """Whether all images have the same width and height."""
    gray: float = 0.0
    """Share of images without colour, in a sample."""
    groups: int = 0
    """Number of groups whose images stay in one split; 0: no groups are known."""
    device: Literal["cpu", "cuda"] = "cpu"
    cores: int = 2
    memory_gb: float = 16.0
    """Memory of the device in GiB; for a CPU that of the machine."""
    weights: Weights = NO_WEIGHTS
    linear_head: bool = True
    """Whether the head of the network that would be trained from these weights is one linear layer."""
    choices: UserChoices = UserChoices()


def why_not_flip(facts: Facts) -> str | None:
    """Returns why a mirrored image may have another meaning, as a clause of a sentence, or None if neither DATA nor the class
    names show that."""
    if facts.source in _CHARACTERS:
        return "the pictures show characters, which are others when mirrored"
    matches = [_DIGIT.fullmatch(name) for name in facts.classes]
    digits = {match[1] for match in matches if match}
    if all(matches) and len(digits) >= _MIN_DIGITS:
        return "the classes are digits, which are none when mirrored"
    if len(facts.classes) >= _MIN_LETTERS and all(len(name) == 1 and name.isalpha() for name in facts.classes):
        return "the classes are single letters, which are others when mirrored"
    words = {" ".join(re.findall(r"[a-z]+|\d+", name.lower())): name for name in facts.classes}
    turned = sorted(
        name
        for text, name in words.items()
        if re.search(r"\bleft\b", text) and re.sub(r"\bleft\b", "right", text) in words
    )
    return f"the classes tell left from right ({turned[0]})" if turned else None


def shows_symbols(facts: Facts, small: int) -> bool:
    """Whether the images have sides of at most ``small`` pixels and show digits, letters or other symbols without colour."""
    return facts.longest <= small and (facts.gray > 0.9 or why_not_flip(facts) is not None)
