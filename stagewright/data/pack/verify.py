"""Compares the parts of a pack with their checksums, so that a damaged record is reported before training.

Intact parts are recorded in the cache folder with their size and modification time. They are only checked again if one of
these changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stagewright.data.pack.format import PartFile, damaged, has_crc32, record_extents
from stagewright.data.pack.reader import Pack
from stagewright.data.sources.scan import Progress, cache_folder
from stagewright.errors import DataError, StorageError
from stagewright.storage.files import FORBIDDEN, missing_or_unreadable, read_file, retry_io, write_whole
from stagewright.storage.json_text import parse_object
from stagewright.system.threads import Pool, as_finished
from stagewright.text import counted, some

State = list[int]
"""Size in bytes, modification time in nanoseconds and expected crc32 of a part that was found intact."""


def check_records(pack: Pack, *, workers: int = 2, progress: Progress | None = None) -> tuple[str, ...]:
    """Compares all parts of ``pack`` with their checksums, with ``workers`` threads. Returns notes for the user.

    ``progress(done, total)`` is called with numbers of records. Raises DataError with the damaged records, or with the part
    if it is damaged outside of its records. Of a pack in an object store, each record is compared when it is read.
    """
    if pack.objects:
        return ()
    file = _cache_file(pack.folder)
    notes: list[str] = []
    known = _read_known(file, notes)
    todo = [part for part in pack.head.parts if known.get(part.file) != _state(pack.folder, part)]
    done = pack.head.num_records - sum(part.rows for part in todo)
    if progress is not None:
        progress(done, pack.head.num_records)
    if not todo:
        return ()
    errors: list[DataError] = []
    with _saved_at_end(file, known, notes), Pool(max(workers, 1), "check") as pool:
        tasks = {pool.submit(_check, pack, part): part for part in todo}
        try:
            for task in as_finished(tasks):
                part = tasks[task]
                try:
                    known[part.file] = task.result()
                except DataError as error:
                    errors.append(error)
                done += part.rows
                if progress is not None:
                    progress(done, pack.head.num_records)
        finally:
            pool.close()
    if errors:
        raise min(errors, key=str)
    return tuple(notes)


def _state(folder: Path, part: PartFile) -> State:
    try:
        status = retry_io(folder / part.file, os.stat)
    except OSError as error:
        raise missing_or_unreadable(folder / part.file, error) from error
    return [status.st_size, status.st_mtime_ns, part.crc32]


def _check(pack: Pack, part: PartFile) -> State:
    """Returns the state of a part if it is intact. Raises DataError if it is damaged."""
    state = _state(pack.folder, part)
    if not has_crc32(pack.folder / part.file, part.crc32):
        raise _damage_in(pack, part)
    return state


def _damage_in(pack: Pack, part: PartFile) -> DataError:
    """Returns the error that names the damaged records of a part."""
    index = pack.columns("path", "crc32").slice(0, pack.head.num_listed)
    rows = pack.rows_of(part)
    expected = index["crc32"].take(rows).to_numpy()
    wrong = np.flatnonzero(record_extents(pack.folder, part).crcs != expected)
    if not len(wrong):
        return damaged(pack.folder, f"{part.file} changed after the pack was written, but none of its pictures did")
    paths = index["path"].take(rows[wrong]).to_pylist()
    names = some((f"{part.first + at:,} ({path})" for at, path in zip(wrong.tolist(), paths, strict=True)), 3)
    what = "record" if len(wrong) == 1 else f"{counted(len(wrong), 'record')}:"
    return damaged(pack.folder, f"{what} {names} in {part.file} changed after the pack was written")


def _cache_file(folder: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=16).hexdigest()
    return cache_folder("packs", f"{name}.json")


def _read_known(file: Path, notes: list[str]) -> dict[str, State]:
    """Reads the states of the parts that earlier checks found intact.

    Returns an empty dict if there was no earlier check or the file is damaged. If the file cannot be read now, also adds a
    note to ``notes``.
    """
    try:
        return dict(parse_object(read_file(file, final=FORBIDDEN)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        notes.append(f"the results of earlier checks cannot be read: {file}: {error.strerror or error}")
        return {}


@contextmanager
def _saved_at_end(file: Path, known: dict[str, State], notes: list[str]) -> Iterator[None]:
    """Writes ``known`` to ``file`` at the end of the block, even after an error. A failed write adds a note to ``notes``."""
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(known), durable=False)
        except (OSError, StorageError) as error:
            reason = str(error).splitlines()[0]
            notes.append(f"the result of checking the pack could not be saved in {file.parent}: {reason}")
