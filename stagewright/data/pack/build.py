"""Packing: a data set's pictures, made smaller once and written into the files of a pack.

Owns two promises. A packing that is interrupted, however that comes about, goes on where it was and ends with the same
bytes as one that was not. And a pack holds exactly what its arguments and the source say: what is there of another source
or of other arguments is refused, what is damaged is made anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stagewright.data.pack.format import HEAD, INDEX, UNFINISHED, Encoding, Head, PartFile, has_crc32, record_crcs
from stagewright.data.pack.reader import is_pack
from stagewright.data.pack.records import Job, Record, encoded, make
from stagewright.data.pack.writer import Span, finish, write_head, write_span
from stagewright.data.sources.folders import place_of
from stagewright.data.sources.local import list_source
from stagewright.data.sources.scan import Progress, scan
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import unwritable
from stagewright.system.threads import Pool
from stagewright.text import counted, some

Say = Callable[[str], None]

PART_BYTES = 1 << 28
_SAMPLE = 24
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_WRITING = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
)
_NO_WRITING += (errno.ENAMETOOLONG,)


@dataclass(frozen=True)
class PackSummary:
    """What a packing came to."""

    folder: Path
    records: int
    bytes: int
    """Of all part files."""
    seconds: float
    excluded: int
    """Files and rows without a record."""
    original_bytes: int
    """Size of the files that the records were made of."""
    made: int
    """Records that were made by this call; the others were there."""


def pack(
    source: str,
    out: str | Path,
    settings: Data,
    *,
    size: int = 256,
    encoding: Encoding = "jpeg",
    quality: int = 90,
    workers: int = 2,
    overwrite: bool = False,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
    say: Say | None = None,
) -> PackSummary:
    """Writes the pictures of ``source`` into the folder ``out``, or goes on where an earlier call was interrupted.

    Pictures whose short side is more than ``size`` pixels are shrunk to it, no picture is enlarged. ``encoding`` is
    ``jpeg`` (of ``quality``, 4:2:0; JPEGs that need neither shrinking nor turning keep their own bytes) or ``raw``. Part
    files end at the first record at which they have ``part_bytes``. ``progress(done, total)`` counts the files of the scan
    first and then the records. DataError for arguments that cannot be meant, a source without readable pictures, and a
    folder that holds something else, unless that is another pack and ``overwrite``; StorageError if there is no room.
    """
    began = time.perf_counter()
    say = say or (lambda text: None)
    _check_arguments(source, size, encoding, quality)
    listing = list_source(source, settings)
    folder = place_of(out)
    _check_place(folder, place_of(source))
    say(f"Reading {counted(len(listing.paths), 'file')} of {source}.")
    found = scan(listing.root, listing.paths, workers=workers, progress=progress)
    job = Job.of(source, listing, found, settings, size, encoding, quality, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_here(folder):
            made = _carry_out(job, workers, overwrite, part_bytes, progress, say)
        head = Head.read(folder / HEAD)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return PackSummary(
        folder=folder,
        records=head.num_records,
        bytes=sum(part.bytes for part in head.parts),
        seconds=time.perf_counter() - began,
        excluded=len(listing.excluded) + len(found.reasons),
        original_bytes=sum(part.original_bytes for part in head.parts),
        made=made,
    )


def _carry_out(job: Job, workers: int, overwrite: bool, part_bytes: int, progress: Progress | None, say: Say) -> int:
    """Makes what is not there yet; returns how many records that were."""
    old = _existing(job, overwrite)
    crcs = np.zeros(len(job.rows), np.uint32)
    parts: list[PartFile] = []
    spans: list[Span] = []
    there = old.parts if old else ()
    if there:
        say(f"Checking {counted(len(there), 'part')} that are there already.")
    with Pool(max(workers, 1), "pack") as pool:
        checked = [done.result() for done in [pool.submit(_read_crcs, job.folder, part) for part in there]]
    for number, (part, sound) in enumerate(zip(there, checked, strict=True)):
        parts.append(part)
        if sound is None:
            say(f"{part.file} is damaged or gone and is made anew.")
            spans.append(Span(number, part.first, part.rows))
        else:
            crcs[part.first : part.first + part.rows] = sound
    end = parts[-1].first + parts[-1].rows if parts else 0
    if end < len(job.rows):
        spans.append(Span(len(parts), end, None))
    todo = np.concatenate([np.empty(0, np.int64), *(_records(job, span) for span in spans)])
    if not len(todo) and old and (job.folder / HEAD).is_file() and _index_is_sound(job.folder, old):
        return 0
    _check_room(job, todo, say)
    write_head(job.folder / UNFINISHED, replace(job.head, parts=tuple(parts)))
    (job.folder / HEAD).unlink(missing_ok=True)
    if len(todo):
        done = len(job.rows) - len(todo)
        say(f"Packing {counted(len(todo), 'picture')}" + (f"; {done:,} are there already." if done else "."))
        with encoded(job, todo, workers) as records:
            told = _told(records, done, len(job.rows), progress)
            for span in spans:
                for number, part in write_span(job, span, told, crcs, part_bytes):
                    parts[number : number + 1] = [part]
                    write_head(job.folder / UNFINISHED, replace(job.head, parts=tuple(parts)))
    finish(job, parts, crcs)
    return len(todo)


def _existing(job: Job, overwrite: bool) -> Head | None:
    """The head of what lies in the folder already; DataError if that is something else."""
    folder = job.folder
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return None
    if not names & {HEAD, UNFINISHED}:
        if all(
            name.startswith((".part-", f".{UNFINISHED}.")) for name in names
        ):  # killed before the first part was whole
            return None
        raise DataError(
            f"{folder} holds other things: {some(sorted(names), 3)}",
            "a new folder, or a pack to go on with",
            "choose another place with --out",
        )
    try:
        old = Head.read(folder / (HEAD if HEAD in names else UNFINISHED))
    except DataError:
        if not overwrite:
            raise
        _clear(folder)
        return None
    kinds = ("encoding", "size", "quality", "resample")
    differences = [
        f"{name} {getattr(old, name)} instead of {getattr(job.head, name)}"
        for name in kinds
        if getattr(old, name) != getattr(job.head, name)
    ]
    if old.listing != job.head.listing:
        differences.append(f"other pictures, classes or columns ({old.num_listed:,} of {old.source})")
    if differences and overwrite:
        _clear(folder)
        return None
    if differences:
        raise DataError(
            f"{folder} holds another pack: {'; '.join(differences)}",
            "a new folder, or the arguments and pictures that the pack was begun with",
            "choose another place with --out, or replace the pack with --overwrite",
        )
    return old


def _clear(folder: Path) -> None:
    """Removes the files of a pack, the heads last: what is left after a kill is still known for a pack."""
    parts = sorted(path.name for path in folder.iterdir() if path.match("part-*.arrow") or path.match(".part-*.arrow"))
    for name in (*parts, INDEX, UNFINISHED, HEAD):
        (folder / name).unlink(missing_ok=True)


def _read_crcs(folder: Path, part: PartFile) -> NDArray[np.uint32] | None:
    """The crc32 of each record of a part that was written earlier; None if it is damaged or gone."""
    try:
        return record_crcs(folder, part) if has_crc32(folder / part.file, part.crc32) else None
    except (FileNotFoundError, DataError):
        return None


def _index_is_sound(folder: Path, head: Head) -> bool:
    try:
        return has_crc32(folder / INDEX, head.index_crc32)
    except FileNotFoundError:
        return False


def _records(job: Job, span: Span) -> NDArray[np.int64]:
    return np.arange(span.first, len(job.rows) if span.rows is None else span.first + span.rows)


def _check_room(job: Job, todo: NDArray[np.int64], say: Say) -> None:
    """StorageError if the disk has not the room that ``todo`` is expected to need."""
    pixels = job.widths[todo].astype(np.int64) * job.heights[todo]
    each = 3.0  # bytes a pixel
    if job.head.encoding == "jpeg" and len(todo):
        sample = np.unique(np.linspace(0, len(todo) - 1, _SAMPLE).astype(np.int64))
        each = sum(len(make(job, int(todo[at])).data) for at in sample) / float(pixels[sample].sum())
    needed = float(pixels.sum()) * each + 200.0 * len(job.rows)
    free = shutil.disk_usage(job.folder).free
    if len(todo):
        say(f"About {needed / 1e6:,.0f} MB will be written; {free / 1e6:,.0f} MB are free in {job.folder}.")
    if free < needed:
        raise StorageError(
            f"{free / 1e9:.3g} GB are free in {job.folder}",
            f"about {needed / 1e9:.3g} GB, for {counted(len(todo), 'picture')}",
            "make room, choose another disk with --out, or pack smaller (--size) or as jpeg",
        )


def _told(records: Iterable[Record], done: int, total: int, progress: Progress | None) -> Iterator[Record]:
    if progress is not None:
        progress(done, total)
    for at, record in enumerate(records, done + 1):
        if progress is not None:
            progress(at, total)
        yield record


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process; the kernel lets go however it ends. DataError if another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process is packing into {folder}", "one process for each pack", "wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _check_arguments(source: str, size: int, encoding: str, quality: int) -> None:
    if size < 8:
        raise DataError(
            f"--size {size}", "the short side of the packed pictures in pixels, 8 or more", "for example --size 256"
        )
    if encoding not in get_args(Encoding):
        raise DataError(
            f"--format {encoding}", ", ".join(get_args(Encoding)), "jpeg needs the least room, raw the least work"
        )
    if not 1 <= quality <= 100:
        raise DataError(f"--quality {quality}", "the quality of JPEG, 1 to 100", "for example --quality 90")
    if source.startswith("torchvision:"):
        raise DataError(
            f"{source} lies in memory as it is, and a pack would make it no faster",
            "a folder, a table or digits",
            f"train on {source} itself",
        )
    if is_pack(place_of(source)):
        raise DataError(f"{source!r} is a pack already", "the original pictures", "pack those")


def _check_place(folder: Path, source: Path) -> None:
    if source.is_dir() and folder.is_relative_to(source):
        raise DataError(
            f"{folder} lies within the pictures",
            f"a place beside {source}: in it the pack's files would count as data",
            "choose another place with --out",
        )
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise DataError(
            f"{folder} is a file, or a link that leads nowhere",
            "a folder that is new, or a pack",
            "choose another place with --out",
        )


def _cannot_write(folder: Path, error: OSError) -> Exception:
    """The error for a place that cannot be written; ``error`` itself where the system did not refuse anything."""
    if error.errno in _NO_ROOM:
        return StorageError(
            f"the disk is full: {folder} cannot be written ({error.strerror})",
            "room for the whole pack",
            "make room and give the same command again: what is finished is kept",
        )
    return error if error.errno is None else unwritable(folder, error)
