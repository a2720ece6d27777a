"""Functions of one's own that a recipe names as ``module:function``: found when they are needed, and checked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from stagewright.errors import RecipeError, nearest
from stagewright.system.children import current_folder_last

_SIGNATURE = "a function of (images uint8 (B, 3, H, W) tensor, keys uint64 (B,) array) that gives images again"


def load_custom(name: str) -> Callable[..., Any]:
    """The function that ``name``, ``module:function``, stands for; its module is imported.

    The current folder is looked through last, and for this import alone: no other may find code beside someone's pictures.
    RecipeError if there is no such module, no such function in it, or it cannot be called.
    """
    module_name, _, function_name = name.partition(":")
    # Every batch comes here: what is imported already costs nothing.
    module = sys.modules.get(module_name) or _imported(name, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        raise RecipeError(
            f"augment.custom: {name}: module {module_name} has no {function_name!r}{nearest(function_name, vars(module))}",
            _SIGNATURE,
            f"define it in {getattr(module, '__file__', None) or module_name}, or mend the name in the recipe",
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
                f"augment.custom: {name}: {error} (looked for in the installed packages, PYTHONPATH and {folder})",
                "module:function, the module importable where the training runs",
                f"install the package that has {module_name}, put its folder on PYTHONPATH, or start in that folder",
            ) from error


def check_custom(name: str, given: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    """RecipeError if what the function ``name`` gave, as (shape, dtype, device), is not what was ``wanted``."""
    if given != wanted:
        raise RecipeError(
            f"augment.custom: {name} gave {' '.join(map(str, given))}",
            f"what it was given: {' '.join(map(str, wanted))}",
            "let it return pictures of the same number, size, dtype and device as it gets",
        )
