"""Scan: every file is opened and decoded before anything is planned, and what was found is kept for the next time.

The results of a scan lie in the cache folder in one Parquet file for each root, by path, size, inode and the times of the last
change, so that the second look at 60,000 files takes a second. What was found damaged is looked at every time: it may have been
repaired, with the size and time that it should have. Damaged files give a reason, never an exception.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.images.decode import NOT_IDENTIFIED, identified, measure, picture_extensions
from stagewright.data.images.stored import read_file
from stagewright.errors import StorageError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import FORBIDDEN, retry_io
from stagewright.storage.parquet import one_array, parse_table, write_table
from stagewright.system.threads import Pool

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

Progress = Callable[[int, int], None]

DIGEST_BYTES = 16
_CHUNK = 64
_INODE_BITS = 2**63 - 1
_READ_WHOLE = 1 << 26
"""Files without a picture's extension are only read beyond their head if they are smaller than this many bytes."""


@dataclass(eq=False)
class Scan:
    """What the files of a scan hold, in their order."""

    digests: NDArray[np.uint8]
    """(N, 16): blake2b-128 of the bytes; zeros where a file could not be opened."""
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    """(N,): upright size in pixels; 0 where a file cannot be read."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Row -> why it is not a readable picture."""
    not_pictures: set[int] = field(default_factory=set)
    """Those of ``reasons`` that do not claim to be pictures either, by content or by name."""
    notes: list[str] = field(default_factory=list)
    stamps: NDArray[np.int64] | None = None
    """(N, 3): size in bytes, times of the last change of content and of anything (st_mtime_ns, st_ctime_ns); None where the
    pictures lie in no files of their own."""

    @classmethod
    def empty(cls, count: int) -> Scan:
        """A scan of ``count`` files that has found nothing yet."""
        size = np.zeros(count, np.int32)
        return cls(np.zeros((count, DIGEST_BYTES), np.uint8), size, size.copy())


def digest_of(data: bytes) -> bytes:
    """blake2b of ``data`` in 16 bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def hex_strings(digests: NDArray[np.uint8]) -> pa.StringArray:
    """(N, 16) bytes as N strings of 32 hexadecimal digits."""
    text = binascii.hexlify(np.ascontiguousarray(digests).tobytes())
    offsets = np.arange(0, 2 * DIGEST_BYTES * (len(digests) + 1), 2 * DIGEST_BYTES, dtype=np.int32)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets.tobytes()), pa.py_buffer(text))


def scan(root: str, paths: pa.StringArray, *, workers: int = 2, progress: Progress | None = None) -> Scan:
    """Looks at every file of ``paths`` (relative to ``root``, no path twice) with ``workers`` threads.

    ``progress(done, total)`` is called as it goes on. What an interrupted scan has done is kept.
    """
    task = _Task.of(root, paths)
    with _remembered(task), Pool(max(workers, 1), "scan") as pool:
        todo = np.flatnonzero(~task.done)
        finished = len(paths) - len(todo)
        if progress is not None:
            progress(finished, len(paths))
        chunks = (todo[at : at + _CHUNK] for at in range(0, len(todo), _CHUNK))
        for future in as_completed([pool.submit(_look, task, chunk) for chunk in chunks]):
            finished += future.result()
            if progress is not None:
                progress(finished, len(paths))
    for row, reason in task.found.reasons.items():
        if reason == NOT_IDENTIFIED and not claims_to_be_picture(paths[row].as_py()):
            task.found.not_pictures.add(row)
    return task.found


@dataclass(eq=False)
class _Task:
    """Files to look at, and what is known of them so far."""

    root: str
    paths: pa.StringArray
    stamps: NDArray[np.int64]
    """(N, 3) as in Scan; -1 where there is no file."""
    inodes: NDArray[np.int64]
    found: Scan
    done: NDArray[np.bool_]
    """What may be kept: looked at, and sound."""

    @classmethod
    def of(cls, root: str, paths: pa.StringArray) -> _Task:
        stamps, inodes = np.full((len(paths), 3), -1, np.int64), np.full(len(paths), -1, np.int64)
        for row, path in enumerate(paths.to_pylist()):
            try:
                status = retry_io(os.path.join(root, path), os.stat, final=FORBIDDEN)
            except OSError:
                continue
            stamps[row] = stamp_of(status)
            inodes[row] = status.st_ino & _INODE_BITS
        found = Scan.empty(len(paths))
        found.stamps = stamps
        return cls(root, paths, stamps, inodes, found, np.zeros(len(paths), bool))


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file does: its size, and the times of its last change."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _look(task: _Task, rows: NDArray[np.int64]) -> int:
    """Fills in ``rows`` of ``task``; returns how many that are."""
    found = task.found
    for row, path in zip(rows.tolist(), task.paths.take(pa.array(rows)).to_pylist(), strict=True):
        try:
            data = read_picture(os.path.join(task.root, path), int(task.stamps[row, 0]))
        except OSError as error:
            found.reasons[row] = f"the file cannot be opened: {error.strerror or error}"
            continue
        if data is None:
            found.reasons[row] = NOT_IDENTIFIED
            continue
        found.digests[row] = np.frombuffer(digest_of(data), np.uint8)
        try:
            found.widths[row], found.heights[row] = measure(data)
        except OSError as error:
            found.reasons[row] = str(error)
            continue
        task.done[row] = True
    return len(rows)


def read_picture(path: str, size: int) -> bytes | None:
    """The bytes of the file; None where it is large and neither its name nor its head is a picture's."""
    if size > _READ_WHOLE and not claims_to_be_picture(path) and not identified(path):
        return None
    return read_file(path)


def claims_to_be_picture(path: str) -> bool:
    """Whether the extension of ``path`` is one of an image."""
    return os.path.splitext(path)[1].lower() in picture_extensions()


@contextmanager
def _remembered(task: _Task) -> Iterator[None]:
    """Fills in what an earlier scan of the same root knows; on leaving, however that comes about, keeps the news."""
    root = os.fsencode(os.path.abspath(task.root))
    file = cache_folder("scans", hashlib.blake2b(root, digest_size=16).hexdigest() + ".parquet")
    try:
        known = _recall(file)
    except OSError as error:  # it stays as it is: at the next time it may be read again
        task.found.notes.append(f"what earlier scans found is not used: {file}: {error.strerror or error}")
        yield
        return
    _fill_in(task, known)
    before = int(task.done.sum())
    try:
        yield
    finally:
        if int(task.done.sum()) > before:
            others = known.filter(pc.invert(pc.is_in(known["path"], task.paths)))
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_table(pa.concat_tables([others, _as_table(task)]), file)
            except (OSError, StorageError) as error:
                reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
                task.found.notes.append(f"what the scan found could not be kept in {file.parent}: {reason}")


def _recall(file: Path) -> pa.Table:
    """What an earlier scan wrote; nothing if there is none, it is damaged, or another Pillow wrote it. OSError if it cannot be
    read now."""
    try:
        table = parse_table(read_file(str(file)))
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        return _SCHEMA.empty_table()
    return table if table.schema.equals(_SCHEMA, check_metadata=True) else _SCHEMA.empty_table()


def _fill_in(task: _Task, known: pa.Table) -> None:
    at = pc.index_in(task.paths, one_array(known["path"])).fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(at >= 0)
    current = (*task.stamps[rows].T, task.inodes[rows])
    before = [known[name].to_numpy()[at[rows]] for name in ("size", "mtime_ns", "ctime_ns", "inode")]
    rows = rows[np.all([now == then for now, then in zip(current, before, strict=True)], axis=0)]
    hits = known.take(pa.array(at[rows]))
    task.found.digests[rows] = np.frombuffer(b"".join(hits["digest"].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    task.found.widths[rows], task.found.heights[rows] = hits["width"].to_numpy(), hits["height"].to_numpy()
    task.done[rows] = True


def _as_table(task: _Task) -> pa.Table:
    found = task.found
    buffers = [None, pa.py_buffer(found.digests.tobytes())]
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(task.paths), buffers)
    kept = (*task.stamps.T, task.inodes, found.widths, found.heights)
    columns = [task.paths, digests, *(pa.array(np.ascontiguousarray(column)) for column in kept)]
    return pa.Table.from_arrays(columns, schema=_SCHEMA).filter(pa.array(task.done))


_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "digest": pa.binary(DIGEST_BYTES),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "ctime_ns": pa.int64(),
        "inode": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
    },
    # Another Pillow may read more, or less.
    metadata={"stagewright.scan": f"2 pillow {PIL.__version__}"},
)
