"""Makes a pack: resizes the images of a data set once and writes them into a few large files.

It gives two guarantees. If packing is interrupted in any way, the same call continues it, and the pack has the same bytes as
without the interruption. A pack contains exactly the images of its source, made with its arguments: a pack of another source
or with other arguments is refused, and damaged files are written again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

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
from stagewright.data.pack.making import Missing, Say, check_space, same_pack, write_parts
from stagewright.data.pack.place import check_place, clear, locked, put_in_place, real_place, take_parts, workplace
from stagewright.data.pack.records import Job
from stagewright.data.pack.remote import is_pack_source
from stagewright.data.pack.store import make_in_store, store_workplace
from stagewright.data.pack.writer import finish, write_head
from stagewright.data.sources.assemble import account_of
from stagewright.data.sources.folders import absolute_path
from stagewright.data.sources.opened import open_source
from stagewright.data.sources.scan import Progress
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import unwritable
from stagewright.storage.objects import is_remote
from stagewright.system.signals import keeps
from stagewright.system.threads import Pool
from stagewright.text import counted

PART_BYTES = 1 << 28
_SAMPLE = 24
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PackSummary:
    """The result of :func:`pack`."""

    place: str
    """Folder or URL of the pack."""
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

    @property
    def folder(self) -> Path:
        """The folder of a pack on the disk."""
        return Path(self.place)


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
    """Packs the images of ``source`` into ``out``, a folder or a URL, or continues an earlier call that was interrupted.

    Args:
        source: a folder, a table or another DATA argument as in ``docs/data.md``.
        out: the folder of the pack, created if it does not exist; or the URL, to which each part is uploaded when it is made.
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
    url = str(out).rstrip("/") if is_remote(str(out)) else None
    folder = store_workplace(url) if url else real_place(absolute_path(out))
    if url and is_remote(source) and url.startswith(source.rstrip("/") + "/"):
        raise DataError(
            f"{url} is below the pictures",
            f"a URL that is not below {source}, because the files of the pack would count as data",
            "choose another one with --out",
        )
    if not url:
        check_place(folder, absolute_path(source))
    reading = "in order" if order == "listed" else "once"
    opened = open_source(source, settings, workers=workers, progress=progress, reading=reading, say=say)
    listing, found = opened.listing, opened.scan
    job = Job.of(source, opened, settings, size, encoding, quality, order, folder)
    try:
        if url:
            with locked(folder, Path(url)), keeps(lambda: _kept(folder, len(job.rows), url), resumable=True):
                made, head = make_in_store(job, url, workers, overwrite, part_bytes, progress, say)
        else:
            place = workplace(folder)
            job = replace(job, folder=place)
            with locked(place, folder), keeps(lambda: _kept(place, len(job.rows)), resumable=True):
                made = _make(job, folder, workers, overwrite, part_bytes, progress, say)
            head = Head.read(folder / HEAD)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return PackSummary(
        place=url or str(folder),
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
    existing = old.parts if old else ()
    if existing:
        say(f"Checking {counted(len(existing), 'part')} from an earlier call.")
    missing = Missing.of(job, existing, _extents_of_parts(job.folder, existing, workers), say)
    whole = old and old.version == VERSION and (job.folder / HEAD).is_file()
    if not len(missing.todo) and old and whole and _index_is_intact(job.folder, old):
        return 0
    check_space(job, missing.todo, say)

    def save(part: PartFile | None = None) -> None:
        write_head(job.folder / UNFINISHED, replace(job.head, parts=tuple(missing.parts)))

    save()
    (job.folder / HEAD).unlink(missing_ok=True)
    write_parts(job, missing, workers, part_bytes, progress, say, save)
    finish(job, missing.parts, missing.extents)
    return len(missing.todo)


def _kept(folder: Path, total: int, url: str | None = None) -> str:
    """Says what an interrupted packing leaves behind: the finished parts."""
    try:
        parts = Head.read(folder / UNFINISHED).parts
    except (DataError, OSError):
        parts = ()
    return (
        f"kept: {sum(part.rows for part in parts):,} of {counted(total, 'picture')}, in {url or folder}; "
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
    return same_pack(old, job, str(folder), overwrite)


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
    if is_pack_source(source):
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
