"""The lock of a folder: one process at a time may write in it; a second one gets an error that names the first.

The kernel releases the lock whichever way the process ends. The file ``.lock`` contains the process id. The word
``beginning`` after it means that the process is still creating the run, so that files left by a killed process can be
recognised as unfinished.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stagewright.errors import CheckpointError, StorageError
from stagewright.storage.files import unwritable

NAME = ".lock"
_BEGINNING = " beginning"
_OURS = re.compile(rb"\d*( beginning)?\s*")
_ATTEMPTS = 20


@dataclass
class Lock:
    """A lock that this process holds."""

    folder: Path
    descriptor: int
    was_beginning: bool
    """Whether the previous process was killed while it created the run in this folder."""
    foreign: bool
    """Whether ``.lock`` belongs to another program; then its content is not changed."""

    def write(self, *, beginning: bool) -> None:
        """Writes this process's id to the file; ``beginning``: whether it is still creating the run."""
        if self.foreign:
            return
        text = f"{os.getpid()}{_BEGINNING if beginning else ''}".encode()
        try:
            os.pwrite(self.descriptor, text, 0)
            os.ftruncate(self.descriptor, len(text))
        except OSError as error:
            raise unwritable(self.folder / NAME, error) from error

    def check(self) -> None:
        """Raises StorageError if the folder no longer exists, or if ``.lock`` was replaced and another process holds it.

        If ``.lock`` was removed and no other process holds it, it is created again.
        """
        if not self.folder.is_dir():
            raise StorageError(
                f"{self.folder} no longer exists: it was moved or deleted while it was in use",
                "a folder that stays where it is until the process has ended",
                "move it back or find where it is now; stagewright resume then continues from its last checkpoint",
            )
        if _is_current(self.folder, self.descriptor):
            return
        try:
            fresh = _locked(self.folder)
        except CheckpointError as error:
            raise StorageError(
                f"{self.folder / NAME} was removed or replaced, and another process writes in this folder now",
                "one process at a time",
                "nothing: the other process continues, and this one ends here",
            ) from error
        os.dup2(fresh, self.descriptor, inheritable=False)
        os.close(fresh)
        self.write(beginning=False)

    def remove(self) -> None:
        """Removes ``.lock``, which this process holds. A process that is about to lock it creates a new one."""
        if not self.foreign:
            (self.folder / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Lock]:
    """Context manager: holds the lock of ``folder``, which must exist, for this process.

    CheckpointError names the process that already holds it; StorageError states why ``.lock`` cannot be written. On a file
    system without locks it logs a warning and continues.
    """
    descriptor = _locked(folder)
    held = None
    try:
        content = os.pread(descriptor, 64, 0)
        foreign = not _OURS.fullmatch(content)
        held = Lock(folder, descriptor, content.strip().endswith(_BEGINNING.strip().encode()), foreign)
        held.write(beginning=held.was_beginning)
        yield held
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the lock of ``folder`` now, or None if the file system has no locks."""
    return is_locked(folder / NAME)


def is_locked(file: Path) -> bool | None:
    """Whether a process has locked ``file`` now (False if it does not exist), or None if the file system has no locks."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _locked(folder: Path) -> int:
    """Returns a locked file descriptor of the ``.lock`` that is currently in ``folder``."""
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(folder / NAME, error) from error
        try:
            _flock(folder, descriptor)
            if _is_current(folder, descriptor):  # the previous holder may have removed the file meanwhile
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise StorageError(
        f"{folder / NAME} is removed again and again by another process",
        "a folder that one process uses",
        "end the other process, then give the command again",
    )


def _flock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 64, 0).decode(errors="replace").removesuffix(_BEGINNING).strip() or "unknown"
        raise CheckpointError(
            f"{folder} is in use by process {holder}",
            "one process in a run directory",
            f"wait for it, or stop it (kill {holder}), or choose another --out",
        ) from error
    except OSError:
        logging.getLogger(__name__).warning(
            "%s: this file system does not support locks; do not start a second process on this folder", folder
        )


def _is_current(folder: Path, descriptor: int) -> bool:
    """Whether ``descriptor`` is open on the ``.lock`` that is in ``folder`` now."""
    try:
        now = os.stat(folder / NAME)
    except OSError:
        return False
    own = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino)
