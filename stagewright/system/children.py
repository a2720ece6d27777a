"""Python processes of our own: they find what this process finds, and run no code from the current folder.

``python -m`` and ``python -c`` put the current folder first on the path, so that a ``json.py`` beside someone's pictures
would be run in place of the real one. ``-P`` and ``PYTHONSAFEPATH`` (Python 3.11) end that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import stagewright

SAFE = "PYTHONSAFEPATH"

_START = (
    "import sys; count = int(sys.argv[1]); sys.path[:] = sys.argv[2 : 2 + count]; del sys.argv[1 : 2 + count]; "
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs ``module`` with this Python, on this process's path without the current folder."""
    path = safe_path()
    return [sys.executable, "-P", "-c", _START, str(len(path)), *path, module, *arguments]


def safe_path() -> list[str]:
    """``sys.path`` without the current folder; last the folder that stagewright lies in, if nothing else leads to it."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was removed, and with it what could be found in it
        here = ""
    path = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
    home = str(Path(stagewright.__file__).parent.parent)
    return path if any(os.path.realpath(entry) == os.path.realpath(home) for entry in path) else [*path, home]


@contextmanager
def starting_children() -> Iterator[None]:
    """What libraries start inside (multiprocessing's servers) leaves the current folder off its path, and finds
    stagewright."""
    path, before = list(sys.path), os.environ.get(SAFE)
    sys.path[:] = safe_path()
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ[SAFE]
        else:
            os.environ[SAFE] = before


@contextmanager
def current_folder_last() -> Iterator[str]:
    """The current folder is on the path inside, behind all else; for code that a person names as lying there."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield folder
    finally:
        for at in range(len(sys.path) - 1, -1, -1):  # the one added: the imported code may have added others
            if sys.path[at] == folder:
                del sys.path[at]
                break
