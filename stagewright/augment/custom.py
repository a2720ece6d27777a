"""Users' augmentation functions, which a recipe names as ``module:function``: imports them and checks their results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from stagewright.errors import RecipeError, nearest
from stagewright.system.children import current_folder_last

_SIGNATURE = "a function of (images uint8 (B, 3, H, W) tensor, keys uint64 (B,) array) that returns images"


def load_custom(name: str) -> Callable[..., Any]:
    """Imports and returns the function named ``module:function``.

    The current folder is searched last, and only for this import: other imports must not find code next to a user's images.
    RecipeError if there is no such module, if it has no such function, or if it is not callable.
    """
    module_name, _, function_name = name.partition(":")
    # This is called for every batch; a module that is already imported costs nothing.
    module = sys.modules.get(module_name) or _imported(name, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        raise RecipeError(
            f"augment.custom: {name}: module {module_name} has no {function_name!r}{nearest(function_name, vars(module))}",
            _SIGNATURE,
            f"define it in {getattr(module, '__file__', None) or module_name}, or correct the name in the recipe",
        )
    if not callable(function):
        raise RecipeError(f"augment.custom: {name} is a {type(function).__name__}", _SIGNATURE, "name a function")
    return function


def _imported(name: str, module_name: str) -> ModuleType:
    importlib.invalidate_caches()
    with current_folder_last() as folder:
        try:
            return importlib.import_module(module_name)
        except ImportError as error:
            raise RecipeError(
                f"augment.custom: {name}: {error} (searched in the installed packages, PYTHONPATH and {folder})",
                "module:function with a module that can be imported where the training runs",
                f"install the package that contains {module_name}, add its folder to PYTHONPATH, or start in that folder",
            ) from error


def check_custom(name: str, given: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Raises RecipeError if the result of the function ``name``, as (shape, dtype, device), differs from ``expected``."""
    if given != expected:
        raise RecipeError(
            f"augment.custom: {name} returned {' '.join(map(str, given))}",
            f"the same as its input: {' '.join(map(str, expected))}",
            "let it return pictures with the number, size, dtype and device of its input",
        )
