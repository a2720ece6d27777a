"""Pack files: the format of a pack, and reading its files one by one.

A pack is a folder with ``pack.json`` (what it is; written last, so that its presence means complete), ``index.parquet``
(a row for each picture that DATA lists, in that order) and ``part-00000.arrow``, ... : Arrow IPC files with the columns of
:data:`PART_SCHEMA`, uncompressed, so that a record is a slice of a memory map. Of everything there is a checksum: of each
record, each part, the index and the head. Records are numbered from 0 through all parts, in the order of the index,
passing over what could not be read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import UNDECIDED
from stagewright.data.sources.scan import DIGEST_BYTES
from stagewright.errors import DataError
from stagewright.storage.files import MISSING, missing_or_unreadable, read_parsed, retry_io, unreadable

Encoding = Literal["jpeg", "raw"]

HEAD, UNFINISHED, INDEX = "pack.json", "packing.json", "index.parquet"
_FORMAT, _VERSION = "stagewright pack", 1
_BLOCK = 1 << 22

PARTS = {TRAIN: "train", VAL: "val", TEST: "test", UNDECIDED: "undecided"}
"""The words of the index's column ``split``."""

PART_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "image": pa.large_binary(),
    }
)
"""``image`` is a JPEG file, or raw: uint8 of shape (height, width, 3)."""

INDEX_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),  # null: DATA names it but does not list it; such rows come last
        "split": pa.string(),
        "group": pa.string(),
        "digest": pa.binary(DIGEST_BYTES),  # of the original's bytes
        "width": pa.int32(),  # of the original, upright
        "height": pa.int32(),
        "stored_width": pa.int32(),
        "stored_height": pa.int32(),
        "file": pa.int32(),  # number of the part file; null: no record
        "crc32": pa.uint32(),  # of the record's bytes
        "reason": pa.string(),  # why there is no record
        "picture": pa.bool_(),  # false: it does not claim to be a picture either
    }
)


@dataclass(frozen=True)
class PartFile:
    """One part of a pack: ``rows`` records from ``first`` on."""

    file: str
    first: int
    rows: int
    bytes: int
    crc32: int
    """Of the whole file."""
    original_bytes: int
    """Size of the files that its records were made of."""
    pillow: str
    """The version that made it."""


@dataclass(frozen=True)
class Head:
    """What ``pack.json`` says, and ``packing.json`` while the pack is being made."""

    encoding: Encoding
    size: int
    """The short side in pixels that larger pictures were shrunk to."""
    quality: int | None
    """Of JPEG; None for raw."""
    resample: str
    listing: str
    """Digest of what was packed: paths, classes, parts, groups and content."""
    source: str
    """DATA as it was given."""
    form: Literal["folder", "table"]
    settings: Mapping[str, str | None]
    """path, label, group, split, images of ``data`` in the recipe that the pack was made with."""
    group_name: str
    grouped: bool
    """Whether DATA has groups."""
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    num_listed: int
    """Rows of the index that DATA lists; the others are those that it names and does not list."""
    num_records: int
    index_crc32: int
    parts: tuple[PartFile, ...]

    @property
    def variant(self) -> str:
        """What the pixels are, in words; part of a manifest's digest."""
        how = "raw" if self.encoding == "raw" else f"jpeg q{self.quality}"
        return f"pack of {self.size} px, {how}"

    def to_json(self) -> str:
        """The text of the file, with a digest of itself."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps({**content, "sha256": _sha256(content)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> Head:
        """The head in ``file``; DataError if it is damaged or none, Unreadable if it cannot be read now. FileNotFoundError
        passes."""
        return read_parsed(file, lambda data: cls._parsed(file, data))

    @classmethod
    def _parsed(cls, file: Path, data: bytes) -> Head:
        try:
            content = json.loads(data)
            if content["format"] != _FORMAT:
                raise KeyError(content["format"])
            version, digest = content["version"], content.pop("sha256")
        except (ValueError, KeyError, TypeError) as error:
            raise _no_head(file, "it is not what data pack writes") from error
        if version != _VERSION:
            raise DataError(
                f"{file} is of version {version} of the format",
                f"version {_VERSION}",
                "update stagewright, or pack the originals again",
            )
        if _sha256(content) != digest:
            raise _no_head(file, "it does not match its own digest")
        try:
            given = {field.name: content[field.name] for field in fields(cls)}
            parts = tuple(PartFile(**part) for part in given["parts"])
        except (KeyError, TypeError) as error:
            raise _no_head(file, f"it lacks {error}") from error
        return cls(**given | {"parts": parts, "notes": tuple(given["notes"]), "classes": tuple(given["classes"])})


def open_part(folder: Path, part: PartFile) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The memory map of a part (read-only bytes), and offset and length in bytes of each of its records.

    No file stays open. DataError if it is gone, or has not the rows and columns that it should; Unreadable if it cannot be
    opened now.
    """
    try:
        buffer = retry_io(folder / part.file, _mapped)
    except OSError as error:
        if error.errno in MISSING:
            raise damaged(folder, f"{part.file} is not there") from error
        raise unreadable(folder / part.file, error) from error
    try:
        # All columns: reading some of them only would copy them.
        with pa.ipc.open_file(buffer) as reader:
            if not reader.schema.equals(PART_SCHEMA):
                raise ValueError("it has not the columns of a part")
            columns = [reader.get_batch(at).column("image") for at in range(reader.num_record_batches)]
        offsets, lengths = np.empty(part.rows, np.int64), np.empty(part.rows, np.int64)
        if sum(map(len, columns)) != part.rows:
            raise ValueError(f"it has {sum(map(len, columns)):,} rows instead of {part.rows:,}")
        first = 0
        for column in columns:
            _, bounds, data = column.buffers()
            edges = np.frombuffer(bounds, np.int64, len(column) + 1)
            begin = data.address - buffer.address
            lengths[first : first + len(column)] = np.diff(edges)
            offsets[first : first + len(column)] = edges[:-1] + begin
            if not (0 <= begin <= begin + data.size <= buffer.size and edges.min() >= 0 and edges.max() <= data.size):
                raise ValueError("records lie outside of it")
            first += len(column)
        if (lengths <= 0).any():
            raise ValueError("records have no bytes")
    except MemoryError as error:
        raise unreadable(folder / part.file, error) from error
    except (
        OSError,
        pa.ArrowException,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # OSError: of pyarrow, on its content
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise damaged(folder, f"{part.file} cannot be read ({reason})") from error
    return np.frombuffer(buffer, np.uint8), offsets, lengths


def _mapped(path: str) -> pa.Buffer:
    with pa.memory_map(path) as file:
        return file.read_buffer()


def record_crcs(folder: Path, part: PartFile) -> NDArray[np.uint32]:
    """The crc32 of each record of a part as it is now; DataError if the part cannot be opened."""
    buffer, offsets, lengths = open_part(folder, part)
    view = buffer.data
    spans = zip(offsets.tolist(), (offsets + lengths).tolist(), strict=True)
    return np.array([zlib.crc32(view[begin:end]) for begin, end in spans], np.uint32)


def crc32_of(file: Path) -> int:
    """crc32 of the bytes of ``file``; FileNotFoundError if there is none, Unreadable if it cannot be read now."""
    try:
        return retry_io(file, _crc32)
    except OSError as error:
        raise missing_or_unreadable(file, error) from error


def has_crc32(file: Path, expected: int) -> bool:
    """Whether ``file`` is as it was when its crc32 was taken; what is not is read a second time. Errors as of crc32_of."""
    return crc32_of(file) == expected or crc32_of(file) == expected


def _crc32(path: str) -> int:
    # Not from a memory map: a disk that fails would end the process instead of raising an OSError.
    crc, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as opened:
        while count := opened.readinto(block):
            crc = zlib.crc32(block[:count], crc)
    return crc


def damaged(folder: Path, what: str) -> DataError:
    """The error for a pack that is no longer as it was written."""
    return DataError(
        f"the pack {folder} is damaged: {what}",
        "its files as data pack wrote them",
        "pack the originals into it again, with the same arguments: only what is damaged is made anew",
    )


def _no_head(file: Path, reason: str) -> DataError:
    return DataError(
        f"{file} is damaged or foreign: {reason}",
        f"{file.name} as data pack wrote it",
        "restore it from a copy, or pack the originals again with --overwrite",
    )


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
