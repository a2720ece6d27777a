"""Imports users' functions that a recipe names, and warns before their code runs.

``augment.custom`` is ``module:function``. Fields that also accept names of the package (``model.name``, ``loss``,
``optimizer.name``) use ``python:module:function``. A class can be named instead of a function. Modules are searched in the
installed packages and on PYTHONPATH, and last in the current folder, only for this import.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stagewright.errors import RecipeError
from stagewright.system.children import current_folder_last
from stagewright.text import nearest

log = logging.getLogger(__name__)

PREFIX = "python:"
_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_told: set[str] = set()
"""Names that need no warning: this process has reported them already, or the caller passed the functions themselves."""


def is_named(value: str) -> bool:
    """Whether ``value`` begins with ``python:``."""
    return value.startswith(PREFIX)


def check_form(value: str, prefix: str = PREFIX) -> str:
    """Returns ``value``; ValueError unless it is ``prefix`` and ``module:function``."""
    if not (value.startswith(prefix) and _FORM.fullmatch(value.removeprefix(prefix))):
        raise ValueError(
            f"{value!r} is not of the form {prefix}module:function, e.g. {prefix}my_package.my_module:make"
        )
    return value


def load_function(name: str, field: str, signature: str) -> Callable[..., Any]:
    """Imports the module of ``name``, with or without ``python:``, and returns its function.

    A recipe, run or bundle that names a function is code. Before the first import of each name, a warning in the log, which
    Python prints on the standard error by default, states the function and its file.

    RecipeError if there is no such module or function, or if it is not callable; ``field`` of the recipe and ``signature`` (what
    the function must be) are used in its message.
    """
    module_name, function_name = _parts(name)
    # Called in every update; a module that is imported already costs nothing.
    if name not in _told:
        _tell(name, field)
    module = sys.modules.get(module_name) or _imported(name, field, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        raise RecipeError(
            f"{field}: {name}: module {module_name} has no {function_name!r}{nearest(function_name, vars(module))}",
            signature,
            f"define it in {getattr(module, '__file__', None) or module_name}, or correct the name in the recipe",
        )
    if not callable(function):
        raise RecipeError(f"{field}: {name} is a {type(function).__name__}", signature, "name a function")
    return function


def _parts(name: str) -> tuple[str, str]:
    module_name, _, function_name = name.removeprefix(PREFIX).partition(":")
    return module_name, function_name


def _imported(name: str, field: str, module_name: str) -> ModuleType:
    importlib.invalidate_caches()
    with current_folder_last() as folder:
        try:
            return importlib.import_module(module_name)
        except ImportError as error:
            raise RecipeError(
                f"{field}: {name}: {error} (searched in the installed packages, PYTHONPATH and {folder})",
                "module:function with a module that can be imported where the training runs",
                f"install the package that contains {module_name}, add its folder to PYTHONPATH, or start in that folder",
            ) from error


def _tell(name: str, field: str) -> None:
    """Logs which file's code will run; nothing if the module does not exist, because an error follows."""
    _told.add(name)
    module_name, function_name = _parts(name)
    if (file := file_of(name)) is not None or module_name in sys.modules:
        log.warning("%s is code: %s, imported from %s.", field, function_name, file or module_name)


def check_arguments(
    function: Callable[..., Any], name: str, field: str, signature: str, given: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """Raises RecipeError if ``function(*given, **named)`` has an unknown or a missing argument."""
    try:
        inspect.signature(function).bind(*given, **named)
    except ValueError:  # written in C, without a signature
        return
    except TypeError as error:
        raise RecipeError(
            f"{field}: {name} cannot be called with {', '.join([*('...' for _ in given), *named])}: {error}",
            signature,
            f"let {name.rpartition(':')[2]} take these arguments, or correct the options in the recipe",
        ) from None


def raised_at(error: BaseException, name: str) -> str:
    """Returns the type and text of ``error``, and the last line in the file of the function ``name`` that led to it."""
    text = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(file_of(name))]
    at = own[-1] if own else frames[-1] if frames else None
    return f"{type(error).__name__}: {text}" + (f" ({at.filename}, line {at.lineno})" if at else "")


def name_of(function: Callable[..., object], field: str) -> str:
    """Returns ``python:module:function`` for a function or class at the top level of an importable module.

    RecipeError for anything that another process cannot import by this name: lambdas, nested functions, methods, and functions
    of the script that was started.
    """
    module_name, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or module_name is None or name is None:
        raise _without_name(field, f"a {type(function).__name__}")
    if name == "<lambda>":
        raise _without_name(field, "a lambda")
    if "." in name:
        raise _without_name(field, f"{name.replace('.<locals>', '')}, which is inside a function or class")
    if module_name in ("__main__", "__mp_main__"):
        raise _without_name(field, f"{name} of the script that was started, which no other process can import")
    full = f"{PREFIX}{module_name}:{name}"
    if getattr(sys.modules.get(module_name), name, None) is not function:
        raise _without_name(field, f"{name}, and {module_name} has another {name}")
    file, own = _found(module_name), getattr(sys.modules[module_name], "__file__", None)
    if file is None or own is None or os.path.realpath(file) != os.path.realpath(own):
        raise _without_name(field, f"{name} of {own or module_name}, which {module_name} does not lead to on the path")
    _told.add(full)
    return full


def _without_name(field: str, what: str) -> RecipeError:
    return RecipeError(
        f"{field} is {what}",
        "a function or class at the top level of a module: the recipe stores its name, and a resume imports it again",
        f"define it in a separate file, e.g. my_{field.partition('.')[0]}.py in this folder, and import it from there",
    )


def file_of(name: str) -> Path | None:
    """Returns the file of the module of ``name`` without importing it, or None if there is no such file."""
    module_name, _ = _parts(name)
    file = getattr(sys.modules[module_name], "__file__", None) if module_name in sys.modules else _found(module_name)
    return Path(file) if file else None


def _found(module_name: str) -> str | None:
    """Returns the file of a module, found by Python's import finders without running the module or its packages."""
    importlib.invalidate_caches()
    names = module_name.split(".")
    within: Sequence[str] | None = None
    spec = None
    with current_folder_last():
        for at in range(1, len(names) + 1):
            if at > 1 and within is None:
                return None
            finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
            specs = (find(".".join(names[:at]), within) for find in finders)
            if (spec := next((one for one in specs if one is not None), None)) is None:
                return None
            within = spec.submodule_search_locations
    return spec.origin if spec is not None and spec.has_location else None
