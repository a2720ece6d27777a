"""Pack check: every byte of a pack's parts compared with its checksum, once for each state of the files.

What has been found sound is remembered in the cache folder by (file, size, modification time), as a scan is. Owns the
promise that a damaged record is named before anything trains on it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stagewright.data.pack.format import PartFile, damaged, has_crc32, record_crcs
from stagewright.data.pack.reader import Pack
from stagewright.data.sources.scan import Progress, cache_folder
from stagewright.errors import DataError, StorageError
from stagewright.storage.files import FORBIDDEN, missing_or_unreadable, read_file, retry_io, write_whole
from stagewright.system.threads import Pool
from stagewright.text import counted, some

State = list[int]
"""Size in bytes, modification time in nanoseconds, crc32."""


def check_records(pack: Pack, *, workers: int = 2, progress: Progress | None = None) -> tuple[str, ...]:
    """Compares all parts of ``pack`` with their checksums, with ``workers`` threads; returns notes for a person.

    ``progress(done, total)`` counts records. DataError that names the damaged records, or the part if it is not in its
    records that it is damaged.
    """
    file = _memory(pack.folder)
    notes: list[str] = []
    known = _recall(file, notes)
    todo = [part for part in pack.head.parts if known.get(part.file) != _state(pack.folder, part)]
    done = pack.head.num_records - sum(part.rows for part in todo)
    if progress is not None:
        progress(done, pack.head.num_records)
    if not todo:
        return ()
    found: list[DataError] = []
    with _remembered(file, known, notes), Pool(max(workers, 1), "check") as pool:
        futures = {pool.submit(_check, pack, part): part for part in todo}
        try:
            for future in as_completed(futures):
                part = futures[future]
                try:
                    known[part.file] = future.result()
                except DataError as error:
                    found.append(error)
                done += part.rows
                if progress is not None:
                    progress(done, pack.head.num_records)
        finally:
            pool.close()
    if found:
        raise min(found, key=str)
    return tuple(notes)


def _state(folder: Path, part: PartFile) -> State:
    try:
        status = retry_io(folder / part.file, os.stat)
    except OSError as error:
        raise missing_or_unreadable(folder / part.file, error) from error
    return [status.st_size, status.st_mtime_ns, part.crc32]


def _check(pack: Pack, part: PartFile) -> State:
    """The state of a part that is sound; DataError if it is not."""
    state = _state(pack.folder, part)
    if not has_crc32(pack.folder / part.file, part.crc32):
        raise _locate(pack, part)
    return state


def _locate(pack: Pack, part: PartFile) -> DataError:
    """The error that says what in a part is damaged."""
    index = pack.columns("path", "crc32").slice(0, pack.head.num_listed)
    rows = np.flatnonzero(index["crc32"].is_valid().to_numpy())[part.first : part.first + part.rows]
    expected = index["crc32"].take(rows).to_numpy()
    wrong = np.flatnonzero(record_crcs(pack.folder, part) != expected)
    if not len(wrong):
        return damaged(
            pack.folder, f"{part.file} has another checksum than when it was written, outside of its pictures"
        )
    paths = index["path"].take(rows[wrong]).to_pylist()
    names = some((f"{part.first + at:,} ({path})" for at, path in zip(wrong.tolist(), paths, strict=True)), 3)
    what = "record" if len(wrong) == 1 else f"{counted(len(wrong), 'record')}:"
    return damaged(pack.folder, f"{what} {names} in {part.file} has another checksum than when it was written")


def _memory(folder: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=16).hexdigest()
    return cache_folder("packs", f"{name}.json")


def _recall(file: Path, notes: list[str]) -> dict[str, State]:
    """What earlier checks found sound; nothing if there was none, the file is damaged or, with a note, cannot be read now."""
    try:
        known = json.loads(read_file(file, final=FORBIDDEN))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        notes.append(f"what earlier checks found sound is not used: {file}: {error.strerror or error}")
        return {}
    return known if isinstance(known, dict) else {}


@contextmanager
def _remembered(file: Path, known: dict[str, State], notes: list[str]) -> Iterator[None]:
    """Keeps ``known`` on leaving, however that comes about."""
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(known), durable=False)
        except (OSError, StorageError) as error:
            reason = str(error).splitlines()[0]
            notes.append(f"that the pack is sound could not be kept in {file.parent}: {reason}")
