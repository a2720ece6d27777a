"""The cache folder, for files that can be created again: scan results, built-in data, downloads. It may be deleted at any
time."""

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
    """Returns the path ``names`` inside ``$STAGEWRIGHT_CACHE`` or, if that is not set, inside ``~/.cache/stagewright``; for
    a user without a home folder inside :func:`temporary_cache`."""
    given = os.environ.get("STAGEWRIGHT_CACHE")
    if given:
        return Path(user_path(given), *names)
    base = temporary_cache() if no_home() else Path.home() / ".cache"
    return Path(base, "stagewright", *names)


def no_home() -> bool:
    """Whether this user has no home folder: no ``HOME`` variable and no user entry, as in ``docker run --user 54321``."""
    try:
        Path.home()
    except RuntimeError:
        return True
    return False


def give_libraries_a_cache() -> None:
    """Sets a cache folder for libraries that store downloads (torch, Hugging Face, Matplotlib) if the user has no home
    folder. Some of them would otherwise create a folder called ``~`` in the current folder."""
    if no_home():
        os.environ.setdefault("XDG_CACHE_HOME", str(temporary_cache()))


@cache
def temporary_cache() -> Path:
    """Returns the cache folder of a user without a home: a private folder in the temporary folder, named by the user's id.

    If a folder of that name belongs to another user or is accessible to others, it returns a new folder for this process
    alone, which is removed when the process ends.
    """
    folder = Path(tempfile.gettempdir(), f"stagewright-cache-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        _log.warning(
            "the cache folder %s cannot be created (%s); set STAGEWRIGHT_CACHE to a folder that can be written",
            folder,
            error,
        )
        return folder
    if _is_private(folder):
        return folder
    own = Path(tempfile.mkdtemp(prefix="stagewright-cache-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    _log.warning(
        "this user has no home folder, and other users can access %s: the cache is lost when this process ends; set "
        "STAGEWRIGHT_CACHE to a folder to keep it",
        folder,
    )
    return own


def _is_private(folder: Path) -> bool:
    """Whether ``folder`` is a folder (not a link) of this user that nobody else may read or write."""
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
