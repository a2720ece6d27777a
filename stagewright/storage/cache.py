"""The folder for what can be made again: scan results, built-in data, downloads. It may vanish at any time."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from stagewright.storage.files import user_path

_log = logging.getLogger(__name__)


def cache_folder(*names: str) -> Path:
    """``names`` in ``$STAGEWRIGHT_CACHE``, else in ``~/.cache/stagewright``; without a home in :func:`temporary_cache`."""
    given = os.environ.get("STAGEWRIGHT_CACHE")
    if given:
        return Path(user_path(given), *names)
    base = temporary_cache() if no_home() else Path.home() / ".cache"
    return Path(base, "stagewright", *names)


def no_home() -> bool:
    """Whether this user has no home: no ``HOME`` and no entry among the users, as in ``docker run --user 54321``."""
    try:
        Path.home()
    except RuntimeError:
        return True
    return False


def give_libraries_a_cache() -> None:
    """Points libraries that keep downloads (torch, Hugging Face, Matplotlib) to a folder, where there is no home: some
    would make one called ``~`` in the current folder."""
    if no_home():
        os.environ.setdefault("XDG_CACHE_HOME", str(temporary_cache()))


@cache
def temporary_cache() -> Path:
    """A folder for caches of a user without a home: below the temporary folder, named by the user's number, private.

    Where that name belongs to someone else or is open to others, a folder of this process alone, removed at its end.
    """
    folder = Path(tempfile.gettempdir(), f"stagewright-cache-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        _log.warning("%s cannot be made (%s); set STAGEWRIGHT_CACHE to a folder to keep what is found", folder, error)
        return folder
    if _is_private(folder):
        return folder
    own = Path(tempfile.mkdtemp(prefix="stagewright-cache-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    _log.warning(
        "there is no home, and %s is not this user's alone; set STAGEWRIGHT_CACHE to a folder to keep what is found",
        folder,
    )
    return own


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, no link, of this user, that nobody else may read or write."""
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
