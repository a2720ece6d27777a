"""Child processes that run Python: they import the same modules as this process, but none from the current folder.

``python -m`` and ``python -c`` put the current folder first on ``sys.path``, so that a ``json.py`` next to a user's images
would be imported instead of the standard one. ``-P`` and ``PYTHONSAFEPATH`` (Python 3.11) prevent that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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
    """Returns the command that runs ``module`` with this Python, with this process's ``sys.path`` without the current
    folder."""
    path = safe_path()
    return [sys.executable, "-P", "-c", _START, str(len(path)), *path, module, *arguments]


def start_beside(module: str, arguments: Sequence[str], *, pipes: bool = False) -> subprocess.Popen[bytes]:
    """Starts ``module`` as a process beside a training, which has priority: its standard error goes nowhere, input and output
    are ``pipes`` or go nowhere too."""
    command = module_command(module, arguments)
    if nice := shutil.which("nice"):
        command = [nice, "-n", "15", *command]
    aside = subprocess.PIPE if pipes else subprocess.DEVNULL
    # A separate process group, because Ctrl-C is meant for the training, which closes its observers itself. Not a separate
    # session, because Linux may divide the processors evenly among sessions (autogroup) and ignore nice.
    return subprocess.Popen(command, stdin=aside, stdout=aside, stderr=subprocess.DEVNULL, process_group=0)


def safe_path() -> list[str]:
    """Returns ``sys.path`` without the current folder. The folder that contains stagewright is added at the end if no other
    entry leads to it."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # the current folder was removed, so nothing can be imported from it
        here = ""
    path = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
    home = str(Path(stagewright.__file__).parent.parent)
    return path if any(os.path.realpath(entry) == os.path.realpath(home) for entry in path) else [*path, home]


@contextmanager
def safe_path_for_children() -> Iterator[None]:
    """Context manager: processes that libraries start inside it (such as multiprocessing's servers) have a ``sys.path``
    without the current folder and can import stagewright."""
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
    """Context manager: inside it the current folder is the last entry of ``sys.path``, for importing code that the user has
    named. Yields the folder."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield folder
    finally:
        for at in range(len(sys.path) - 1, -1, -1):  # searched from the end: imported code may have added more entries
            if sys.path[at] == folder:
                del sys.path[at]
                break
