"""Manifest: which pictures a run uses, with hash, label, group and split; written down once, in one Parquet file.

Owns the order of the rows: everywhere else a picture is the number of its row here. Pictures in folders and tables are
sorted by path, so that the order of a listing or of a table's rows changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.errors import DataError
from stagewright.storage.files import read_parsed
from stagewright.storage.parquet import column_bytes, one_array, parse_table, pc, write_table

if TYPE_CHECKING:
    from stagewright.plan.plan import DatasetInfo


SPLITS = ("train", "val", "test")

_STAMPS = ("bytes", "mtime_ns", "ctime_ns")
_KEY = b"stagewright.manifest"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Manifest:
    """One row per usable picture, in compact columns of equal length."""

    root: str
    """Folder that paths are relative to; empty for built-in arrays."""
    source: str
    """DATA as it was given, e.g. ``photos/``, ``digits``, ``torchvision:CIFAR100``."""
    classes: tuple[str, ...]
    """Sorted names; label i is ``classes[i]``."""
    paths: pa.StringArray
    """Relative to ``root``, with ``/``; ``train/000123`` for arrays."""
    hashes: pa.StringArray
    """Hexadecimal blake2b-128 of the file's bytes, or of the array's."""
    labels: NDArray[np.int32]
    splits: NDArray[np.int8]
    """Index into :data:`SPLITS`."""
    widths: NDArray[np.int32]
    """Upright width in pixels (EXIF orientation applied)."""
    heights: NDArray[np.int32]
    groups: pa.StringArray | None = None
    """What never straddles a split (site, patient); null where a picture has none of its own."""
    stamps: NDArray[np.int64] | None = None
    """(N, 3): size in bytes and times of the last change (st_mtime_ns, st_ctime_ns) when the file was looked at; None where
    the pictures lie in no files of their own, or an older version wrote this. No part of the digest."""
    variant: str = ""
    """What was made of the pictures before training reads them, e.g. ``pack of 256 px, jpeg q90``; empty: nothing."""

    def __post_init__(self) -> None:
        columns = (self.hashes, self.labels, self.splits, self.widths, self.heights, self.groups, self.stamps)
        if any(column is not None and len(column) != len(self.paths) for column in columns):
            raise ValueError("the columns of a manifest differ in length")
        for name, column, end in (("label", self.labels, len(self.classes)), ("split", self.splits, len(SPLITS))):
            if len(column) and not 0 <= column.min() <= column.max() < end:
                raise ValueError(f"a manifest has a {name} outside of 0 to {end - 1}")

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of ``split`` (train, val or test), ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split)).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256 in hexadecimal over the classes, every row's path, hash, label, group and split, in order, and the variant.

        Where the pictures lie (``root``) and how they were named (``source``) make no difference.
        """
        digest = hashlib.sha256(json.dumps(["stagewright manifest", _VERSION, len(self), self.classes]).encode())
        for column in (self.paths, self.hashes, self.groups):
            digest.update(b"-" if column is None else column_bytes(column))
        digest.update(np.ascontiguousarray(self.labels, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.splits, "<i1").tobytes())
        if self.variant:  # without one, the digest is that of versions which knew none
            digest.update(json.dumps(["variant", self.variant]).encode())
        return digest.hexdigest()

    def info(self) -> DatasetInfo:
        """What a plan needs to know: sizes of the splits, classes and digest."""
        from stagewright.plan.plan import DatasetInfo

        train, val, test = (int(count) for count in np.bincount(self.splits, minlength=len(SPLITS)))
        return DatasetInfo(num_train=train, num_val=val, num_test=test, classes=self.classes, digest=self.digest)

    def write(self, path: str | Path) -> None:
        """Writes one Parquet file in the place of ``path``, whole or not at all."""
        head: dict[str, Any] = {"version": _VERSION, "root": self.root, "source": self.source, "classes": self.classes}
        if self.variant:
            head["variant"] = self.variant
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
        table = pa.table(columns, metadata={_KEY: json.dumps(head | {"digest": self.digest}).encode()})
        write_table(table, Path(path))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """The manifest in the file ``path``; DataError if there is none, or it is not as it was written, and Unreadable where
        it cannot be read now."""
        try:
            return read_parsed(path, cls._parsed)
        except FileNotFoundError:
            raise DataError(f"there is no manifest {path}", "manifest.parquet as a run writes it") from None
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise _damaged(path, (str(error) or type(error).__name__).splitlines()[0]) from error

    @classmethod
    def _parsed(cls, data: bytes) -> Manifest:
        table = parse_table(data)
        head = json.loads((table.schema.metadata or {})[_KEY])
        manifest = cls(
            root=head["root"],
            source=head["source"],
            classes=tuple(head["classes"]),
            paths=one_array(table["path"]),
            hashes=one_array(table["hash"]),
            labels=table["label"].to_numpy().astype(np.int32),
            splits=pc.index_in(table["split"], pa.array(SPLITS)).fill_null(-1).to_numpy().astype(np.int8),
            widths=table["width"].to_numpy().astype(np.int32),
            heights=table["height"].to_numpy().astype(np.int32),
            groups=one_array(table["group"]) if "group" in table.column_names else None,
            stamps=_stamps(table),
            variant=head.get("variant", ""),
        )
        if manifest.digest != head["digest"]:
            raise ValueError("its rows do not match its own digest")
        return manifest


def _stamps(table: pa.Table) -> NDArray[np.int64] | None:
    if not set(_STAMPS) <= set(table.column_names):
        return None
    return np.stack([table[name].to_numpy().astype(np.int64) for name in _STAMPS], axis=1)


def _damaged(path: str | Path, reason: str) -> DataError:
    return DataError(
        f"the manifest {path} is damaged: {reason}",
        "the file as the run wrote it",
        "restore it from a copy, or start a new run on the same data",
    )
