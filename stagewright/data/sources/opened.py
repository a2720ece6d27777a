"""Opens the pictures of DATA that are files of their own, or lie whole in larger files: what they are and their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.decode import FileImages, Images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.in_store import read_in_store
from stagewright.data.sources.local import list_source
from stagewright.data.sources.parquets import read_parquets
from stagewright.data.sources.scan import Progress, Scan, scan
from stagewright.data.sources.shard_names import find_parquet, names_shards
from stagewright.data.sources.tars import read_tars
from stagewright.data.sources.val_is_test import with_val_as_test
from stagewright.recipe.recipe import Data
from stagewright.storage.object_files import StoredObject
from stagewright.storage.objects import is_remote
from stagewright.text import counted

Reading = Literal["at random", "once", "in order", "on the disk"]
"""How the images will be read: as often as wanted, as for a training; each once, in any order or in that of the listing, so that
files of an object store are read there and not fetched (Parquet files in order alone); or as files on the disk."""


class WholeFiles(Images, Protocol):
    """Images whose original files can be read."""

    def read(self, row: int) -> bytes:
        """Returns the bytes of the file of ``row``."""
        ...


@dataclass(frozen=True, eq=False)
class Opened:
    """The pictures of DATA."""

    listing: Listing
    scan: Scan
    images: Callable[[pa.StringArray], WholeFiles]
    """Returns the images of paths of the listing."""
    objects: tuple[StoredObject, ...] = ()
    """The larger files in which they lie, as a manifest records them."""
    hash_of: str = ""
    """What the digests of the scan are of, if not of the files."""
    column: str = ""
    """The column of Parquet files in which they lie."""
    lengths: Callable[[pa.StringArray], NDArray[np.int64]] | None = None
    """Returns how many bytes images of this column have, by their paths."""

    def recorded(self, manifest: Manifest) -> Manifest:
        """Returns ``manifest``, of images of the listing, with what says where these are."""
        lengths = None if self.lengths is None else self.lengths(manifest.paths)
        return replace(manifest, objects=self.objects, hash_of=self.hash_of, column=self.column, lengths=lengths)


def open_source(
    source: str,
    settings: Data,
    *,
    workers: int,
    progress: Progress | None,
    needs_train: bool = True,
    reading: Reading = "at random",
    say: Callable[[str], None] = lambda text: None,
) -> Opened:
    """Finds and reads the pictures of ``source``: a folder, a table, digits, tar or Parquet files. DataError for anything else.

    ``say`` is told how many files are read, before it.
    """
    once = reading in ("once", "in order")
    if names_shards(source):
        tars = read_tars(source, settings, workers=workers, progress=progress, whole=once, say=say)
        listing = with_val_as_test(source, tars.listing, settings)
        return Opened(
            listing, tars.scan, lambda paths: tars.images(paths, settings.max_pixels), tars.shards.files, tars.hash_of
        )
    if reading in ("at random", "in order") and (shards := find_parquet(source)) is not None:
        inside = read_parquets(source, shards, settings, workers=workers, progress=progress)
        if inside is not None:
            return Opened(
                with_val_as_test(source, inside.listing, settings),
                inside.scan,
                lambda paths: inside.images(paths, settings.max_pixels),
                shards.files,
                column=inside.column,
                lengths=inside.lengths_of,
            )
    if once and is_remote(source):
        stored = read_in_store(source, settings, workers=workers, progress=progress, needs_train=needs_train, say=say)
        if stored is not None:
            return Opened(stored.listing, stored.scan, lambda paths: stored.images(paths, settings.max_pixels))
    listing = list_source(source, settings, needs_train=needs_train)
    say(f"Reading {counted(len(listing.paths), 'file')} of {source}.")
    found = scan(listing.root, listing.paths, max_pixels=settings.max_pixels, workers=workers, progress=progress)
    return Opened(listing, found, lambda paths: FileImages(listing.root, paths, settings.max_pixels))
