"""The files of a cache of blocks, which several processes of a host share: a block is there as a whole, or not at all.

A block is a file with its number as the name. It is made under the name ``NUMBER.part``, whose lock its maker holds, and gets its
name when it is complete. The lock ends with the process, so whoever finds a part without a lock may take it over: a kill leaves
nothing to clean. Readers map a file into memory; it may be removed meanwhile. Blocks come and go under the lock of the folder,
whose file counts these changes, so that a process lists the folder only when another one has changed it. A block that goes is
renamed to ``NUMBER.old`` and deleted after that, without the lock, since a disk that is still writing it makes this wait. What is
being written or deleted comes on top of the capacity.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.errors import StorageError
from stagewright.storage.files import make_folders, unwritable

_LOCK, _USED = "lock", "used"
"""Files of a cache: the lock of its folder, and one whose lock all processes that use it share."""
_GONE = ".gone"
_PART, _OLD = ".part", ".old"
_MOST_PIECES = 512
"""Of one call of the system, which takes 1,024 at most."""

Choose = Callable[[NDArray[np.int64], int], list[int] | None]
"""Returns which of the blocks (P,) to remove so that so many bytes become free, or None."""

Store = Callable[[Sequence[memoryview], int, Choose], list[int] | None]
"""Stores the pieces of a block in a cache of so many bytes; returns the blocks that were removed for it, None without room."""


class BlockFiles:
    """The files in ``folder`` of blocks with ``sizes`` (K,) in bytes. Thread-safe."""

    def __init__(self, folder: Path, sizes: NDArray[np.int64]) -> None:
        self.folder, self.sizes = folder, sizes
        self._prefix = f"{folder}{os.sep}"
        self._lock = threading.Lock()
        self._seen = -1
        """The count of changes after which ``_there`` and ``_used`` were true."""
        self._there, self._used = np.zeros(len(sizes), np.bool_), 0
        try:
            weakref.finalize(self, os.close, self._entered())
            self._lock_file = os.open(f"{self._prefix}{_LOCK}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unwritable(folder, error) from error
        weakref.finalize(self, os.close, self._lock_file)
        self._remove_left_over()

    def map(self, block: int) -> NDArray[np.uint8] | None:
        """Maps a block into memory, uint8 (bytes,), read-only; None if it is not there. No file stays open."""
        try:
            with pa.memory_map(self._path(block)) as file:
                buffer = file.read_buffer()
        except (OSError, pa.ArrowInvalid):
            return None
        if buffer.size != self.sizes[block]:  # another program has shortened it
            self.remove(block)
            return None
        return np.frombuffer(buffer, np.uint8)

    def has(self, block: int) -> bool:
        """Returns whether the block is there."""
        return os.path.exists(self._path(block))

    def remove(self, block: int) -> None:
        """Removes a block; readers keep what they have mapped."""
        with self._changing():
            self._put_aside(block)
        self._delete(block)

    def present(self) -> NDArray[np.int64]:
        """Returns the blocks that are there, ascending, int64 (P,)."""
        with self._locked() as lock:
            self._look(lock)
            return np.flatnonzero(self._there)

    def used_bytes(self) -> int:
        """Returns the size of all blocks that are there."""
        with self._locked() as lock:
            self._look(lock)
            return self._used

    def has_room(self, num_bytes: int, capacity: int, choose: Choose) -> bool:
        """Returns whether ``num_bytes`` can be stored, if all blocks have ``capacity`` bytes together."""
        with self._locked() as lock:
            self._look(lock)
            return choose(np.flatnonzero(self._there), self._used + num_bytes - capacity) is not None

    @contextmanager
    def making(self, block: int) -> Iterator[Store | None]:
        """Context in which this process alone makes a block: yields a function that stores its content, or None if it is there.

        It waits for another process that makes the block. What is removed is deleted at the end of the context: who has mapped
        it should let go before, or the last mapping deletes it, while Python's global lock is held. StorageError if the disk
        cannot be written.
        """
        descriptor = self._claimed(block)
        if descriptor is None:
            yield None
            return
        removed: list[int] | None = None

        def store(pieces: Sequence[memoryview], capacity: int, choose: Choose) -> list[int] | None:
            nonlocal removed
            removed = self._stored(block, descriptor, pieces, capacity, choose)
            return removed

        try:
            yield store
        finally:
            if removed is None and self._is_named(descriptor, self._part(block)):
                os.unlink(self._part(block))
            os.close(descriptor)
            for one in removed or ():
                self._delete(one)

    def _stored(
        self, block: int, descriptor: int, pieces: Sequence[memoryview], capacity: int, choose: Choose
    ) -> list[int] | None:
        try:
            _write(descriptor, pieces)
            with self._changing():
                removed = choose(np.flatnonzero(self._there), self._used + int(self.sizes[block]) - capacity)
                if removed is None:
                    return None
                for one in removed:
                    self._put_aside(one)
                os.rename(self._part(block), self._path(block))
                self._used += 0 if self._there[block] else int(self.sizes[block])
                self._there[block] = True
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return removed

    def _claimed(self, block: int) -> int | None:
        """Returns the descriptor of the block's part, locked, or None if the block is there."""
        part = self._part(block)
        while True:
            try:
                descriptor = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise unwritable(self.folder, error) from error
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for the process that makes the block
            if self._is_named(descriptor, part):
                if not self.has(block):
                    if os.fstat(
                        descriptor
                    ).st_size:  # of a killed process; else, ext4 writes a truncated file at once when it is closed
                        os.ftruncate(descriptor, 0)
                    return descriptor
                os.unlink(part)  # it was completed just before the part was opened
                os.close(descriptor)
                return None
            os.close(descriptor)  # it is complete, or the other one has given up
            if self.has(block):
                return None

    def _put_aside(self, block: int) -> None:
        with suppress(FileNotFoundError):
            os.rename(self._path(block), f"{self._path(block)}{_OLD}")
        self._used -= int(self.sizes[block]) if self._there[block] else 0
        self._there[block] = False

    def _delete(self, block: int) -> None:
        with suppress(FileNotFoundError):  # another process was faster
            os.unlink(f"{self._path(block)}{_OLD}")

    def _look(self, lock: int) -> None:
        """Lists the folder if another process has changed it."""
        count = int.from_bytes(os.pread(lock, 8, 0), "little")
        if count != self._seen:
            present = self._listed()
            self._there[:] = False
            self._there[present] = True
            self._used, self._seen = int(self.sizes[present].sum()), count

    def _listed(self, ending: str = "") -> NDArray[np.int64]:
        """Returns the blocks that have a file with the name NUMBER and ``ending``, ascending."""
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be read ({error.strerror})", "the folder of a cache", "restore its rights"
            ) from error
        numbers = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        blocks = [int(number) for number in numbers if number.isascii() and number.isdecimal()]
        return np.array(sorted(block for block in blocks if block < len(self.sizes)), np.int64)

    def _entered(self) -> int:
        """Makes the folder, and returns the descriptor that keeps others from giving it up."""
        while True:
            make_folders(self.folder)
            descriptor = os.open(f"{self._prefix}{_USED}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if self._is_named(descriptor, f"{self._prefix}{_USED}"):
                os.utime(descriptor)
                return descriptor
            os.close(descriptor)  # the folder was given up at this moment

    def _remove_left_over(self) -> None:
        """Removes what a killed process has left."""
        for block in self._listed(_OLD).tolist():
            self._delete(block)
        for block in self._listed(_PART).tolist():
            try:
                descriptor = os.open(self._part(block), os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_named(descriptor, self._part(block)):
                    os.unlink(self._part(block))
            except OSError:  # its maker lives
                pass
            finally:
                os.close(descriptor)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Context in which this process alone changes which blocks are there, and knows them."""
        with self._locked() as lock:
            self._look(lock)
            count = self._seen + 1
            os.pwrite(
                lock, count.to_bytes(8, "little"), 0
            )  # first, so that others look again if this process is killed
            yield
            self._seen = count

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Context with the lock of the folder; yields its descriptor."""
        with self._lock:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield self._lock_file
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @staticmethod
    def _is_named(descriptor: int, path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def _path(self, block: int) -> str:
        return f"{self._prefix}{block}"

    def _part(self, block: int) -> str:
        return f"{self._prefix}{block}{_PART}"


def _write(descriptor: int, pieces: Sequence[memoryview]) -> None:
    """Writes all ``pieces``, one after the other."""
    left = deque(pieces)
    while left:
        written = os.writev(descriptor, list(islice(left, _MOST_PIECES)))
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]


class _OtherCache(NamedTuple):
    """A cache of other blocks beside one."""

    used_at: float
    """When a process has begun to use it, in seconds since 1970."""
    bytes: int
    folder: Path


def caches_beside(folder: Path) -> list[_OtherCache]:
    """Returns the caches beside the one in ``folder``, the one that was used longest ago first."""
    found = list[_OtherCache]()
    for other in [one for one in folder.parent.iterdir() if one != folder and one.is_dir()]:
        used, size = other / _USED, 0
        with suppress(OSError), os.scandir(other) as files:  # another process may give it up
            size = sum(file.stat().st_size for file in files)
            found.append(_OtherCache((used if used.exists() else other).stat().st_mtime, size, other))
    return sorted(found)


def give_up(cache: _OtherCache) -> bool:
    """Removes a cache, unless a process uses it; returns whether it is gone."""
    folder = cache.folder
    if folder.suffix != _GONE:
        try:
            descriptor = os.open(folder / _USED, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = folder.rename(folder.with_suffix(_GONE))
        except OSError:  # it is in use, or another process removes it
            return False
        finally:
            os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    return True
