"""Manifest: the table of all images that a run uses, with hash, label, group and split, stored in one Parquet file.

The manifest defines the order of the images: all other modules identify an image by its row in the manifest. Images from
folders and tables are sorted by path, so the order of files in a folder or of rows in a table makes no difference.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.errors import DataError
from stagewright.storage.files import read_parsed
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import StoredObject
from stagewright.storage.parquet import hash_column, one_array, parse_table, pc, write_table

if TYPE_CHECKING:
    from stagewright.plan.plan import DatasetInfo


SPLITS = ("train", "val", "test")

_STAMPS = ("bytes", "mtime_ns", "ctime_ns")
_KEY = b"stagewright.manifest"
_VERSION = 1
_CLOSED = len(SPLITS)
"""In :attr:`Manifest.splits`: of a test part that stays closed. No file has it."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """N usable images, one per row, stored as columns of length N."""

    root: str
    """Folder that ``paths`` are relative to; empty for images in arrays (torchvision)."""
    source: str
    """DATA as the user gave it, e.g. ``photos/``, ``digits``, ``torchvision:CIFAR100``."""
    classes: tuple[str, ...]
    """Class names, sorted; label i is the class ``classes[i]``."""
    paths: pa.StringArray
    """Paths relative to ``root``, with ``/``; ``train/000123`` for images in arrays."""
    hashes: pa.StringArray
    """Hexadecimal blake2b-128 of the file's bytes, or of the array's bytes."""
    labels: NDArray[np.int32]
    """Indices into ``classes``."""
    splits: NDArray[np.int8]
    """Indices into :data:`SPLITS`; in what :meth:`Manifest.closed` returns, the test images have one above."""
    widths: NDArray[np.int32]
    """Widths in pixels, with the EXIF orientation applied."""
    heights: NDArray[np.int32]
    """Heights in pixels, with the EXIF orientation applied."""
    groups: pa.StringArray | None = None
    """Groups that are not divided between splits (site, patient); null if an image belongs to no group."""
    stamps: NDArray[np.int64] | None = None
    """(N, 3): size in bytes, st_mtime_ns and st_ctime_ns of each file when it was read; None if the images are not in
    separate files, or if an older version wrote the manifest. Not part of the digest."""
    variant: str = ""
    """How the images were converted before training, e.g. ``pack of 256 px, jpeg q90``; empty if they are the originals."""
    blocks: NDArray[np.int32] | None = None
    """The block of each image, from 0, if the order is ``blocked`` (:mod:`stagewright.data.blocks`)."""
    objects: tuple[StoredObject, ...] = ()
    """The files of an object store that hold the images, with sizes and ETags, as they were when the manifest was made; empty
    for images elsewhere. Not part of the digest."""
    hash_of: str = ""
    """What ``hashes`` are of, if not of the images' bytes."""
    column: str = ""
    """The column of Parquet files of an object store that has the images, as Parquet names it: ``image.bytes``. Not part of the
    digest."""
    lengths: NDArray[np.int64] | None = None
    """Bytes of each image in ``column``, so that a run finds the images again without reading all of them; None for images
    elsewhere. Not part of the digest."""

    def __post_init__(self) -> None:
        columns = (
            self.hashes,
            self.labels,
            self.splits,
            self.widths,
            self.heights,
            self.groups,
            self.stamps,
            self.blocks,
            self.lengths,
        )
        if any(column is not None and len(column) != len(self.paths) for column in columns):
            raise ValueError("the columns of a manifest differ in length")
        if self.blocks is not None and len(self.blocks) and self.blocks.min() < 0:
            raise ValueError("a manifest has a block below 0")
        open_splits = self.splits[self.splits != _CLOSED]
        for name, column, end in (("label", self.labels, len(self.classes)), ("split", open_splits, len(SPLITS))):
            if len(column) and not 0 <= column.min() <= column.max() < end:
                raise ValueError(f"a manifest has a {name} outside of 0 to {end - 1}")

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Returns the rows of ``split`` (train, val or test), in ascending order."""
        return np.flatnonzero(self.splits == SPLITS.index(split)).astype(np.int64)

    def closed(self) -> Manifest:
        """Returns the manifest with its test part closed: these images are in no split, so that nobody comes to read them; all
        rows keep their numbers. It describes no data set: its digest, :meth:`info` and :meth:`write` raise ValueError."""
        return replace(self, splits=np.where(self.splits == SPLITS.index("test"), _CLOSED, self.splits).astype(np.int8))

    @property
    def num_closed(self) -> int:
        """Number of images in a test part that is closed."""
        return int(np.count_nonzero(self.splits == _CLOSED))

    def taken(self, rows: NDArray[np.int64]) -> Manifest:
        """Returns the manifest of ``rows`` (N,) alone, in their order."""
        at = pa.array(rows)
        return replace(
            self,
            paths=self.paths.take(at),
            hashes=self.hashes.take(at),
            labels=self.labels[rows],
            splits=self.splits[rows],
            widths=self.widths[rows],
            heights=self.heights[rows],
            stamps=None if self.stamps is None else self.stamps[rows],
            groups=None if self.groups is None else self.groups.take(at),
            blocks=None if self.blocks is None else self.blocks[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
        )

    def group_names(self, rows: NDArray[np.int64]) -> list[str | None] | None:
        """Returns the group of each of ``rows`` (N,); None where the data set has no groups."""
        return None if self.groups is None else self.groups.take(pa.array(rows)).to_pylist()

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the classes, of path, hash, label, group and split of all rows in order, of the variant, and
        of the blocks.

        ``root`` and ``source`` are not part of it, so it stays the same if the images are moved.
        """
        if self.num_closed:
            raise ValueError("a manifest with a closed test part describes no data set")
        digest = hashlib.sha256(json.dumps(["stagewright manifest", _VERSION, len(self), self.classes]).encode())
        for column in (self.paths, self.hashes, self.groups):
            hash_column(digest, column)
        digest.update(np.ascontiguousarray(self.labels, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.splits, "<i1").tobytes())
        if self.variant:  # if it is empty, the digest is the same as in older versions, which had no variant
            digest.update(json.dumps(["variant", self.variant]).encode())
        if self.blocks is not None:
            digest.update(b"blocks" + np.ascontiguousarray(self.blocks, "<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def content(self) -> NDArray[np.uint64]:
        """The first 64 bits of each image's hash, (N,)."""
        first = "".join(text[:16] for text in self.hashes.to_pylist())
        return np.frombuffer(bytes.fromhex(first), "<u8").astype(np.uint64)

    def info(self) -> DatasetInfo:
        """Returns what a plan needs to know: sizes of the splits, classes and digest."""
        from stagewright.plan.plan import DatasetInfo

        digest = self.digest
        train, val, test = (int(count) for count in np.bincount(self.splits, minlength=len(SPLITS)))
        return DatasetInfo(num_train=train, num_val=val, num_test=test, classes=self.classes, digest=digest)

    def write(self, path: str | Path) -> None:
        """Writes the Parquet file ``path`` atomically; an existing file is replaced."""
        digest = self.digest
        head: dict[str, Any] = {"version": _VERSION, "root": self.root, "source": self.source, "classes": self.classes}
        head |= {name: value for name in ("variant", "hash_of", "column") if (value := getattr(self, name))}
        if self.objects:
            head["objects"] = self.objects
        columns: dict[str, Any] = {
            "path": self.paths,
            "hash": self.hashes,
            "label": pa.array(self.labels, pa.int32()),
            "split": pa.array(SPLITS).take(pa.array(self.splits)),
            "width": pa.array(self.widths, pa.int32()),
            "height": pa.array(self.heights, pa.int32()),
        }
        if self.groups is not None:
            columns["group"] = self.groups
        if self.stamps is not None:
            columns |= {name: pa.array(np.ascontiguousarray(self.stamps[:, at])) for at, name in enumerate(_STAMPS)}
        if self.blocks is not None:
            columns["block"] = pa.array(self.blocks, pa.int32())
        if self.lengths is not None:
            columns["length"] = pa.array(self.lengths, pa.int64())
        table = pa.table(columns, metadata={_KEY: json.dumps(head | {"digest": digest}).encode()})
        write_table(table, Path(path))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Returns the manifest in the file ``path``.

        Raises DataError if the file does not exist or is damaged, and Unreadable if it cannot be read at the moment.
        """
        try:
            return read_parsed(path, cls._parsed)
        except FileNotFoundError:
            raise DataError(
                f"there is no manifest {path}",
                "a manifest.parquet that a run has written",
                "restore it from a copy, or start a new run",
            ) from None
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise _damaged(path, (str(error) or type(error).__name__).splitlines()[0]) from error

    @classmethod
    def _parsed(cls, data: bytes) -> Manifest:
        table = parse_table(data)
        head = parse_object((table.schema.metadata or {})[_KEY])
        manifest = cls(
            root=head["root"],
            source=head["source"],
            classes=tuple(head["classes"]),
            paths=one_array(table["path"]),
            hashes=one_array(table["hash"]),
            labels=_integers(table, "label", np.int32),
            splits=pc.index_in(table["split"], pa.array(SPLITS)).fill_null(-1).to_numpy().astype(np.int8),
            widths=_integers(table, "width", np.int32),
            heights=_integers(table, "height", np.int32),
            groups=one_array(table["group"]) if "group" in table.column_names else None,
            stamps=_stamps(table),
            variant=head.get("variant", ""),
            blocks=_integers(table, "block", np.int32) if "block" in table.column_names else None,
            objects=_objects(head.get("objects", [])),
            hash_of=head.get("hash_of", ""),
            column=head.get("column", ""),
            lengths=_integers(table, "length", np.int64) if "length" in table.column_names else None,
        )
        if manifest.digest != head["digest"]:
            raise ValueError("its rows do not match the digest that is stored in it")
        return manifest


def _stamps(table: pa.Table) -> NDArray[np.int64] | None:
    if not set(_STAMPS) <= set(table.column_names):
        return None
    return np.stack([_integers(table, name, np.int64) for name in _STAMPS], axis=1)


def _objects(rows: Any) -> tuple[StoredObject, ...]:
    """Returns the files of an object store that a manifest names; ValueError for anything else."""
    found = tuple(StoredObject(*row) for row in rows if isinstance(row, list) and len(row) == 3)
    if len(found) != len(rows) or any([type(value) for value in one] != [str, int, str] for one in found):
        raise ValueError("its objects are damaged")
    return found


def _integers(table: pa.Table, name: str, kind: type[np.signedinteger]) -> NDArray[Any]:
    """Returns a column of integers without empty cells; ValueError for any other."""
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"{name} has empty cells or values that are no integers")
    return column.cast(pa.from_numpy_dtype(kind)).to_numpy()


def _damaged(path: str | Path, reason: str) -> DataError:
    return DataError(
        f"the manifest {path} is damaged: {reason}",
        "the file as the run wrote it",
        "restore it from a copy, or start a new run on the same data",
    )
