"""Functions of one's own that a recipe names as ``module:function``: found when they are needed, and checked."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from stagewright.errors import RecipeError, nearest

_SIGNATURE = "a function of (images uint8 (B, 3, H, W) tensor, keys uint64 (B,) array) that gives images again"


def load_custom(name: str) -> Callable[..., Any]:
    """The function that ``name``, ``module:function``, stands for; its module is imported.

    RecipeError if there is no such module, no such function in it, or it cannot be called.
    """
    module_name, _, function_name = name.partition(":")
    try:
        with _current_folder():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"augment.custom: {name}: {error}",
            "module:function, the module importable where the training runs",
            f"install the package that has {module_name}, or put it into the current folder ({os.getcwd()}) or on PYTHONPATH",
        ) from error
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


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder, where a person's own module lies, is searched last, and only inside: files that happen to lie there
    must not be imported under names of libraries."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        if folder in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def check_custom(name: str, given: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    """RecipeError if what the function ``name`` gave, as (shape, dtype, device), is not what was ``wanted``."""
    if given != wanted:
        raise RecipeError(
            f"augment.custom: {name} gave {' '.join(map(str, given))}",
            f"what it was given: {' '.join(map(str, wanted))}",
            "let it return pictures of the same number, size, dtype and device as it gets",
        )
