"""Class folders and tables in an object store, of which every image is read once: to be packed, without a copy on the disk.

Their names are listed as those of a folder (:class:`~stagewright.data.sources.tree.StoreTree`). Each image is read once to be
scanned, many at once; the results are cached by URL, size and ETag. The hash of an image is that of its bytes, as on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.decode import NOT_IDENTIFIED, FileImages, identified
from stagewright.data.images.placed import RemoteWholeImages
from stagewright.data.images.places import Places
from stagewright.data.images.read_ahead import Read, read_ahead
from stagewright.data.images.remote import RemoteFiles
from stagewright.data.images.stored import MOST_BYTES
from stagewright.data.sources.fetched import fetch_alone, files_below, not_ignored, whole_copy
from stagewright.data.sources.folders import TABLES, Listing
from stagewright.data.sources.local import completed, list_tree
from stagewright.data.sources.scan import Content, Progress, Scan, ScannedFiles, is_doubtful, scan, scan_files
from stagewright.data.sources.shard_names import find_parquet
from stagewright.data.sources.tables import list_table, path_column
from stagewright.data.sources.tar_index import Windows
from stagewright.data.sources.tree import StoreTree
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import check_size
from stagewright.storage.object_files import Changed, RangeFile, StoredObject
from stagewright.storage.objects import is_remote, price_of
from stagewright.storage.parquet import pc
from stagewright.text import counted

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class _InStore:
    """Images that are objects below a URL."""

    listing: Listing
    scan: Scan
    url: str
    objects: Sequence[StoredObject]
    """In the order of the listing; named relative to ``url``."""
    copy: Path | None
    """The folder of the images, if they have been fetched before."""

    def images(self, paths: pa.StringArray, max_pixels: int) -> FileImages | RemoteWholeImages:
        """Returns the images of ``paths``, all of which are in the listing."""
        if self.copy is not None:
            return FileImages(str(self.copy), paths, max_pixels)
        rows = pc.index_in(paths, self.listing.paths).to_pylist()
        return _images_of(self.url, [self.objects[row] for row in rows], paths, max_pixels)


def read_in_store(
    source: str, settings: Data, *, workers: int, progress: Progress | None, needs_train: bool, say: Say
) -> _InStore | None:
    """Lists and scans the images of the URL ``source``, class folders or a table of paths; None for Parquet files, which may
    contain their images, and for tables of images on the disk. ``say`` is told what is read, and about what it costs.

    DataError as for a folder on the disk, and if an object changes meanwhile; StorageError if the store refuses or does not
    answer.
    """
    url, name = source.rstrip("/"), ""
    if os.path.splitext(url)[1].lower() in TABLES:
        url, _, name = url.rpartition("/")
        file, found = fetch_alone(url, name, say)
        if path_column(file, settings) is None:
            return None
        listing = list_table(file, settings, beside=StoreTree(url, found))
        if not is_remote(listing.root):
            return None
    elif find_parquet(url) is not None:
        return None
    else:
        found = files_below(source)
        listing = list_tree(source, StoreTree(url, found), settings, needs_train)
    listing = completed(source, listing, settings)
    inner = listing.root.removeprefix(url).removeprefix("/")
    above = f"{inner}/" if inner else ""
    objects = [found[above + path] for path in listing.paths.to_pylist()]
    size, files = sum(one.bytes for one in objects), counted(len(objects), "file")
    copy = whole_copy(url, [found[name], *objects] if name else not_ignored(found))
    if copy is not None:
        say(f"Reading {files} of {source}, which were fetched before to {copy}.")
        scanned = scan(
            str(copy / inner), listing.paths, max_pixels=settings.max_pixels, workers=workers, progress=progress
        )
        return _InStore(listing, scanned, url, objects, copy / inner)
    say(
        f"Reading {files}, {size / 1e9:,.2f} GB, of {source}, once to check and once to pack them: at most "
        f"${price_of(2 * len(objects))} for requests, and what the store asks for traffic that leaves its region."
    )
    images = _images_of(url, objects, listing.paths, settings.max_pixels)
    scanned = scan_files(
        _scanned_files(listing, objects, images), max_pixels=settings.max_pixels, workers=workers, progress=progress
    )
    return _InStore(listing, scanned, url, objects, None)


def _images_of(url: str, objects: Sequence[StoredObject], paths: pa.StringArray, max_pixels: int) -> RemoteWholeImages:
    names, sizes = tuple(one.name for one in objects), tuple(one.bytes for one in objects)
    which, begins = np.arange(len(objects), dtype=np.int32), np.zeros(len(objects), np.int64)
    places = Places(names, sizes, which, begins, np.array(sizes, np.int64))
    return RemoteWholeImages(RemoteFiles(url, places, tuple(one.etag for one in objects)), paths, max_pixels)


def _scanned_files(listing: Listing, objects: Sequence[StoredObject], images: RemoteWholeImages) -> ScannedFiles:
    unknown = f"none at {time.time_ns()}"  # an object without an ETag is never known to be the same
    identity = {
        "size": pa.array([one.bytes for one in objects], pa.int64()),
        "etag": pa.array([one.etag or unknown for one in objects], pa.string()),
    }

    @contextmanager
    def opened(rows: NDArray[np.int64]) -> Iterator[Content]:
        ahead = np.array([row for row in rows.tolist() if _is_plain(objects[row])], np.int64)
        with read_ahead(images.read, ahead, images.places.lengths[ahead]) as read:
            yield lambda row: _content(images, objects[row], row, read)

    return ScannedFiles(listing.root, listing.paths, identity, opened)


def _is_plain(one: StoredObject) -> bool:
    """Whether the object is read without looking at it first."""
    return 0 < one.bytes <= MOST_BYTES and not is_doubtful(one.name, one.bytes)


def _content(images: RemoteWholeImages, one: StoredObject, row: int, read: Read) -> bytes | str:
    """Returns the bytes of an object that may be an image, or the reason why there are none: as of a file on the disk."""
    url = images.files.url
    if is_doubtful(one.name, one.bytes) and not identified(cast(BinaryIO, RangeFile(one.bytes, Windows(url, one).at))):
        return NOT_IDENTIFIED
    try:
        check_size(one.bytes, MOST_BYTES, one.name)
    except OSError as error:
        return f"the file cannot be opened: {error.strerror}"
    if not one.bytes:
        return b""
    try:
        return read(row) if _is_plain(one) else images.read(row)
    except (Changed, FileNotFoundError) as error:
        raise DataError(
            f"{one.name} of {url} changed while the data were read",
            "files that do not change meanwhile",
            "run the command again when they are final",
        ) from error
