"""Scan: every file is opened and decoded before anything is planned, and what was found is kept for the next time.

Owns the cache folder. The results of a scan lie there in one Parquet file for each root, by (path, size, modification
time), so that the second look at 60,000 files takes a second. Damaged files give a reason, never an exception.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.decode import NOT_IDENTIFIED, identified, measure, picture_extensions
from stagewright.data.manifest import one_array, read_table, write_table

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

Progress = Callable[[int, int], None]

DIGEST_BYTES = 16
_CHUNK = 64
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

    @classmethod
    def empty(cls, count: int) -> Scan:
        """A scan of ``count`` files that has found nothing yet."""
        size = np.zeros(count, np.int32)
        return cls(np.zeros((count, DIGEST_BYTES), np.uint8), size, size.copy())


def cache_folder(*names: str) -> Path:
    """``names`` in the folder for what can be made again: ``$STAGEWRIGHT_CACHE``, else ``~/.cache/stagewright``."""
    base = os.environ.get("STAGEWRIGHT_CACHE") or Path.home() / ".cache" / "stagewright"
    return Path(base, *names)


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
    with _remembered(task), _pool(workers) as pool:
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
        if reason == NOT_IDENTIFIED and not _claims_to_be_picture(paths[row].as_py()):
            task.found.not_pictures.add(row)
    return task.found


@dataclass(eq=False)
class _Task:
    """Files to look at, and what is known of them so far."""

    root: str
    paths: pa.StringArray
    sizes: NDArray[np.int64]
    """Bytes; -1 where there is no file."""
    times: NDArray[np.int64]
    """Modification time in nanoseconds."""
    found: Scan
    done: NDArray[np.bool_]
    """What may be kept: looked at, with a result that lies in the file itself."""

    @classmethod
    def of(cls, root: str, paths: pa.StringArray) -> _Task:
        sizes, times = np.full(len(paths), -1, np.int64), np.full(len(paths), -1, np.int64)
        for row, path in enumerate(paths.to_pylist()):
            try:
                status = os.stat(os.path.join(root, path))
            except OSError:
                continue
            sizes[row], times[row] = status.st_size, status.st_mtime_ns
        return cls(root, paths, sizes, times, Scan.empty(len(paths)), np.zeros(len(paths), bool))


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what it has not begun when it is left, so that Ctrl-C is quick."""
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="scan")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _look(task: _Task, rows: NDArray[np.int64]) -> int:
    """Fills in ``rows`` of ``task``; returns how many that are."""
    found = task.found
    for row, path in zip(rows.tolist(), task.paths.take(pa.array(rows)).to_pylist(), strict=True):
        try:
            data = _read(os.path.join(task.root, path), int(task.sizes[row]))
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
            if isinstance(error.__cause__, MemoryError):
                continue
        task.done[row] = True
    return len(rows)


def _read(path: str, size: int) -> bytes | None:
    """The bytes of the file; None where it is large and neither its name nor its head is a picture's."""
    if size > _READ_WHOLE and not _claims_to_be_picture(path) and not identified(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _claims_to_be_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in picture_extensions()


@contextmanager
def _remembered(task: _Task) -> Iterator[None]:
    """Fills in what an earlier scan of the same root knows; on leaving, however that comes about, keeps the news."""
    root = os.fsencode(os.path.abspath(task.root))
    file = cache_folder("scans", hashlib.blake2b(root, digest_size=16).hexdigest() + ".parquet")
    known = _recall(file)
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
            except OSError as error:
                reason = error.strerror or error
                task.found.notes.append(f"what the scan found could not be kept in {file.parent}: {reason}")


def _recall(file: Path) -> pa.Table:
    """What an earlier scan wrote; nothing if there is none, it is damaged, or another Pillow wrote it."""
    try:
        table = read_table(file)
    except (OSError, pa.ArrowException):
        return _SCHEMA.empty_table()
    return table if table.schema.equals(_SCHEMA, check_metadata=True) else _SCHEMA.empty_table()


def _fill_in(task: _Task, known: pa.Table) -> None:
    at = pc.index_in(task.paths, one_array(known["path"])).fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(at >= 0)
    same_size = known["size"].to_numpy()[at[rows]] == task.sizes[rows]
    rows = rows[same_size & (known["mtime_ns"].to_numpy()[at[rows]] == task.times[rows])]
    hits = known.take(pa.array(at[rows]))
    task.found.digests[rows] = np.frombuffer(b"".join(hits["digest"].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    task.found.widths[rows], task.found.heights[rows] = hits["width"].to_numpy(), hits["height"].to_numpy()
    reasons = zip(rows.tolist(), hits["reason"].to_pylist(), strict=True)
    task.found.reasons.update({row: reason for row, reason in reasons if reason is not None})
    task.done[rows] = True


def _as_table(task: _Task) -> pa.Table:
    found = task.found
    reasons = pa.array([found.reasons.get(row) for row in range(len(task.paths))], pa.string())
    buffers = [None, pa.py_buffer(found.digests.tobytes())]
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(task.paths), buffers)
    numbers = [pa.array(column) for column in (task.sizes, task.times, found.widths, found.heights)]
    columns = [task.paths, *numbers[:2], digests, *numbers[2:], reasons]
    return pa.Table.from_arrays(columns, schema=_SCHEMA).filter(pa.array(task.done))


_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "digest": pa.binary(DIGEST_BYTES),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),
    },
    # Another Pillow may read more, or less.
    metadata={"stagewright.scan": f"1 pillow {PIL.__version__}"},
)
