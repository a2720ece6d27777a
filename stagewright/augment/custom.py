"""A change of images of one's own, which ``augment.custom`` names: found when it is needed, and its answer checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagewright.errors import RecipeError
from stagewright.system.named_functions import load_function

_SIGNATURE = "a function of (images uint8 (B, 3, H, W) tensor, keys uint64 (B,) array) that gives images again"


def load_custom(name: str) -> Callable[..., Any]:
    """The function that ``name``, ``module:function``, stands for (:func:`stagewright.system.named_functions.load_function`)."""
    return load_function(name, "augment.custom", _SIGNATURE)


def check_custom(name: str, given: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    """RecipeError if what the function ``name`` gave, as (shape, dtype, device), is not what was ``wanted``."""
    if given != wanted:
        raise RecipeError(
            f"augment.custom: {name} gave {' '.join(map(str, given))}",
            f"what it was given: {' '.join(map(str, wanted))}",
            "let it return pictures of the same number, size, dtype and device as it gets",
        )
