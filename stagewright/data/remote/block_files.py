"""The files of a cache of blocks, which several processes of a host share: a block is there as a whole, or not at all.

A block is a file with its number as the name. It is made under the name ``NUMBER.part``, whose lock its maker holds, and gets its
name when it is complete. The lock ends with the process, so whoever finds a part without a lock may take it over: a kill leaves
nothing to clean. Readers map a file into memory; it may be removed meanwhile. Room is given out under the lock of the folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.errors import StorageError
from stagewright.storage.files import make_folders, unwritable

_LOCK = "lock"
_PART = ".part"

Choose = Callable[[NDArray[np.int64], int], list[int] | None]
"""Returns which of the blocks (P,) to remove so that so many bytes become free, or None."""


class BlockFiles:
    """The files in ``folder`` of blocks with ``sizes`` (K,) in bytes."""

    def __init__(self, folder: Path, sizes: NDArray[np.int64]) -> None:
        self.folder, self.sizes = folder, sizes
        try:
            make_folders(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        self._remove_left_over()

    def map(self, block: int) -> NDArray[np.uint8] | None:
        """Maps a block into memory, uint8 (bytes,), read-only; None if it is not there. No file stays open."""
        try:
            with pa.memory_map(str(self._path(block))) as file:
                buffer = file.read_buffer()
        except (OSError, pa.ArrowInvalid):
            return None
        if buffer.size != self.sizes[block]:  # another program has shortened it
            self.remove(block)
            return None
        return np.frombuffer(buffer, np.uint8)

    def has(self, block: int) -> bool:
        """Returns whether the block is there."""
        return self._path(block).exists()

    def remove(self, block: int) -> None:
        """Removes a block; readers keep what they have mapped."""
        self._path(block).unlink(missing_ok=True)

    def present(self) -> NDArray[np.int64]:
        """Returns the blocks that are there, ascending, int64 (P,)."""
        return self._listed()[0]

    def used_bytes(self) -> int:
        """Returns the size of all blocks that are there or being made."""
        return int(sum(self.sizes[blocks].sum() for blocks in self._listed()))

    @contextmanager
    def making(self, block: int, capacity: int, choose: Choose) -> Iterator[Callable[[bytes], None] | None]:
        """Context in which this process alone makes a block: yields a function that stores its content, or None.

        It waits for another process that makes the block. None if the block is there then, or if there is no room: all blocks
        have ``capacity`` bytes together, and ``choose`` says which are removed. StorageError if the disk cannot be written.
        """
        descriptor = self._claimed(block, capacity, choose)
        if descriptor is None:
            yield None
            return
        try:
            yield lambda content: self._store(block, descriptor, content)
        finally:
            if self._is_named(descriptor, self._part(block)):  # it was not stored
                self._part(block).unlink(missing_ok=True)
            os.close(descriptor)

    def _store(self, block: int, descriptor: int, content: bytes) -> None:
        try:
            os.ftruncate(descriptor, 0)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.rename(self._part(block), self._path(block))
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _claimed(self, block: int, capacity: int, choose: Choose) -> int | None:
        """Returns the descriptor of the block's part, locked, or None if the block is there or there is no room."""
        while not self.has(block):
            with self._locked():
                descriptor = self._opened(block, capacity, choose)
            if descriptor is None:
                return None
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for the process that makes the block
            if self._is_named(descriptor, self._part(block)):
                return descriptor
            os.close(descriptor)  # it is complete, or the other one has given up
        return None

    def _opened(self, block: int, capacity: int, choose: Choose) -> int | None:
        part = self._part(block)
        try:
            if not part.exists():
                present, parts = self._listed()
                used = int(self.sizes[present].sum() + self.sizes[parts].sum())
                if (out := choose(present, used + int(self.sizes[block]) - capacity)) is None:
                    return None
                for one in out:
                    self.remove(one)
            return os.open(part, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _listed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the blocks that are there and those that are being made."""
        blocks, parts = list[int](), list[int]()
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be read ({error.strerror})", "the folder of a cache", "restore its rights"
            ) from error
        for name in names:
            number = name.removesuffix(_PART)
            if number.isascii() and number.isdecimal() and int(number) < len(self.sizes):
                (parts if name.endswith(_PART) else blocks).append(int(number))
        return np.array(sorted(blocks), np.int64), np.array(sorted(parts), np.int64)

    def _remove_left_over(self) -> None:
        """Removes parts that a killed process has left."""
        with self._locked():
            for block in self._listed()[1].tolist():
                try:
                    descriptor = os.open(self._part(block), os.O_WRONLY | os.O_CLOEXEC)
                except OSError:
                    continue
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._part(block).unlink(missing_ok=True)
                except OSError:  # its maker lives
                    pass
                finally:
                    os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.folder / _LOCK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _is_named(descriptor: int, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def _path(self, block: int) -> Path:
        return self.folder / str(block)

    def _part(self, block: int) -> Path:
        return self.folder / f"{block}{_PART}"
