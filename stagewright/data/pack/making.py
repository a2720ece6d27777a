"""Makes the records of a pack that are missing, wherever its files go: which they are, and the parts with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagewright.data.pack.format import Extents, Head, PartFile
from stagewright.data.pack.records import Job, Record, encoded, make
from stagewright.data.pack.writer import Span, write_span
from stagewright.data.sources.scan import Progress
from stagewright.errors import DataError, StorageError
from stagewright.text import counted

Say = Callable[[str], None]

_SAMPLE = 24


def same_pack(old: Head, job: Job, place: str, overwrite: bool) -> Head | None:
    """Returns ``old``, the head of the pack at ``place``, if it describes the pack of ``job``, or None if it is to be replaced.

    Raises DataError if it is another pack and ``overwrite`` is False.
    """
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
            f"{place} contains another pack: {'; '.join(differences)}",
            "a new folder, or the arguments and pictures that the pack was started with",
            "choose another folder with --out, or replace the pack with --overwrite"
            + ("; --order listed keeps the parts of a pack of version 1" if old.version == 1 else ""),
        )
    return None if differences else old


@dataclass(frozen=True, eq=False)
class Missing:
    """What is there of a pack, and what is missing."""

    parts: list[PartFile]
    """All parts that were begun; those that are written replace theirs."""
    spans: list[Span]
    """The parts to write."""
    extents: Extents
    """Where the records lie, of the parts that are there."""
    todo: NDArray[np.int64]
    """The records to write."""

    @classmethod
    def of(cls, job: Job, existing: Sequence[PartFile], checked: Sequence[Extents | None], say: Say) -> Missing:
        """Compares ``job`` with the parts that exist; ``checked`` says where their records lie, and None for damaged ones."""
        found = cls([], [], Extents.empty(len(job.rows)), np.empty(0, np.int64))
        for number, (part, extents) in enumerate(zip(existing, checked, strict=True)):
            found.parts.append(part)
            if extents is None:
                say(f"{part.file} is damaged or missing and will be written again.")
                found.spans.append(Span(number, part.first, part.rows))
            else:
                found.extents.put(part.first, extents)
        end = found.parts[-1].first + found.parts[-1].rows if found.parts else 0
        if end < len(job.rows):
            found.spans.append(Span(len(found.parts), end, None))
        todo = np.concatenate([found.todo, *(_records(job, span) for span in found.spans)])
        return cls(found.parts, found.spans, found.extents, todo)


def write_parts(
    job: Job,
    missing: Missing,
    workers: int,
    part_bytes: int,
    progress: Progress | None,
    say: Say,
    written: Callable[[PartFile], None],
) -> None:
    """Writes all ``missing`` parts to the job's folder, and completes ``missing``; calls ``written`` after each of them."""
    if not len(missing.todo):
        return
    done = len(job.rows) - len(missing.todo)
    say(f"Packing {counted(len(missing.todo), 'picture')}" + (f"; {done:,} are packed already." if done else "."))
    with encoded(job, missing.todo, workers) as records:
        counted_records = _with_progress(records, done, len(job.rows), progress)
        for span in missing.spans:
            for number, part in write_span(job, span, counted_records, missing.extents, part_bytes):
                missing.parts[number : number + 1] = [part]
                written(part)


def _records(job: Job, span: Span) -> NDArray[np.int64]:
    return np.arange(span.first, len(job.rows) if span.rows is None else span.first + span.rows)


def check_space(job: Job, todo: NDArray[np.int64], say: Say, most: float = float("inf")) -> None:
    """Raises StorageError if the disk has less free space than the records ``todo`` are expected to need: of more than ``most``
    bytes, so much."""
    pixels = job.widths[todo].astype(np.int64) * job.heights[todo]
    each = 3.0  # bytes per pixel
    if job.head.encoding == "jpeg" and len(todo):
        sample = np.unique(np.linspace(0, len(todo) - 1, _SAMPLE).astype(np.int64))
        each = sum(len(make(job, int(todo[at]), job.images.read).data) for at in sample) / float(pixels[sample].sum())
    needed = float(pixels.sum()) * each + 200.0 * len(job.rows)
    free = shutil.disk_usage(job.folder).free
    needed = min(needed, most)
    if len(todo) and needed < most:
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
