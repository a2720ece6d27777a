"""Functions of one's own that a recipe names: found when they are needed, and told of before their code runs.

``augment.custom`` writes ``module:function``. Where a field also takes names that the package knows (``model.name``, ``loss``,
``optimizer.name``), ``python:module:function`` says that a function is meant. A class will do as well as a function. Modules are
looked for in the installed packages and on PYTHONPATH, and in the current folder last, for this import alone.
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

from stagewright.errors import RecipeError, nearest
from stagewright.system.children import current_folder_last

log = logging.getLogger(__name__)

PREFIX = "python:"
_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_told: set[str] = set()
"""Names that a person knows of: this process has said whose code they are, or they were handed over as functions."""


def is_named(value: str) -> bool:
    """Whether ``value`` is of the form ``python:module:function``, or is meant to be."""
    return value.startswith(PREFIX)


def check_form(value: str, prefix: str = PREFIX) -> str:
    """``value`` itself; ValueError unless it is ``prefix`` and ``module:function``."""
    if not (value.startswith(prefix) and _FORM.fullmatch(value.removeprefix(prefix))):
        raise ValueError(
            f"{value!r} is not of the form {prefix}module:function, e.g. {prefix}my_package.my_module:make"
        )
    return value


def load_function(name: str, field: str, signature: str) -> Callable[..., Any]:
    """The function that ``name`` stands for, with or without ``python:``; its module is imported.

    A recipe, run or bundle that names a function is code: before the first import of each, a warning in the log, which Python
    prints on the standard error unless told otherwise, says which function comes from which file.

    ``field`` of the recipe and ``signature``, what the function is to be, are for the RecipeError that is raised where there
    is no such module, no such function in it, or it cannot be called.
    """
    module_name, function_name = _parts(name)
    # Every update comes here: what is imported already costs nothing.
    if name not in _told:
        _tell(name, field)
    module = sys.modules.get(module_name) or _imported(name, field, module_name)
    function = getattr(module, function_name, None)
    if function is None:
        raise RecipeError(
            f"{field}: {name}: module {module_name} has no {function_name!r}{nearest(function_name, vars(module))}",
            signature,
            f"define it in {getattr(module, '__file__', None) or module_name}, or mend the name in the recipe",
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
                f"{field}: {name}: {error} (looked for in the installed packages, PYTHONPATH and {folder})",
                "module:function, the module importable where the training runs",
                f"install the package that has {module_name}, put its folder on PYTHONPATH, or start in that folder",
            ) from error


def _tell(name: str, field: str) -> None:
    """Says whose code is about to run; nothing where it is not found, which the error will say."""
    _told.add(name)
    module_name, function_name = _parts(name)
    if (file := file_of(name)) is not None or module_name in sys.modules:
        log.warning("%s is code: %s, imported from %s.", field, function_name, file or module_name)


def check_arguments(
    function: Callable[..., Any], name: str, field: str, signature: str, given: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """RecipeError where ``function(*given, **named)`` could not even be called: an argument is unknown or missing."""
    try:
        inspect.signature(function).bind(*given, **named)
    except ValueError:  # written in C, without a signature
        return
    except TypeError as error:
        raise RecipeError(
            f"{field}: {name} cannot be called with {', '.join([*('...' for _ in given), *named])}: {error}",
            signature,
            f"let {name.rpartition(':')[2]} take these arguments, or mend the options in the recipe",
        ) from None


def raised_at(error: BaseException, name: str) -> str:
    """Kind and text of ``error``, and the last line within the file of the function ``name`` that led to it."""
    text = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(file_of(name))]
    at = own[-1] if own else frames[-1] if frames else None
    return f"{type(error).__name__}: {text}" + (f" ({at.filename}, line {at.lineno})" if at else "")


def name_of(function: Callable[..., Any], field: str) -> str:
    """``python:module:function`` for a function or class that lies at the top of an importable module.

    RecipeError for what a later process could not find under such a name: lambdas, functions within functions, methods, and
    whatever is defined in the script that was started.
    """
    module_name, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or module_name is None or name is None:
        raise _without_name(field, f"a {type(function).__name__}")
    if name == "<lambda>":
        raise _without_name(field, "a lambda")
    if "." in name:
        raise _without_name(field, f"{name.replace('.<locals>', '')}, which lies within a function or class")
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
        "a function or class at the top of a module: the recipe holds its name, and a resume imports it again",
        f"put it with def into a file of its own, e.g. my_{field.partition('.')[0]}.py in this folder, and import it from there",
    )


def file_of(name: str) -> Path | None:
    """The file that the module of ``name`` comes from, or would come from: nothing is run to find out. None where there is
    no such file."""
    module_name, _ = _parts(name)
    file = getattr(sys.modules[module_name], "__file__", None) if module_name in sys.modules else _found(module_name)
    return Path(file) if file else None


def _found(module_name: str) -> str | None:
    """The file of a module, looked for by Python's own finders, without running the module or its packages."""
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
