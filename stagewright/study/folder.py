"""The folder of runs that belong together: its lock, and the file that says what they are for.

The file is written last of all that exists before the first run, so that a folder with it has all of them; it is never changed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from stagewright.errors import CheckpointError, StorageError, Unreadable
from stagewright.recipe.differences import differing, value_text
from stagewright.storage import lock as locking
from stagewright.storage.files import make_folders, read_own, remove_quietly, write_json
from stagewright.storage.json_text import Fields, misfit, parse_object
from stagewright.storage.lock import Lock, lock
from stagewright.text import shortened, some

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.csv)?|\..+\.\d+\.csv")


@contextlib.contextmanager
def opened(folder: Path, file: str, files: Collection[str]) -> Iterator[Lock]:
    """Locks ``folder``, which is created if need be, for this process.

    Without the definition ``file``, only ``files`` that a killed process left are allowed in it. CheckpointError for any other
    content, and if another process has locked it; StorageError if it cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file", "a new or empty folder", "give another folder with --out")
    if not (folder / file).exists() and folder.is_dir() and not (folder / locking.NAME).exists():
        _refuse_content(folder, file, ())
    make_folders(folder)
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(lock(folder))
        except StorageError as error:
            raise StorageError(error.given, error.allowed, "give another place with --out") from error
        if not (folder / file).exists():
            _refuse_content(folder, file, files if own.was_beginning else ())
            own.write(beginning=True)
        yield own


def write_definition(folder: Path, file: str, content: Mapping[str, Any], own: Lock) -> None:
    """Writes the definition of a folder that this process has opened: from now on it is begun."""
    write_json(folder / file, content)
    own.write(beginning=False)


def read_definition(folder: Path, file: str, kind: type[Fields]) -> dict[str, Any]:
    """Returns the content of the definition; CheckpointError if it is missing, damaged, or not a ``kind``."""
    place = folder / file
    try:
        content = parse_object(read_own(place))
        problem = misfit(content, kind)
    except Unreadable:
        raise
    except FileNotFoundError:
        content, problem = {}, "it does not exist"
    except ValueError as error:
        content, problem = {}, str(error)
    if problem:
        raise CheckpointError(
            f"{place} is damaged: {problem}",
            "the file as it was written",
            "restore it from a copy, or begin in a new --out",
        )
    return content


def refuse_other(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], again: str) -> None:
    """CheckpointError that names in what ``new`` settings differ from the ``old`` ones; ``again`` is the command that goes on."""
    found = differing(old, new)
    if found:
        named = (f"{path} ({_short(was)}, now {_short(now)})" for path, was, now in found)
        raise CheckpointError(
            f"{folder} was begun with other settings: {some(named, 6)}",
            "the settings with which it was begun, or a new folder",
            f"{again} goes on with it; another --out, or none, begins anew",
        )


def _short(value: Any) -> str:
    return shortened(value_text(value), 40)


def _refuse_content(folder: Path, file: str, allowed: Collection[str]) -> None:
    there = sorted(set(os.listdir(folder)) - {locking.NAME})
    ours = [name for name in there if allowed and _TEMPORARY.fullmatch(name)]
    for name in ours:
        remove_quietly(folder / name)
    foreign = [name for name in there if name not in allowed and name not in ours]
    if foreign:
        what = "holds a run" if "plan.json" in foreign else f"is not empty: it holds {some(foreign, 4)}"
        raise CheckpointError(
            f"{folder} {what}",
            f"a new or empty folder, or one with a {file}",
            "give another folder with --out, or none",
        )
