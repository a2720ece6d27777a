"""A file that is hashed while it is written."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO


class HashedFile:
    """A file for torch.save that hashes everything written to it. An OSError of a write is raised by ``flush``, since torch's
    C++ code would hide its cause."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self._error: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Writes ``data`` and returns its length, even if writing fails."""
        self.sha256.update(data)
        self.bytes += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        return len(data)

    def flush(self) -> None:
        """Waits until everything is on the disk; torch calls it at the end. OSError if a write has failed."""
        if self._error:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())
