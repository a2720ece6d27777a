"""Makes a pack: resizes the images of a data set once and writes them into a few large files.

It gives two guarantees. If packing is interrupted in any way, the same call continues it, and the pack has the same bytes as
without the interruption. A pack contains exactly the images of its source, made with its arguments: a pack of another source
or with other arguments is refused, and damaged files are written again.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stagewright.data.account import Account
from stagewright.data.pack.format import (
    HEAD,
    INDEX,
    UNFINISHED,
    VERSION,
    Encoding,
    Extents,
    Head,
    Order,
    PartFile,
    has_crc32,
    record_extents,
)
from stagewright.data.pack.place import check_place, clear, locked, put_in_place, real_place, take_parts, workplace
from stagewright.data.pack.reader import is_pack
from stagewright.data.pack.records import Job, Record, encoded, make
from stagewright.data.pack.writer import Span, finish, write_head, write_span
from stagewright.data.sources.assemble import account_of
from stagewright.data.sources.folders import absolute_path
from stagewright.data.sources.local import list_source
from stagewright.data.sources.scan import Progress, scan
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import unwritable
from stagewright.system.signals import keeps
from stagewright.system.threads import Pool
from stagewright.text import counted

Say = Callable[[str], None]

PART_BYTES = 1 << 28
_SAMPLE = 24
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PackSummary:
    """The result of :func:`pack`."""

    folder: Path
    records: int
    """Number of images in the pack."""
    bytes: int
    """Size of all part files."""
    seconds: float
    excluded: int
    """Number of files and rows of the source that are not in the pack."""
    account: Account
    """How many images of the source were read, what was left out and what could not be read."""
    original_bytes: int
    """Size of the original image files in bytes."""
    made: int
    """Number of records that this call wrote; the others existed already."""


def pack(  # many arguments, but each is an option of ``stagewright data pack`` with a default
    source: str,
    out: str | Path,
    settings: Data,
    *,
    size: int = 256,
    encoding: Encoding = "jpeg",
    quality: int = 90,
    order: Order = "mixed",
    workers: int = 2,
    overwrite: bool = False,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
    say: Say | None = None,
) -> PackSummary:
    """Packs the images of ``source`` into the folder ``out``, or continues an earlier call that was interrupted.

    Args:
        source: a folder, a table or another DATA argument as in ``docs/data.md``.
        out: the folder of the pack; created if it does not exist.
        settings: the ``data`` section of the recipe.
        size: images with a larger short side are resized to this short side in pixels. No image is enlarged.
        encoding: ``jpeg`` (4:2:0) or ``raw``. Plain, upright JPEGs that need no resize keep their original bytes.
        quality: JPEG quality, 1 to 100. Not used for ``raw``.
        order: ``mixed``: the records lie in a random order by a key that follows from the images and their labels. ``listed``:
            in the order of the paths, which is by class in a folder of class folders.
        workers: number of threads.
        overwrite: replace another pack in ``out``.
        part_bytes: a part file ends with the first record that brings it to this size.
        progress: called with (done, total), first for the files of the scan, then for the records.
        say: called with short messages for the user.

    Raises DataError for invalid arguments, for a source without readable images, and if ``out`` contains other files or
    another pack (without ``overwrite``). Raises StorageError if the disk has too little space.
    """
    began = time.perf_counter()
    say = say or (lambda text: None)
    _check_arguments(source, size, encoding, quality, order)
    listing = list_source(source, settings)
    folder = real_place(absolute_path(out))
    check_place(folder, absolute_path(source))
    say(f"Reading {counted(len(listing.paths), 'file')} of {source}.")
    found = scan(listing.root, listing.paths, max_pixels=settings.max_pixels, workers=workers, progress=progress)
    job = Job.of(source, listing, found, settings, size, encoding, quality, order, folder)
    try:
        place = workplace(folder)
        job = replace(job, folder=place)
        with locked(place, folder), keeps(lambda: _kept(place, len(job.rows)), resumable=True):
            made = _make(job, folder, workers, overwrite, part_bytes, progress, say)
        head = Head.read(folder / HEAD)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return PackSummary(
        folder=folder,
        records=head.num_records,
        bytes=sum(part.bytes for part in head.parts),
        seconds=time.perf_counter() - began,
        excluded=len(listing.excluded) + len(found.reasons),
        account=account_of(listing, found),
        original_bytes=sum(part.original_bytes for part in head.parts),
        made=made,
    )


def _make(
    job: Job, folder: Path, workers: int, overwrite: bool, part_bytes: int, progress: Progress | None, say: Say
) -> int:
    """Makes the pack ``folder`` in the job's folder, from what is there of it and from the parts of the same pack in its place.
    Returns the number of records that it wrote."""
    old = _same_pack(job, folder, overwrite)
    begun = _same_pack(job, job.folder, overwrite)
    if begun is None:
        if old is not None and _is_whole(folder, old, workers, say):
            return 0
        clear(job.folder)
        if old is not None:
            take_parts(folder, old, job.folder)
            begun = old
    made = _write_missing(job, begun, workers, part_bytes, progress, say)
    put_in_place(job.folder, folder)
    return made


def _is_whole(folder: Path, head: Head, workers: int, say: Say) -> bool:
    """Whether the pack in ``folder`` is finished and has no damaged file."""
    if head.version != VERSION or not (folder / HEAD).is_file() or not _index_is_intact(folder, head):
        return False
    say(f"Checking {counted(len(head.parts), 'part')} from an earlier call.")
    return all(extents is not None for extents in _extents_of_parts(folder, head.parts, workers))


def _extents_of_parts(folder: Path, parts: Sequence[PartFile], workers: int) -> list[Extents | None]:
    with Pool(max(workers, 1), "pack") as pool:
        return [done.result() for done in [pool.submit(_read_extents, folder, part) for part in parts]]


def _write_missing(
    job: Job, old: Head | None, workers: int, part_bytes: int, progress: Progress | None, say: Say
) -> int:
    """Writes all parts, the index and the head that are missing or damaged. Returns the number of records that it wrote."""
    extents = Extents.empty(len(job.rows))
    parts: list[PartFile] = []
    spans: list[Span] = []
    existing = old.parts if old else ()
    if existing:
        say(f"Checking {counted(len(existing), 'part')} from an earlier call.")
    checked = _extents_of_parts(job.folder, existing, workers)
    for number, (part, part_extents) in enumerate(zip(existing, checked, strict=True)):
        parts.append(part)
        if part_extents is None:
            say(f"{part.file} is damaged or missing and will be written again.")
            spans.append(Span(number, part.first, part.rows))
        else:
            extents.put(part.first, part_extents)
    end = parts[-1].first + parts[-1].rows if parts else 0
    if end < len(job.rows):
        spans.append(Span(len(parts), end, None))
    todo = np.concatenate([np.empty(0, np.int64), *(_records(job, span) for span in spans)])
    whole = old and old.version == VERSION and (job.folder / HEAD).is_file()
    if not len(todo) and old and whole and _index_is_intact(job.folder, old):
        return 0
    _check_space(job, todo, say)
    write_head(job.folder / UNFINISHED, replace(job.head, parts=tuple(parts)))
    (job.folder / HEAD).unlink(missing_ok=True)
    if len(todo):
        done = len(job.rows) - len(todo)
        say(f"Packing {counted(len(todo), 'picture')}" + (f"; {done:,} are packed already." if done else "."))
        with encoded(job, todo, workers) as records:
            counted_records = _with_progress(records, done, len(job.rows), progress)
            for span in spans:
                for number, part in write_span(job, span, counted_records, extents, part_bytes):
                    parts[number : number + 1] = [part]
                    write_head(job.folder / UNFINISHED, replace(job.head, parts=tuple(parts)))
    finish(job, parts, extents)
    return len(todo)


def _kept(folder: Path, total: int) -> str:
    """Says what an interrupted packing leaves behind: the finished parts."""
    try:
        parts = Head.read(folder / UNFINISHED).parts
    except (DataError, OSError):
        parts = ()
    return (
        f"kept: {sum(part.rows for part in parts):,} of {counted(total, 'picture')}, in {folder}; "
        "the same command packs the rest"
    )


def _same_pack(job: Job, folder: Path, overwrite: bool) -> Head | None:
    """Returns the head of the pack in ``folder``, finished or not, or None if there is none or it is to be replaced.

    Raises DataError if it is another pack, or damaged, and ``overwrite`` is False.
    """
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if not names & {HEAD, UNFINISHED}:
        return None
    try:
        old = Head.read(folder / (HEAD if HEAD in names else UNFINISHED))
    except DataError:
        if not overwrite:
            raise
        return None
    kinds = ("encoding", "size", "quality", "resample", "order")
    differences = [
        f"{name} {getattr(old, name)} instead of {getattr(job.head, name)}"
        for name in kinds
        if getattr(old, name) != getattr(job.head, name)
    ]
    if old.listing != job.head.listing:
        differences.append(f"other pictures, classes or columns ({old.num_listed:,} of {old.source})")
    if differences and not overwrite:
        raise DataError(
            f"{folder} contains another pack: {'; '.join(differences)}",
            "a new folder, or the arguments and pictures that the pack was started with",
            "choose another folder with --out, or replace the pack with --overwrite"
            + ("; --order listed keeps the parts of a pack of version 1" if old.version == 1 else ""),
        )
    return None if differences else old


def _read_extents(folder: Path, part: PartFile) -> Extents | None:
    """Returns where the records of an existing part lie, or None if the part is damaged or missing."""
    try:
        return record_extents(folder, part) if has_crc32(folder / part.file, part.crc32) else None
    except (FileNotFoundError, DataError):
        return None


def _index_is_intact(folder: Path, head: Head) -> bool:
    try:
        return has_crc32(folder / INDEX, head.index_crc32)
    except FileNotFoundError:
        return False


def _records(job: Job, span: Span) -> NDArray[np.int64]:
    return np.arange(span.first, len(job.rows) if span.rows is None else span.first + span.rows)


def _check_space(job: Job, todo: NDArray[np.int64], say: Say) -> None:
    """Raises StorageError if the disk has less free space than the records ``todo`` are expected to need."""
    pixels = job.widths[todo].astype(np.int64) * job.heights[todo]
    each = 3.0  # bytes per pixel
    if job.head.encoding == "jpeg" and len(todo):
        sample = np.unique(np.linspace(0, len(todo) - 1, _SAMPLE).astype(np.int64))
        each = sum(len(make(job, int(todo[at])).data) for at in sample) / float(pixels[sample].sum())
    needed = float(pixels.sum()) * each + 200.0 * len(job.rows)
    free = shutil.disk_usage(job.folder).free
    if len(todo):
        say(f"About {needed / 1e6:,.0f} MB will be written; {free / 1e6:,.0f} MB are free in {job.folder.parent}.")
    if free < needed:
        raise StorageError(
            f"{free / 1e9:.3g} GB are free in {job.folder.parent}",
            f"about {needed / 1e9:.3g} GB, for {counted(len(todo), 'picture')}",
            "free disk space, choose another disk with --out, or pack with a smaller --size or with --format jpeg",
        )


def _with_progress(records: Iterable[Record], done: int, total: int, progress: Progress | None) -> Iterator[Record]:
    """Yields ``records`` and calls ``progress`` for each of them; ``done`` of ``total`` records existed before."""
    if progress is not None:
        progress(done, total)
    for at, record in enumerate(records, done + 1):
        if progress is not None:
            progress(at, total)
        yield record


def _check_arguments(source: str, size: int, encoding: str, quality: int, order: str) -> None:
    if not 8 <= size <= 65_500:
        raise DataError(
            f"--size {size}",
            "the short side of the packed pictures in pixels, 8 to 65,500 (the most that a JPEG holds)",
            "for example --size 256",
        )
    if encoding not in get_args(Encoding):
        raise DataError(
            f"--format {encoding}",
            ", ".join(get_args(Encoding)),
            "choose jpeg for small files, or raw for fast reading",
        )
    if order not in get_args(Order):
        raise DataError(
            f"--order {order}",
            ", ".join(get_args(Order)),
            "choose mixed, from which blocks can be read in a row, or listed for the order of the paths",
        )
    if not 1 <= quality <= 100:
        raise DataError(f"--quality {quality}", "a JPEG quality from 1 to 100", "for example --quality 90")
    if source.startswith("torchvision:"):
        raise DataError(
            f"{source} is loaded into memory anyway, so a pack would not be faster",
            "a folder, a table or digits",
            f"train on {source} directly",
        )
    if is_pack(absolute_path(source)):
        raise DataError(f"{source!r} is a pack already", "the original pictures", "pack the original pictures")


def _cannot_write(folder: Path, error: OSError) -> Exception:
    """Returns the error for a folder that cannot be written, or ``error`` itself if it has no errno."""
    if error.errno in _DISK_FULL:
        return StorageError(
            f"the disk is full: {folder} cannot be written ({error.strerror})",
            "enough space for the whole pack",
            "free disk space and run the same command again: finished parts are kept",
        )
    return error if error.errno is None else unwritable(folder, error)
