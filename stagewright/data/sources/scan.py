"""Scans image files: opens and decodes each of them before anything is planned, and caches the results.

Results are cached in one Parquet file per root folder, now and then and at the end. A cached result is used if path, size, inode
and times of the last change are the same, so a second scan of 60,000 files takes one second. Damaged files are not cached, since
they may be repaired without a change of size and time. A damaged file is reported with a reason, never with an exception.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.images import limits
from stagewright.data.images.decode import NOT_IDENTIFIED, identified, image_extensions, measure
from stagewright.data.images.stored import read_file
from stagewright.errors import StorageError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import FORBIDDEN, retry_io
from stagewright.storage.parquet import one_array, parse_table, write_table
from stagewright.system.threads import Pool, as_finished

pc: Any = pyarrow.compute  # its functions are made on import, where type checkers do not see them

Progress = Callable[[int, int], None]

DIGEST_BYTES = 16
_CHUNK = 64
_SAVE_SECONDS = 60.0
_INODE_BITS = 2**63 - 1
_MAX_UNKNOWN_BYTES = 1 << 26
"""A larger file without an image extension is read completely only if its first bytes look like an image."""


@dataclass(eq=False)
class Scan:
    """The results of a scan of N files, in the order of the files."""

    digests: NDArray[np.uint8]
    """(N, 16): blake2b-128 of the bytes; zeros if a file could not be opened."""
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    """(N,): upright size in pixels (EXIF orientation applied); 0 if a file cannot be read."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Row -> why the file is not a readable image."""
    not_images: set[int] = field(default_factory=set)
    """The rows of ``reasons`` whose content and extension are both not those of an image."""
    notes: list[str] = field(default_factory=list)
    stamps: NDArray[np.int64] | None = None
    """(N, 3): size in bytes, st_mtime_ns and st_ctime_ns of each file; None if the images are not separate files."""

    @classmethod
    def empty(cls, count: int) -> Scan:
        """Returns a scan of ``count`` files without results."""
        size = np.zeros(count, np.int32)
        return cls(np.zeros((count, DIGEST_BYTES), np.uint8), size, size.copy())


def digest_of(data: bytes) -> bytes:
    """Returns the blake2b hash of ``data``, 16 bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def described(data: bytes, max_pixels: int) -> dict[str, Any]:
    """Returns what an index says of the image file ``data``: digest, width and height, or the reason why it cannot be read."""
    found: dict[str, Any] = {"digest": digest_of(data)}
    try:
        found["width"], found["height"] = measure(data, max_pixels)
    except OSError as error:
        found["reason"] = str(error)
    return found


def hex_strings(digests: NDArray[np.uint8]) -> pa.StringArray:
    """Converts (N, 16) bytes to N strings of 32 hexadecimal digits."""
    text = binascii.hexlify(np.ascontiguousarray(digests).data)
    offsets = np.arange(0, 2 * DIGEST_BYTES * (len(digests) + 1), 2 * DIGEST_BYTES, dtype=np.int32)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(text))


def scan(
    root: str,
    paths: pa.StringArray,
    *,
    max_pixels: int = limits.MOST_PIXELS,
    workers: int = 2,
    progress: Progress | None = None,
) -> Scan:
    """Scans every file of ``paths`` (relative to ``root``, each path once) with ``workers`` threads.

    An image with more than ``max_pixels`` is not readable.
    ``progress(done, total)`` is called from time to time. The results of an interrupted scan are cached too.
    """
    stamps, inodes = _stamps(root, paths)

    def content(row: int) -> bytes | str:
        return content_or_reason(os.path.join(root, paths[row].as_py()), int(stamps[row, 0]))

    columns = (np.ascontiguousarray(column) for column in (*stamps.T, inodes))
    identity = {name: pa.array(column) for name, column in zip(_STAMPS, columns, strict=True)}
    files = ScannedFiles(os.path.abspath(root), paths, identity, lambda rows: nullcontext(content))
    found = scan_files(files, max_pixels=max_pixels, workers=workers, progress=progress)
    found.stamps = stamps
    return found


Content = Callable[[int], bytes | str]
"""Returns the bytes of a row that may be an image, or the reason why there are none."""


@dataclass(frozen=True, eq=False)
class ScannedFiles:
    """N files to scan, wherever they are."""

    place: str
    """The folder or URL by which results are cached."""
    paths: pa.StringArray
    identity: Mapping[str, pa.Array]
    """Columns (N,): as long as a path has the same values, its file is the same."""
    open: Callable[[NDArray[np.int64]], AbstractContextManager[Content]]
    """Given the rows that will be read, in this order, returns a context manager of what reads them."""


def scan_files(files: ScannedFiles, *, max_pixels: int, workers: int, progress: Progress | None) -> Scan:
    """Scans ``files``, without ``stamps``; arguments and results as for :func:`scan`."""
    count = len(files.paths)
    task = _Task(files, max_pixels, Scan.empty(count), np.zeros(count, bool))
    with _result_cache(task) as save:
        todo = np.flatnonzero(~task.done)
        finished = count - len(todo)
        if progress is not None:
            progress(finished, count)
        chunks = [todo[index : index + _CHUNK] for index in range(0, len(todo), _CHUNK)]
        saved = time.monotonic()
        with files.open(todo) as content, Pool(max(workers, 1), "scan") as pool:
            for chunk_done in as_finished([pool.submit(_scan_rows, task, chunk, content) for chunk in chunks]):
                finished += chunk_done.result()
                if progress is not None:
                    progress(finished, count)
                if time.monotonic() - saved > _SAVE_SECONDS:  # a killed process leaves these behind
                    save()
                    saved = time.monotonic()
    task.found.not_images.update(not_images(files.paths, task.found.reasons))
    return task.found


@dataclass(eq=False)
class _Task:
    """The files of a scan, and the results so far."""

    files: ScannedFiles
    max_pixels: int
    found: Scan
    done: NDArray[np.bool_]
    """(N,): True for scanned files that are not damaged; only these are cached."""


def _stamps(root: str, paths: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the stamps (N, 3) as in Scan and the inodes (N,) of files; -1 if there is no file."""
    stamps, inodes = np.full((len(paths), 3), -1, np.int64), np.full(len(paths), -1, np.int64)
    for row, path in enumerate(paths.to_pylist()):
        try:
            status = retry_io(os.path.join(root, path), os.stat, final=FORBIDDEN)
        except OSError:
            continue
        stamps[row] = stamp_of(status)
        inodes[row] = status.st_ino & _INODE_BITS
    return stamps, inodes


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Returns what changes if a file changes: size in bytes, st_mtime_ns, st_ctime_ns."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _scan_rows(task: _Task, rows: NDArray[np.int64], content: Content) -> int:
    """Scans the files ``rows`` of ``task`` and stores the results in it; returns the number of rows."""
    found = task.found
    for row in rows.tolist():
        data = content(row)
        if isinstance(data, str):
            found.reasons[row] = data
            continue
        found.digests[row] = np.frombuffer(digest_of(data), np.uint8)
        try:
            found.widths[row], found.heights[row] = measure(data, task.max_pixels)
        except OSError as error:
            found.reasons[row] = str(error)
            continue
        task.done[row] = True
    return len(rows)


def content_or_reason(path: str, size: int | None = None) -> bytes | str:
    """Returns the bytes of a file that may be an image, or the reason why there are none. ``size`` in bytes, if it is known."""
    try:
        data = read_image(path, os.path.getsize(path) if size is None else size)
    except OSError as error:
        return f"the file cannot be opened: {error.strerror or error}"
    return NOT_IDENTIFIED if data is None else data


def read_image(path: str, size: int) -> bytes | None:
    """Returns the bytes of the file, or None if it is large and neither its name nor its first bytes are of an image."""
    return None if is_doubtful(path, size) and not identified(path) else read_file(path)


def is_doubtful(path: str, size: int) -> bool:
    """Whether a file of ``size`` bytes is so large, and its name so little that of an image, that it is looked at first."""
    return size > _MAX_UNKNOWN_BYTES and not has_image_extension(path)


def not_images(paths: pa.StringArray, reasons: Mapping[int, str]) -> set[int]:
    """Returns the rows of ``reasons``, of files that cannot be read, that are no images by their content nor by their name."""
    return {
        row
        for row, reason in reasons.items()
        if reason == NOT_IDENTIFIED and not has_image_extension(paths[row].as_py())
    }


def has_image_extension(path: str) -> bool:
    """Whether the extension of ``path`` is that of an image format."""
    return os.path.splitext(path)[1].lower() in image_extensions()


@contextmanager
def _result_cache(task: _Task) -> Iterator[Callable[[], object]]:
    """Restores cached results of the same place on entry; on exit, also after an error, caches the new results. Yields a function
    that does so in between."""
    place = os.fsencode(task.files.place)
    file = cache_folder("scans", hashlib.blake2b(place, digest_size=16).hexdigest() + ".parquet")
    try:
        cached = _read_cache(file, _schema_of(task.files))
    except OSError as error:  # the cache file is not replaced, since it may be readable next time
        task.found.notes.append(
            f"the cached results of earlier scans cannot be read: {file}: {error.strerror or error}"
        )
        yield lambda: None
        return
    _restore(task, cached)
    known = int(task.done.sum())

    def save() -> str:
        """Caches the results so far, and returns why this is not possible."""
        nonlocal known
        count = int(task.done.sum())
        if count == known:
            return ""
        other_rows = cached.filter(pc.invert(pc.is_in(cached["path"], task.files.paths)))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_table(pa.concat_tables([other_rows, _as_table(task)]), file)
        except (OSError, StorageError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            return f"the results of the scan could not be cached in {file.parent}: {reason}"
        known = count
        return ""

    try:
        yield save
    finally:
        if problem := save():
            task.found.notes.append(problem)


def _read_cache(file: Path, schema: pa.Schema) -> pa.Table:
    """Returns the cached results of earlier scans.

    The table is empty if there is no cache file, if it is damaged, or if another version of Pillow wrote it. OSError if the
    file exists and cannot be read now.
    """
    try:
        table = parse_table(read_file(str(file)))
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        return schema.empty_table()
    whole = table.schema.equals(schema, check_metadata=True) and not any(column.null_count for column in table.columns)
    return table if whole else schema.empty_table()


def _restore(task: _Task, cached: pa.Table) -> None:
    """Copies the cached results of unchanged files into ``task``."""
    index = pc.index_in(task.files.paths, one_array(cached["path"])).fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(index >= 0)
    unchanged = np.ones(len(rows), bool)
    for name, now in task.files.identity.items():
        same = pc.equal(cached[name].take(pa.array(index[rows])), now.take(pa.array(rows)))
        unchanged &= same.to_numpy(zero_copy_only=False)
    pixels = np.prod([cached[name].to_numpy()[index[rows]] for name in ("width", "height")], axis=0, dtype=np.int64)
    rows = rows[unchanged & (pixels <= task.max_pixels)]
    hits = cached.take(pa.array(index[rows]))
    task.found.digests[rows] = np.frombuffer(b"".join(hits["digest"].to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
    task.found.widths[rows], task.found.heights[rows] = hits["width"].to_numpy(), hits["height"].to_numpy()
    task.done[rows] = True


def _as_table(task: _Task) -> pa.Table:
    found, done = task.found, pa.array(task.done.copy())  # first, since threads set it last
    buffers = [None, pa.py_buffer(found.digests.tobytes())]
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(task.files.paths), buffers)
    sizes = (pa.array(column.copy()) for column in (found.widths, found.heights))
    columns = [task.files.paths, digests, *task.files.identity.values(), *sizes]
    return pa.Table.from_arrays(columns, schema=_schema_of(task.files)).filter(done)


_STAMPS = ("size", "mtime_ns", "ctime_ns", "inode")
_VERSION = f"3 pillow {PIL.__version__}"
"""Another version of Pillow may read other files, and so do other limits."""


def _schema_of(files: ScannedFiles) -> pa.Schema:
    """Returns the schema of the cached results."""
    columns = {"path": pa.string(), "digest": pa.binary(DIGEST_BYTES)}
    columns |= {name: column.type for name, column in files.identity.items()}
    columns |= {"width": pa.int32(), "height": pa.int32()}
    return pa.schema(columns, metadata={"stagewright.scan": _VERSION})
