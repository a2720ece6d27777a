"""Resizes and encodes the images of a source to the records of a pack, in order, with several threads.

Images are resized with Pillow's Lanczos filter. It was measured on 58 ImageNet photos, for random crops of 25 to 100 % of the
area that are resized to 224 px (bicubic). Crops from a raw pack of 256 px differ from the same crops of the originals by a
PSNR of 39.8 dB; with a bicubic filter it is 38.6 dB, with a bilinear one 35.8 dB. For JPEG packs of quality 90, the values are
34.4, 34.1 and 33.0 dB. Lanczos takes 0.9 ms per image more than bicubic, only once.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stagewright import rng
from stagewright.data.account import Account
from stagewright.data.images import limits
from stagewright.data.images.decode import decode
from stagewright.data.images.placed import RemoteWholeImages
from stagewright.data.images.read_ahead import Read, read_ahead
from stagewright.data.pack.format import Encoding, Head, Order
from stagewright.data.sources.folders import TABLES, Listing, absolute_path
from stagewright.data.sources.opened import Opened, WholeFiles
from stagewright.data.sources.scan import Scan, digest_of
from stagewright.data.sources.shard_names import TAR
from stagewright.data.sources.unusable import exclude_unreadable, nothing_readable
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.object_files import Changed
from stagewright.storage.objects import is_remote
from stagewright.storage.parquet import hash_column
from stagewright.system.threads import Pool, Task

_CHUNK = 4
_JPEG_SIDE = 65_500  # the maximum of libjpeg, rounded down
_RESAMPLE = Image.Resampling.LANCZOS


@dataclass(frozen=True, eq=False)
class Job:
    """All inputs of a packing: the images, their stored sizes and the head of the pack."""

    folder: Path
    listing: Listing
    found: Scan
    images: WholeFiles
    """The original files, in the order of the listing."""
    head: Head
    """The head of the new pack, without its parts."""
    rows: NDArray[np.int64]
    """int64 (num_records,): row of each record in the listing."""
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    """int32 (num_records,): stored sizes in pixels."""

    @classmethod
    def of(
        cls,
        source: str,
        opened: Opened,
        settings: Data,
        size: int,
        encoding: Encoding,
        quality: int,
        order: Order,
        folder: Path,
    ) -> Job:
        """Prepares to pack the pictures of ``source``; the other arguments are those of ``build.pack``.

        Raises DataError if no image can be read, or if any cannot be read and ``settings.bad_images`` is "fail".
        """
        listing, found = opened.listing, opened.scan
        exclude_unreadable(listing, found, settings)
        if len(found.reasons) == len(listing.paths):
            raise nothing_readable(source, listing, found)
        rows = np.setdiff1d(np.arange(len(listing.paths)), list(found.reasons))
        digest = _digest(listing, found)
        if order == "mixed":
            rows = rows[rng.permutation(rng.key(rng.Stream.PACK, int(digest[:16], 16)), len(rows))]
        sizes = zip(found.widths[rows].tolist(), found.heights[rows].tolist(), strict=True)
        stored = np.array([stored_size(width, height, size) for width, height in sizes], np.int32)
        head = Head(
            encoding=encoding,
            size=size,
            quality=quality if encoding == "jpeg" else None,
            resample=_RESAMPLE.name.lower(),
            listing=digest,
            source=source,
            form="table" if _names_file(source) else "folder",
            settings={
                name: None if (value := getattr(settings, name)) is None else str(value)
                for name in ("path", "label", "group", "split", "images")
            },
            group_name=listing.group_name,
            grouped=listing.groups is not None,
            notes=(*listing.notes, *Account(0, listing.left_out).lines()),
            classes=tuple(sorted(listing.labels.unique().to_pylist())),
            num_listed=len(listing.paths),
            num_records=len(rows),
            index_crc32=0,
            parts=(),
            order=order,
        )
        images = opened.images(listing.paths)
        return cls(folder, listing, found, images, head, rows, stored[:, 0], stored[:, 1])

    def reading(self, todo: NDArray[np.int64]) -> AbstractContextManager[Read]:
        """Returns a context manager of what reads the original file of a row, for the records ``todo`` in this order. Files in an
        object store are read ahead."""
        if not isinstance(self.images, RemoteWholeImages):
            return nullcontext(self.images.read)
        rows = self.rows[todo]
        return read_ahead(self.images.read, rows, self.images.places.lengths[rows])


def _names_file(source: str) -> bool:
    """Whether ``source`` is a file, and not a folder, a URL of several files or a pattern."""
    if not is_remote(source):
        return os.path.isfile(absolute_path(source))
    return os.path.splitext(source)[1].lower() in {*TABLES, TAR} and not set("*?[{") & set(source)


@dataclass(frozen=True)
class Record:
    """An encoded image of a pack."""

    at: int
    """Number of the record."""
    data: bytes
    """A JPEG file or raw pixels."""
    original_bytes: int
    """Size of the original image file in bytes."""


def stored_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Returns the (width, height) of a stored image in pixels: its short side is at most ``size``, and it is not enlarged."""
    scale = min(1.0, size / min(width, height), _JPEG_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode(
    data: bytes, size: int, encoding: Encoding, quality: int | None, max_pixels: int = limits.MOST_PIXELS
) -> bytes:
    """Decodes the image file ``data``, resizes it, and encodes it for a pack. Raises OSError if it cannot be read, or has more
    than ``max_pixels``."""
    picture = decode(data, max_pixels)
    target = stored_size(*picture.size, size)
    if encoding == "jpeg" and target == picture.size and _is_plain_jpeg(data):
        return data
    if target != picture.size:
        picture = picture.resize(target, _RESAMPLE)
    if encoding == "raw":
        return picture.tobytes()
    picture.info.clear()  # otherwise Pillow would write the comment of the original
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _is_plain_jpeg(data: bytes) -> bool:
    """Returns True if every JPEG decoder decodes ``data`` the same way: one image, baseline, RGB or grey, upright."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # another format, or damaged EXIF
        return False
    return image.format == "JPEG" and image.mode in ("RGB", "L") and upright and "progressive" not in image.info


def make(job: Job, at: int, read: Read) -> Record:
    """Makes record ``at`` of the file that ``read`` returns. Raises DataError if it has changed since the scan, or cannot be read
    any more, and StorageError for an object store that refuses or does not answer."""
    row = int(job.rows[at])
    path = job.listing.paths[row].as_py()
    try:
        data = read(row)
        same = digest_of(data) == job.found.digests[row].tobytes()
        most = limits.accepted(int(job.found.widths[row]), int(job.found.heights[row]))
        record = encode(data, job.head.size, job.head.encoding, job.head.quality, most) if same else b""
    except Changed as error:
        raise _changed(path, _SINCE) from error
    except OSError as error:
        raise _changed(path, f"cannot be read: {error.strerror or error}") from error
    if not same:
        raise _changed(path, _SINCE)
    return Record(at, record, len(data))


_SINCE = "has changed since it was scanned"


def _changed(path: str, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        "files that do not change while they are packed",
        "run the command again when the files are final",
    )


@contextmanager
def encoded(job: Job, todo: NDArray[np.int64], workers: int) -> Iterator[Iterator[Record]]:
    """Makes the records ``todo`` with worker threads and yields an iterator of them, in order.

    The threads are only a few chunks ahead of the iterator, which limits the memory.
    """
    with job.reading(todo) as read, Pool(max(workers, 1), "pack") as pool:
        yield _records(job, todo, read, pool, 2 * max(workers, 1) + 1)


def _records(job: Job, todo: NDArray[np.int64], read: Read, pool: Pool, num_ahead: int) -> Iterator[Record]:
    chunks = iter([todo[at : at + _CHUNK].tolist() for at in range(0, len(todo), _CHUNK)])
    ahead: deque[Task[list[Record]]] = deque()

    def submit() -> None:
        if (chunk := next(chunks, None)) is not None:
            ahead.append(pool.submit(lambda: [make(job, at, read) for at in chunk]))

    for _ in range(num_ahead):
        submit()
    while ahead:
        made = ahead.popleft().result()
        submit()
        yield from made


def _digest(listing: Listing, found: Scan) -> str:
    """Returns a digest of everything that a pack contains of its source."""
    digest = hashlib.blake2b(digest_size=16)
    for column in (listing.paths, listing.labels, listing.groups):
        hash_column(digest, column)
    digest.update(listing.parts.astype("<i1").tobytes())
    digest.update(np.ascontiguousarray(found.digests).tobytes())
    digest.update(repr(sorted(found.reasons)).encode())
    return digest.hexdigest()
