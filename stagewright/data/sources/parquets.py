"""Parquet files with images in an object store as DATA: a row group is a block, and nothing is unpacked.

Paths, hashes, classes, parts and groups are those of the same files on the disk, where they are unpacked
(:mod:`stagewright.data.sources.embedded`), so the data set is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.placed import RemotePlacedImages
from stagewright.data.images.places import Places
from stagewright.data.images.remote import RemoteFiles, changed, refuse_changed
from stagewright.data.images.row_groups import RowGroups, metadata_of
from stagewright.data.manifest import Manifest
from stagewright.data.sources.embedded import Embedded, class_columns, joined
from stagewright.data.sources.fetched import on_stderr
from stagewright.data.sources.file_names import read_groups
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.parquet_index import ParquetIndex, index_parquet, read_footer
from stagewright.data.sources.scan import DIGEST_BYTES, Progress, Scan, hex_strings
from stagewright.data.sources.shard_names import PARQUET, Shards
from stagewright.data.sources.tables import list_embedded
from stagewright.errors import DataError
from stagewright.recipe.name_pattern import NamePattern
from stagewright.recipe.recipe import Data
from stagewright.storage.object_files import list_folder
from stagewright.storage.objects import open_store
from stagewright.storage.parquet import one_array, pc
from stagewright.system.threads import Pool
from stagewright.text import counted

_AT_ONCE = 16
"""Ends of files that are read at the same time."""


@dataclass(frozen=True)
class _Place:
    """The URL of Parquet files, as texts name it."""

    url: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, eq=False)
class _Parquets:
    """What is in Parquet files: the images with a class."""

    shards: Shards
    column: str
    """The column with the bytes, as Parquet names it."""
    footers: tuple[bytes, ...]
    listing: Listing
    scan: Scan
    lengths: NDArray[np.int64]
    """int64 (N,): bytes of each image, in the order of the listing."""

    def images(self, paths: pa.StringArray, max_pixels: int) -> RemotePlacedImages:
        """Returns the images of ``paths``, all of which are in the listing."""
        return _images(self.shards, self.column, self.footers, paths, self.lengths_of(paths), max_pixels)

    def lengths_of(self, paths: pa.StringArray) -> NDArray[np.int64]:
        """Returns the number of bytes of each image of ``paths`` (n,), all of which are in the listing."""
        return self.lengths[pc.index_in(paths, self.listing.paths).to_numpy()]


def read_parquets(
    source: str,
    shards: Shards,
    settings: Data,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    say: Callable[[str], None] = on_stderr,
) -> _Parquets | None:
    """Indexes the Parquet files ``shards`` of ``source``, and lists their images; None if they hold none.

    ``say`` is told what the index costs, if there is none yet. DataError as for the same files on the disk, and with the name of
    one that changes meanwhile.
    """
    found = index_parquet(shards, settings.path, settings.max_pixels, workers=workers, progress=progress, say=say)
    if found is None:
        return None
    place = _Place(source.rstrip("/") if source.rstrip("/").lower().endswith(PARQUET) else shards.root)
    column, rows = found[0].column, pa.concat_tables([one.rows for one in found])
    tables = [
        pa.Table.from_arrays(
            [*one.others.columns, one.rows["path"].fill_null("")], names=[*one.others.column_names, column]
        )
        for one in found
    ]
    table = joined(tables, [_stem(one.name) for one in shards.files], str(place))
    groups = sum(metadata_of(one.footer).num_row_groups for one in found)
    size = sum(one.bytes for one in shards.files)
    where = f"are read in place: {counted(len(found), 'Parquet file')} with {counted(groups, 'row group')}, {size / 1e6:,.1f} MB"
    classes = class_columns(_schema(found[0]))
    listing = list_embedded(place, Embedded(shards.root, where, column, table, classes), settings)
    if isinstance(settings.group, NamePattern):
        listing = read_groups(listing, settings.group)
    at = pc.index_in(listing.paths, one_array(rows["path"]))
    scan = _scan(rows.take(at))
    lengths = rows["length"].take(at).to_numpy()
    return _Parquets(shards, _leaf(found[0], column), tuple(one.footer for one in found), listing, scan, lengths)


def open_parquets(manifest: Manifest, max_pixels: int) -> RemotePlacedImages:
    """Returns the images of ``manifest`` from the Parquet files of the run. DataError with the name of one that has changed."""
    root, before, store = manifest.root, manifest.objects, open_store(manifest.root)
    there, _ = list_folder(store, root)
    refuse_changed(root, before, tuple(there.values()))
    shards = Shards(root, tuple(there[one.name] for one in before))
    if any(not one.etag for one in before):  # copies elsewhere: only the content says whether they are the same
        _refuse_other_content(manifest, shards)
    with Pool(_AT_ONCE, "footers") as pool:
        tasks = [pool.submit(read_footer, store, root, one) for one in shards.files]
        footers = tuple(task.result() for task in tasks)
    assert manifest.lengths is not None
    return _images(shards, manifest.column, footers, manifest.paths, manifest.lengths, max_pixels)


def _refuse_other_content(manifest: Manifest, shards: Shards) -> None:
    """DataError with the name of a file in which images of ``manifest`` are missing, or have other bytes."""
    column = manifest.column.removesuffix(".bytes")
    found = index_parquet(shards, column, None, workers=2, progress=None, say=on_stderr)
    wrong = np.ones(len(manifest), np.bool_)
    if found is not None:
        rows = pa.concat_tables([one.rows for one in found])
        at = pc.index_in(manifest.paths, one_array(rows["path"])).fill_null(-1).to_numpy().astype(np.int64)
        hashes = hex_strings(_digests(rows.take(pa.array(np.maximum(at, 0)))))
        wrong = (at < 0) | ~pc.equal(hashes, manifest.hashes).to_numpy(zero_copy_only=False)
    if wrong.any():
        path = manifest.paths[int(np.flatnonzero(wrong)[0])].as_py()
        name = next(one.name for one in shards.files if path.startswith(f"{_stem(one.name)}/"))
        what = f"has changed ({counted(int(wrong.sum()), 'picture')} of the run, e.g. {path})"
        raise changed(manifest.root, name, what)


def _images(
    shards: Shards,
    column: str,
    footers: Sequence[bytes],
    paths: pa.StringArray,
    lengths: NDArray[np.int64],
    max_pixels: int,
) -> RemotePlacedImages:
    """Returns the images of ``paths`` (N,), ``FILE/ROW.EXTENSION``, of so many bytes (N,). DataError if a file has fewer rows."""
    stems = pa.array([_stem(one.name) for one in shards.files], pa.string())
    which = pc.index_in(pc.replace_substring_regex(paths, r"/[^/]*$", ""), stems).to_numpy().astype(np.int32)
    rows = pc.cast(pc.struct_field(pc.extract_regex(paths, r"/(?P<row>\d+)[^/]*$"), "row"), pa.int64()).to_numpy()
    sizes = [one.bytes for one in shards.files]
    try:
        groups = RowGroups.locate(column, footers, sizes, which, rows)
    except ValueError as error:
        raise DataError(
            f"the Parquet files of {shards.root} have not the rows that the run has pictures of: {error}",
            "the files that the run began with",
            "restore them, or start a new run",
        ) from error
    places = _places([one.name for one in shards.files], which, rows, lengths)
    files = RemoteFiles(shards.root, places, tuple(one.etag for one in shards.files), groups)
    return RemotePlacedImages(files, paths, max_pixels)


def _places(
    names: Sequence[str], which: NDArray[np.int32], rows: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Places:
    """Returns where images would lie if each file had them alone, in the order of its rows."""
    order = np.lexsort((rows, which))
    ends = np.cumsum(lengths[order])
    sizes = np.bincount(which, weights=lengths, minlength=len(names)).astype(np.int64)
    offsets = np.empty(len(which), np.int64)
    offsets[order] = ends - lengths[order] - (np.cumsum(sizes) - sizes)[which[order]]
    return Places(tuple(names), tuple(sizes.tolist()), which, offsets, lengths)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _schema(index: ParquetIndex) -> pa.Schema:
    return metadata_of(index.footer).schema.to_arrow_schema()


def _leaf(index: ParquetIndex, column: str) -> str:
    """Returns the name that Parquet has for the bytes of the images in ``column``."""
    return f"{column}.bytes" if pa.types.is_struct(_schema(index).field(column).type) else column


def _scan(rows: pa.Table) -> Scan:
    reasons = {row: reason for row, reason in enumerate(rows["reason"].to_pylist()) if reason is not None}
    sizes = [rows[name].fill_null(0).to_numpy().astype(np.int32) for name in ("width", "height")]
    return Scan(_digests(rows), *sizes, reasons=reasons)


def _digests(rows: pa.Table) -> NDArray[np.uint8]:
    every = b"".join(value or bytes(DIGEST_BYTES) for value in rows["digest"].to_pylist())
    return np.frombuffer(every, np.uint8).reshape(-1, DIGEST_BYTES).copy()
