"""Users' augmentation functions, which a recipe names as ``module:function``: imports them and checks their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagewright.errors import RecipeError
from stagewright.system.named_functions import load_function

_SIGNATURE = "a function of (images uint8 (B, 3, H, W) tensor, keys uint64 (B,) array) that returns images"


def load_custom(name: str) -> Callable[..., Any]:
    """Imports and returns the function named ``module:function`` (:func:`stagewright.system.named_functions.load_function`)."""
    return load_function(name, "augment.custom", _SIGNATURE)


def check_custom(name: str, given: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Raises RecipeError if the result of the function ``name``, as (shape, dtype, device), differs from ``expected``."""
    if given != expected:
        raise RecipeError(
            f"augment.custom: {name} returned {' '.join(map(str, given))}",
            f"the same as its input: {' '.join(map(str, expected))}",
            "let it return pictures with the number, size, dtype and device of its input",
        )
