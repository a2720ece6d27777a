"""The lock of a folder: one process writes in it at a time, and whoever comes second is told by whom it is held.

The kernel lets go however the process ends. ``.lock`` holds the process id; the word ``beginning`` after it says that the
folder's run is being made, so that what a killed process leaves there is known as its own.
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
    """Whether the process before was killed while it made the folder's run."""
    foreign: bool
    """Whether ``.lock`` is another program's file: it is left as it is."""

    def write(self, *, beginning: bool) -> None:
        """Names this process in the file; ``beginning``: it is making the folder's run."""
        if self.foreign:
            return
        text = f"{os.getpid()}{_BEGINNING if beginning else ''}".encode()
        try:
            os.pwrite(self.descriptor, text, 0)
            os.ftruncate(self.descriptor, len(text))
        except OSError as error:
            raise unwritable(self.folder / NAME, error) from error

    def check(self) -> None:
        """StorageError where the folder is gone, or another process may be writing in it since ``.lock`` was removed.

        A ``.lock`` that was removed and that nobody else holds is made again.
        """
        if not self.folder.is_dir():
            raise StorageError(
                f"{self.folder} is not there any more: it was moved or deleted while it was in use",
                "a folder that stays where it is until the process has ended",
                "put it back or find where it is now, then stagewright resume goes on from its last checkpoint",
            )
        if _stands(self.folder, self.descriptor):
            return
        try:
            fresh = _locked(self.folder)
        except CheckpointError as error:
            raise StorageError(
                f"{self.folder / NAME} was removed or replaced, and another process writes in this folder now",
                "one process at a time",
                "let that one go on; this one ends here",
            ) from error
        os.dup2(fresh, self.descriptor, inheritable=False)
        os.close(fresh)
        self.write(beginning=False)

    def remove(self) -> None:
        """Removes ``.lock``, which this process holds; a process that waits for it takes another."""
        if not self.foreign:
            (self.folder / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Lock]:
    """Holds ``folder``, which exists, for this process.

    CheckpointError names the process that has it, StorageError says why ``.lock`` cannot be written. On a file system
    without locks it warns in the log and goes on.
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
    """Whether a process holds ``folder`` now; None where the file system has no locks to tell by."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
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
    """A descriptor of ``.lock``, locked, that is the file which stands there now."""
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(folder / NAME, error) from error
        try:
            _flock(folder, descriptor)
            if _stands(folder, descriptor):  # or whoever held it before has removed it meanwhile
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise StorageError(f"{folder / NAME} is removed again and again", "a folder that one process uses", "try again")


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
        logging.getLogger(__name__).warning("%s: this file system has no locks; start no second process here", folder)


def _stands(folder: Path, descriptor: int) -> bool:
    try:
        now = os.stat(folder / NAME)
    except OSError:
        return False
    own = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino)
