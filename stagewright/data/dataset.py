"""Loads a data set: from the argument DATA to a manifest, the images, and notes on what was found and left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from stagewright.data.account import Account
from stagewright.data.blocks import blocks_of
from stagewright.data.images.decode import ArrayImages, FileImages, Images
from stagewright.data.images.limits import accepted
from stagewright.data.images.placed import PlacedImages, RemotePlacedImages
from stagewright.data.images.row_groups import RowGroups
from stagewright.data.manifest import Manifest
from stagewright.data.pack.images import PackRows
from stagewright.data.pack.remote import RemotePackImages, is_pack_source, open_pack
from stagewright.data.pack.verify import check_records
from stagewright.data.remote.cache import BlockCache
from stagewright.data.remote.table import BlockTable
from stagewright.data.sources.assemble import Assembled, assemble, assemble_for_evaluation, needs_split
from stagewright.data.sources.builtin import digits_folder, load_arrays
from stagewright.data.sources.fetched import found_again
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.local import refuse_columns
from stagewright.data.sources.opened import open_source
from stagewright.data.sources.parquets import open_parquets
from stagewright.data.sources.scan import Progress, Scan, hex_strings
from stagewright.data.sources.shard_names import names_shards
from stagewright.data.sources.tars import holds_tars, open_tars
from stagewright.data.sources.val_is_test import with_val_as_test
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.parquet import pc
from stagewright.system.allocators import give_back_memory


@dataclass(frozen=True)
class Dataset:
    """A data set that is ready for training."""

    manifest: Manifest
    images: Images
    """The images, in the order of the manifest's rows."""
    notes: tuple[str, ...]
    """Sentences for the user: what was found, decided and left out."""
    excluded: tuple[Excluded, ...]
    """The files and table rows of DATA that a run does not use."""
    account: Account
    """How many images were read, what was left out and what could not be read."""
    unused: frozenset[str] = frozenset()
    """Those of the settings ``val``, ``test``, ``near`` and ``split_seed`` that had no effect, since DATA gives the parts."""


def load_dataset(source: str, settings: Data, *, workers: int = 2, progress: Progress | None = None) -> Dataset:
    """Finds, checks and splits the images of ``source``, and returns the data set.

    The result depends only on the files and ``settings``. Each file is decoded once with ``workers`` threads,
    unless an earlier call has done so; ``progress(done, total)`` is called with the number of files meanwhile. For a pack,
    the checksums of all records are verified instead; its manifest equals that of the original files, except for
    ``variant``. Raises DataError if ``source`` has an unknown form or cannot be used for training.
    """
    if settings.val + settings.test >= 1:
        raise DataError(
            f"data.val {settings.val} and data.test {settings.test} leave nothing to train on",
            "shares whose sum is below 1",
            "for example --set data.val=0.15 --set data.test=0.15",
        )
    rule = partial(assemble, settings=settings)
    return _load(source, settings, rule, workers, progress, near=settings.near == "together")


def load_for_evaluation(source: str, settings: Data, *, workers: int = 2, progress: Progress | None = None) -> Dataset:
    """Finds and checks the labelled images of ``source``, and returns them as they are: no split is made, and what a training
    requires (several classes, a train part) is not required.

    Images that DATA puts into no part are in test. Arguments and errors as for :func:`load_dataset`.
    """
    rule = partial(assemble_for_evaluation, settings=settings)
    return _load(source, settings, rule, workers, progress, needs_train=False)


def _load(
    source: str,
    settings: Data,
    rule: Callable[[str, Listing, Scan], Assembled],
    workers: int,
    progress: Progress | None,
    *,
    needs_train: bool = True,
    near: bool = False,
) -> Dataset:
    """``near``: near duplicates stay together in the split that is made."""
    if near and (source.startswith("torchvision:") or is_pack_source(source)):
        raise _not_separate(source)
    if source.startswith("torchvision:"):
        refuse_columns(source, "a set of torchvision", settings)
        arrays = load_arrays(source)
        listing = with_val_as_test(source, arrays.listing, settings)
        return _dataset(rule(source, listing, arrays.scan), ArrayImages(arrays.images))
    if is_pack_source(source):
        pack = open_pack(source)
        listing, found = with_val_as_test(source, pack.listing(settings), settings), pack.scan()
        give_back_memory()  # of what the index of a million images was read into
        made = rule(source, listing, found)
        del listing, found
        check_notes = check_records(pack, workers=workers, progress=progress)
        manifest = replace(made.manifest, variant=pack.head.variant, objects=pack.objects)
        made = made._replace(manifest=manifest, notes=(*made.notes, *check_notes))
        images = _through_cache(pack.images(manifest.paths), manifest)
        give_back_memory()
        return _dataset(made, images)
    if near and names_shards(source):
        raise _not_separate(source)
    # Near duplicates are found among files on the disk.
    reading = "on the disk" if near else "at random"
    opened = open_source(source, settings, workers=workers, progress=progress, needs_train=needs_train, reading=reading)
    listing = opened.listing
    if near and needs_split(listing):
        from stagewright.data.inspect.similar import group_similar  # scipy.spatial takes its time

        listing, _ = group_similar(listing, workers=workers, progress=progress, max_pixels=settings.max_pixels)
    made = rule(source, listing, opened.scan)
    made = made._replace(manifest=opened.recorded(made.manifest))
    return _dataset(made, _through_cache(opened.images(made.manifest.paths), made.manifest))


def _not_separate(source: str) -> DataError:
    return DataError(
        f"data.near=together with {source!r}, whose images are not in separate files",
        "near duplicates of image files",
        "split the files first (stagewright data split DATA --near together), and use or pack the table that it writes",
    )


def _dataset(made: Assembled, images: Images) -> Dataset:
    return Dataset(made.manifest, images, made.notes, made.excluded, made.account, made.unused)


def in_blocks(dataset: Dataset) -> Dataset:
    """Returns ``dataset`` with the blocks of its images in the manifest, for ``order: blocked``. DataError if it has none."""
    images = dataset.images
    if not isinstance(images, PackRows | PlacedImages):
        raise DataError(
            f"order: blocked with {dataset.manifest.source!r}, whose pictures do not lie in blocks",
            "order: blocked with a pack, tar files or Parquet files in an object store, and order: full with all other data",
            "pack the pictures (stagewright data pack DATA), or --set order=full",
        )
    blocks = blocks_of(images.places, dataset.manifest.splits, dataset.manifest.labels, _row_groups(images))
    manifest = replace(dataset.manifest, blocks=blocks)
    give_back_memory()
    return replace(dataset, manifest=manifest, images=_through_cache(images, manifest))


def open_images(manifest: Manifest) -> Images:
    """Returns the images of ``manifest``, in the order of its rows, from the place where they were when it was made.

    Raises DataError if this place does not exist any more or its content has changed.
    """
    if manifest.source.startswith("torchvision:"):
        arrays = load_arrays(manifest.source)
        rows = pc.index_in(manifest.paths, arrays.listing.paths).fill_null(0).to_numpy()
        if not hex_strings(arrays.scan.digests).take(rows).equals(manifest.hashes):
            raise DataError(
                f"{manifest.source} has changed since the run began",
                "the same pictures in the same order",
                "restore its files, or start a new run",
            )
        return ArrayImages(arrays.images if len(manifest) == len(arrays.images) else arrays.images[rows])
    if manifest.variant:
        return _open_pack(manifest)
    if manifest.column:
        return _through_cache(open_parquets(manifest, accepted(manifest.widths, manifest.heights)), manifest)
    if holds_tars(manifest):
        return _through_cache(open_tars(manifest, accepted(manifest.widths, manifest.heights)), manifest)
    root = str(digits_folder()) if manifest.source == "digits" else found_again(manifest)
    if not os.path.isdir(root):
        raise DataError(
            f"the pictures of {manifest.source!r} were in {root}, which does not exist now",
            "the folder as it was when the run began",
            "mount it or move it back, or name the new folder: stagewright resume RUN --data DIR",
        )
    return FileImages(root, manifest.paths, accepted(manifest.widths, manifest.heights))


def _open_pack(manifest: Manifest) -> Images:
    """Returns the images of ``manifest`` from its pack; raises DataError if another pack is there now."""
    pack = open_pack(manifest.root, manifest.objects)
    if pack.head.variant != manifest.variant:
        raise DataError(
            f"{manifest.root} is a {pack.head.variant}, but was a {manifest.variant} when the run began",
            "the pack that the run began with",
            "restore the pack, or start a new run",
        )
    check_records(pack)
    return _through_cache(pack.images(manifest.paths, manifest.hashes), manifest)


def _through_cache(images: Images, manifest: Manifest) -> Images:
    """Returns ``images``; those in files of an object store are read through a cache of blocks."""
    if isinstance(images, RemotePackImages | RemotePlacedImages):
        blocks = manifest.blocks
        if blocks is None:
            blocks = blocks_of(images.places, manifest.splits, manifest.labels, _row_groups(images))
        table = BlockTable(images.places, blocks, manifest.splits, _row_groups(images))
        images.reader = BlockCache(images.files, table)
    return images


def _row_groups(images: object) -> RowGroups | None:
    """Returns the row groups of Parquet files in which images lie, or None."""
    return images.files.row_groups if isinstance(images, RemotePlacedImages) else None
