"""Sources: from DATA as a person gives it to a manifest, its pictures, and notes on what was found and left out.

Owns the forms that DATA may take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from stagewright.data.images.decode import ArrayImages, FileImages, Images
from stagewright.data.manifest import Manifest
from stagewright.data.pack.reader import Pack, is_pack
from stagewright.data.pack.verify import check_records
from stagewright.data.sources.assemble import assemble
from stagewright.data.sources.builtin import digits_folder, load_arrays
from stagewright.data.sources.folders import absolute_path
from stagewright.data.sources.local import list_source
from stagewright.data.sources.scan import Progress, hex_strings, scan
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.parquet import pc


@dataclass(frozen=True)
class Dataset:
    """What DATA comes to."""

    manifest: Manifest
    images: Images
    """The pictures, by row of the manifest."""
    notes: tuple[str, ...]
    """What was found, decided and left out, in sentences for a person."""
    excluded: tuple[Excluded, ...]
    """Every picture or row that DATA names and the run leaves out."""


def load_dataset(
    source: str, settings: Data, seed: int, *, workers: int = 2, progress: Progress | None = None
) -> Dataset:
    """Finds, opens and splits the pictures of ``source``; a pure function of files, ``settings`` and ``seed``.

    Every file is decoded once, with ``workers`` threads, unless an earlier call has done so; ``progress(done, total)`` is
    called meanwhile. Of a pack, every record's checksum is compared instead, and the manifest is the one that its originals
    give, but for the variant. DataError where ``source`` is none of :data:`FORMS` or cannot be trained on.
    """
    if settings.val + settings.test >= 1:
        raise DataError(
            f"data.val {settings.val} and data.test {settings.test} leave nothing to train on",
            "shares whose sum is below 1",
            "for example --set data.val=0.15 --set data.test=0.15",
        )
    if source.startswith("torchvision:"):
        arrays = load_arrays(source)
        manifest, notes, excluded = assemble(source, arrays.listing, arrays.scan, settings, seed)
        return Dataset(manifest, ArrayImages(arrays.images), notes, excluded)
    place = absolute_path(source)
    if is_pack(place):
        return _load_pack(source, Pack.open(place), settings, seed, workers, progress)
    listing = list_source(source, settings)
    found = scan(listing.root, listing.paths, workers=workers, progress=progress)
    manifest, notes, excluded = assemble(source, listing, found, settings, seed)
    return Dataset(manifest, FileImages(manifest.root, manifest.paths), notes, excluded)


def open_images(manifest: Manifest) -> Images:
    """The pictures of ``manifest``, by row, where they lay when it was made; DataError if they are no longer there."""
    if manifest.source.startswith("torchvision:"):
        arrays = load_arrays(manifest.source)
        rows = pc.index_in(manifest.paths, arrays.listing.paths).fill_null(0).to_numpy()
        if not hex_strings(arrays.scan.digests).take(rows).equals(manifest.hashes):
            raise DataError(
                f"{manifest.source} is not what it was when the run began",
                "the same pictures in the same order",
                "restore its files, or start a new run",
            )
        return ArrayImages(arrays.images if len(manifest) == len(arrays.images) else arrays.images[rows])
    if manifest.variant:
        return _open_pack(manifest)
    root = str(digits_folder()) if manifest.source == "digits" else manifest.root
    if not os.path.isdir(root):
        raise DataError(
            f"the pictures of {manifest.source!r} lay in {root}, which is not there",
            "the folder as it was when the run began",
            "mount or move it back; or say where the pictures are now: stagewright resume RUN --data DIR",
        )
    return FileImages(root, manifest.paths)


def _load_pack(source: str, pack: Pack, settings: Data, seed: int, workers: int, progress: Progress | None) -> Dataset:
    listing = pack.listing(settings)
    manifest, notes, excluded = assemble(source, listing, pack.scan(), settings, seed)
    manifest = replace(manifest, variant=pack.head.variant)
    check_notes = check_records(pack, workers=workers, progress=progress)
    return Dataset(manifest, pack.images(manifest.paths), (*notes, *check_notes), excluded)


def _open_pack(manifest: Manifest) -> Images:
    """The pictures of ``manifest`` in the pack that it was made of; DataError if it is another one now."""
    pack = Pack.open(Path(manifest.root))
    if pack.head.variant != manifest.variant:
        raise DataError(
            f"{manifest.root} is a {pack.head.variant}, and was a {manifest.variant} when the run began",
            "the pack that the run was begun with",
            "restore it, or start a new run",
        )
    check_records(pack)
    return pack.images(manifest.paths, manifest.hashes)
