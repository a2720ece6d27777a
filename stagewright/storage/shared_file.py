"""A file of records that the processes of one machine share through its memory, and fill together.

Each process maps the file, so that its pages lie in memory once. The file belongs to the time in which it is used: its name has
the id of this start of the machine, each user holds a lock on it (flock), and a file that no process holds is removed, by the
last user when it ends or by the next one that comes. Nothing in it survives a crash of the machine, so nothing is ever synced.

- A record is written, and then its mark, both with ``pwrite``: readers never see a record that is half-written, and a process
  that is killed leaves a record without a mark, which another one writes again.
- The space is allocated before it is used (``posix_fallocate``), so that no access to a mapped page needs room on the disk. Where
  a write fails nevertheless, this process goes on in memory of its own: the mapping is private, so what it writes there is seen
  by nobody else.
- The cache folder must be on a file system of this machine. On one that several machines share, their mappings would disagree.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import shutil
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.errors import StorageError
from stagewright.storage.cache import cache_folder

_FOLDER = "shared"
_LOCK = ".lock"
_PAGE = mmap.ALLOCATIONGRANULARITY
_LOCAL = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
"""File systems of one machine, on which all processes see the same pages."""
_RESERVE = 1 << 28
"""Bytes of the disk that stay free."""
_PATIENCE = 10.0
"""Seconds to wait for another process that opens or closes such a file, which takes milliseconds."""


class SharedFile:
    """``count`` records with ``size`` bytes in all, shared by all processes that open the same ``key``."""

    def __init__(self, descriptor: int, path: Path, count: int, size: int) -> None:
        self._descriptor, self.path = descriptor, path
        start = _start(count)
        mapped = np.frombuffer(mmap.mmap(descriptor, start + size, access=mmap.ACCESS_COPY), np.uint8)
        self.data: NDArray[np.uint8] = mapped[start:]
        """uint8 (size,): the records. Only those that are ``done`` may be read."""
        self.done: NDArray[np.bool_] = mapped[:count].view(np.bool_)
        """bool (count,): whether a record is written."""
        self.shares = True
        """Whether records are still written for all processes; False after a write has failed."""
        self._end = weakref.finalize(self, _leave, descriptor, path, os.getpid())

    @classmethod
    def open(cls, key: str, count: int, size: int) -> SharedFile:
        """Opens the file of ``key`` (letters and digits) in the cache folder, and creates it if it is not there.

        Files that no process uses are removed. StorageError if this machine, its file system or the room on it does not allow it.
        """
        folder = cache_folder(_FOLDER)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_local(folder)
            path = folder / f"{key}-{_boot_id()}"
            with _held(folder, _PATIENCE):
                _remove_unused(folder, path)
                descriptor = _opened(path, _start(count) + size)
            return cls(descriptor, path, count, size)
        except OSError as error:
            raise _refused(folder, error.strerror or str(error)) from error

    @contextlib.contextmanager
    def claim(self, record: int) -> Iterator[bool]:
        """Context in which no other process claims the record; False, without waiting, if one has claimed it now."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, record)
        except OSError as error:
            yield error.errno not in (errno.EACCES, errno.EAGAIN)
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, record)

    def write(self, record: int, offset: int, content: NDArray[np.uint8]) -> None:
        """Writes ``content``, uint8 (bytes,), of the record to ``data[offset:]`` and marks it as done."""
        if self.shares:
            try:
                _write_all(self._descriptor, content, _start(len(self.done)) + offset)
                _write_all(self._descriptor, np.ones(1, np.uint8), record)
            except OSError as error:
                self._go_on_alone(error)
        if not self.shares:
            self.data[offset : offset + len(content)] = content
            self.done[record] = True

    def _go_on_alone(self, error: OSError) -> None:
        """Keeps what is written so far, and writes everything else for this process alone.

        The marks are copied, because what other processes write from now on may lie on pages of which this one has its own.
        """
        self.done = self.done.copy()
        self.shares = False
        logging.getLogger(__name__).warning(
            "%s; this process goes on without it", _refused(self.path, str(error)).given
        )

    def close(self) -> None:
        """Ends the use of the file, which is removed if no other process uses it.

        What was written stays readable, and what is written from now on is seen by this process alone.
        """
        if self.shares:
            self.done, self.shares = self.done.copy(), False
        self._descriptor = -1  # its number may soon be that of another file
        self._end()


def _start(count: int) -> int:
    """Returns where the records begin: the marks come first, one byte each."""
    return -(-count // _PAGE) * _PAGE


def _refused(path: Path, why: str) -> StorageError:
    return StorageError(
        f"memory cannot be shared between processes through {path}: {why}",
        "a folder on a disk or in the memory of this machine, with room for the data",
        "set STAGEWRIGHT_CACHE to such a folder",
    )


def _require_local(folder: Path) -> None:
    """Raises OSError unless ``folder`` is on a file system of this machine alone."""
    kind = _file_system(folder.resolve())
    if kind not in _LOCAL:
        raise OSError(errno.ENOTSUP, f"its file system is {kind or 'unknown'}, which other machines may use too")


def _file_system(folder: Path) -> str:
    """Returns the kind of the file system of a resolved ``folder``, as in proc(5); "" on other systems than Linux."""
    found: list[tuple[int, str]] = []
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return ""
    for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
        fields, _, described = line.partition(" - ")
        place = Path(_unescaped(fields.split(" ")[4]))
        if folder == place or place in folder.parents:
            found.append((len(place.parts), described.split(" ")[0]))
    # The deepest mount point holds the folder; of several at one place, the last one.
    return max(enumerate(found), key=lambda one: (one[1][0], one[0]))[1][1] if found else ""


def _unescaped(place: str) -> str:
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        place = place.replace(code, sign)
    return place


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextlib.contextmanager
def _held(folder: Path, patience: float) -> Iterator[None]:
    """Context in which no other process opens or closes a file of ``folder``; OSError if that takes longer than ``patience``."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + patience
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, f"another process has held {folder / _LOCK} for {patience:g} s")
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    """Whether this process could take the lock without waiting; OSError where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(folder: Path, but: Path) -> None:
    """Removes the files of ``folder`` that no process uses, except ``but``."""
    for other in folder.iterdir():
        if other in (but, folder / _LOCK):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(other, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _locked(descriptor, fcntl.LOCK_EX):
                    other.unlink()
            finally:
                os.close(descriptor)


def _opened(path: Path, size: int) -> int:
    """Returns a descriptor of the file with ``size`` allocated bytes, on which this process holds a shared lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            raise OSError(errno.EBUSY, "another process has locked it")
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > size:
            raise OSError(errno.EINVAL, "it is not a file of this size")
        if status.st_size < size:  # new, or its process was killed here
            free = shutil.disk_usage(path.parent).free
            if free < size + _RESERVE:
                raise OSError(
                    errno.ENOSPC, f"{free / 1e9:.3g} GB are free there, {(size + _RESERVE) / 1e9:.3g} are needed"
                )
            os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        _unlinked_if_unused(descriptor, path)
        os.close(descriptor)
        raise
    return descriptor


def _unlinked_if_unused(descriptor: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        now, own = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
        if (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino) and _locked(descriptor, fcntl.LOCK_EX):
            path.unlink()


def _leave(descriptor: int, path: Path, process: int) -> None:
    """Ends the use of a file by the process that has opened it. A child that was forked from it shares its lock and leaves it."""
    try:
        if os.getpid() == process:
            with contextlib.suppress(OSError), _held(path.parent, 1.0):
                _unlinked_if_unused(descriptor, path)
            with contextlib.suppress(OSError):  # mmap has a descriptor of its own, which has the same lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: NDArray[np.uint8], offset: int) -> None:
    left = memoryview(content.tobytes())
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
