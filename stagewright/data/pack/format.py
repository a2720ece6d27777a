"""Defines the file format of a pack, and reads its files one by one.

A pack is a folder with these files. ``pack.json``, the head, describes the pack; it is written last, so a pack with this file
is complete. ``index.parquet`` has one row per image of DATA, in the same order. ``part-00000.arrow`` and the following parts
are shards with the images: Arrow IPC files with the columns of :data:`PART_SCHEMA`. They are not compressed, so a record is a
slice of a memory map. Every record, every part, the index and the head have a checksum. Records are numbered from 0 through
all parts; images that could not be read have no record.

The order of the records is another than that of the index (``Head.order``): ``mixed`` by a key, so that neighbours in a part
are images of any class and a part can be read in blocks, or ``listed`` as the index. The index alone decides about the
manifest: it has the number of the part, the offset and the length of each record, so the order of the records changes no
manifest. Version 1 had no such columns and only the order of the index; it is still read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from stagewright.data.images.places import map_file
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import UNDECIDED
from stagewright.data.sources.scan import DIGEST_BYTES
from stagewright.errors import DataError
from stagewright.recipe.schema import problems
from stagewright.storage.files import MISSING, missing_or_unreadable, read_parsed, retry_io, unreadable
from stagewright.storage.json_text import parse_object

Encoding = Literal["jpeg", "raw"]
Order = Literal["listed", "mixed"]

HEAD, UNFINISHED, INDEX = "pack.json", "packing.json", "index.parquet"
VERSION = 2
_FORMAT = "stagewright pack"
_BLOCK = 1 << 22

_Count = Annotated[int, Field(ge=0, le=2**62)]

PARTS = {TRAIN: "train", VAL: "val", TEST: "test", UNDECIDED: "undecided"}
"""The values of the column ``split`` of the index."""

PART_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "image": pa.large_binary(),
    }
)
"""The columns of a part file. ``image`` is a JPEG file or, with raw encoding, uint8 of shape (height, width, 3)."""

INDEX_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),  # null: excluded by the source before the scan; such rows come last
        "split": pa.string(),
        "group": pa.string(),
        "digest": pa.binary(DIGEST_BYTES),  # of the bytes of the original file
        "width": pa.int32(),  # of the upright original
        "height": pa.int32(),
        "stored_width": pa.int32(),
        "stored_height": pa.int32(),
        "file": pa.int32(),  # number of the part file; null if there is no record
        "offset": pa.int64(),  # of the first byte of the record in the part file; not in version 1
        "length": pa.int64(),  # of the record in bytes; not in version 1
        "crc32": pa.uint32(),  # of the bytes of the record
        "reason": pa.string(),  # why there is no record
        "picture": pa.bool_(),  # false if the file does not even begin like an image
    }
)


def unfinished_folder(folder: Path) -> Path:
    """Returns the folder in which the pack ``folder`` is made (:mod:`stagewright.data.pack.place`)."""
    return folder.with_name(f".{folder.name}.unfinished")


@dataclass(frozen=True)
class PartFile:
    """One part of a pack, which contains ``rows`` records, starting with the record ``first``."""

    file: Annotated[str, StringConstraints(pattern=r"^part-\d{5,9}\.arrow$")]
    """File name, within the folder of the pack."""
    first: _Count
    rows: _Count
    bytes: _Count
    crc32: _Count
    """Checksum of the whole file."""
    original_bytes: _Count
    """Size of the original image files in bytes."""
    pillow: str
    """The version of Pillow that encoded the images."""


@dataclass(frozen=True)
class Head:
    """The content of ``pack.json``, and of ``packing.json`` while the pack is being written."""

    encoding: Encoding
    size: int
    """Images with a larger short side were resized to this short side in pixels."""
    quality: int | None
    """JPEG quality; None for raw."""
    resample: str
    """Pillow's name of the resize filter."""
    listing: str
    """Digest of the source: paths, classes, split, groups and content of the images."""
    source: str
    """The DATA argument that was packed."""
    form: Literal["folder", "table"]
    settings: Mapping[str, str | None]
    """``path``, ``label``, ``group``, ``split`` and ``images`` of the recipe's ``data`` section when the pack was made."""
    group_name: str
    """Name of the group column."""
    grouped: bool
    """True if DATA has groups."""
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    num_listed: _Count
    """Number of rows of the index that were scanned. The rows after them were excluded by the source before the scan."""
    num_records: _Count
    index_crc32: _Count
    parts: tuple[PartFile, ...]
    order: Order = "listed"
    """Order of the records: that of the index, or a random one by a key that follows from ``listing``."""
    version: Literal[1, 2] = VERSION
    """Version of the format."""

    @property
    def variant(self) -> str:
        """Describes the pixels in words. This text is part of a manifest's digest."""
        how = "raw" if self.encoding == "raw" else f"jpeg q{self.quality}"
        return f"pack of {self.size} px, {how}"

    def to_json(self) -> str:
        """Returns the text of the file, which contains a digest of its own content."""
        content = {"format": _FORMAT, "version": self.version, **asdict(self)}
        return json.dumps({**content, "sha256": _sha256(content)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> Head:
        """Reads the head in ``file``.

        Raises FileNotFoundError if the file is missing, DataError if it is damaged or not a head, and Unreadable if it cannot
        be read now.
        """
        return read_parsed(file, lambda data: cls._parsed(file, data))

    @classmethod
    def _parsed(cls, file: Path, data: bytes) -> Head:
        try:
            content = parse_object(data)
            if content["format"] != _FORMAT:
                raise KeyError(content["format"])
            version, digest = content["version"], content.pop("sha256")
        except (ValueError, KeyError) as error:
            raise _no_head(file, "it was not written by stagewright data pack") from error
        if version not in (1, VERSION):
            raise DataError(
                f"{file} has version {version} of the pack format",
                f"versions 1 to {VERSION}",
                "update stagewright, or pack the originals again",
            )
        if _sha256(content) != digest:
            raise _no_head(file, "its content does not match its digest")
        try:
            head = TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
            if head.version > 1 and "order" not in content:
                raise _no_head(file, "order: it is missing")
        except ValidationError as error:
            raise _no_head(file, problems(error)) from error
        if (rows := sum(part.rows for part in head.parts)) > head.num_records or head.num_records > head.num_listed:
            raise _no_head(
                file, f"its parts have {rows:,} records, of {head.num_records:,} of {head.num_listed:,} pictures"
            )
        ends = accumulate(part.rows for part in head.parts)
        if any(part.first != end - part.rows for part, end in zip(head.parts, ends, strict=True)):
            raise _no_head(file, "its parts do not follow each other")
        return head


def open_part(folder: Path, part: PartFile) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Maps a part into memory. Returns its read-only bytes, and the offset and length in bytes of each record.

    No file stays open. Raises DataError if the part is missing or does not have the expected rows and columns, and Unreadable
    if it cannot be opened now.
    """
    buffer = _opened(folder, part)
    try:
        # Read all columns, since reading only some of them would copy their data.
        with pa.ipc.open_file(buffer) as reader:
            if not reader.schema.equals(PART_SCHEMA):
                raise ValueError("it does not have the columns of a part")
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
                raise ValueError("records are outside of the file")
            first += len(column)
        if (lengths <= 0).any():
            raise ValueError("records have no bytes")
    except MemoryError as error:
        raise unreadable(folder / part.file, error) from error
    except (OSError, pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        # pyarrow also raises OSError for damaged content.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise damaged(folder, f"{part.file} cannot be read ({reason})") from error
    return np.frombuffer(buffer, np.uint8), offsets, lengths


def map_part(folder: Path, part: PartFile) -> NDArray[np.uint8]:
    """Maps a part into memory and returns its read-only bytes. Raises DataError if it is missing or has another size, and
    Unreadable if it cannot be opened now."""
    buffer = _opened(folder, part)
    if buffer.size != part.bytes:
        raise damaged(folder, f"{part.file} has {buffer.size:,} bytes instead of {part.bytes:,}")
    return np.frombuffer(buffer, np.uint8)


def _opened(folder: Path, part: PartFile) -> pa.Buffer:
    try:
        return map_file(folder / part.file)
    except OSError as error:
        if error.errno in MISSING:
            raise damaged(folder, f"{part.file} is missing") from error
        raise unreadable(folder / part.file, error) from error


@dataclass(frozen=True, eq=False)
class Extents:
    """Where the records of some parts lie, by number of the record."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """int64 (N,): first byte in the part file, and number of bytes."""
    crcs: NDArray[np.uint32]
    """uint32 (N,): checksum of the bytes."""

    @classmethod
    def empty(cls, count: int) -> Extents:
        """Returns the extents of ``count`` records, all zero."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.uint32))

    def put(self, first: int, other: Extents) -> None:
        """Copies ``other`` into the records from ``first`` on."""
        span = slice(first, first + len(other.crcs))
        self.offsets[span], self.lengths[span], self.crcs[span] = other.offsets, other.lengths, other.crcs


def record_extents(folder: Path, part: PartFile) -> Extents:
    """Finds the records of a part, and computes their crc32 from its current content. Raises DataError if the part cannot be
    opened."""
    buffer, offsets, lengths = open_part(folder, part)
    view = buffer.data
    spans = zip(offsets.tolist(), (offsets + lengths).tolist(), strict=True)
    return Extents(offsets, lengths, np.array([zlib.crc32(view[begin:end]) for begin, end in spans], np.uint32))


def crc32_of(file: Path) -> int:
    """Computes the crc32 of ``file``. Raises FileNotFoundError if it is missing, Unreadable if it cannot be read now."""
    try:
        return retry_io(file, _crc32)
    except OSError as error:
        raise missing_or_unreadable(file, error) from error


def has_crc32(file: Path, expected: int) -> bool:
    """Returns True if ``file`` has the crc32 ``expected``. If it differs, the file is read a second time.

    Raises the same errors as :func:`crc32_of`.
    """
    return crc32_of(file) == expected or crc32_of(file) == expected


def _crc32(path: str) -> int:
    # Do not use a memory map: with it, a disk failure would kill the process instead of raising an OSError.
    crc, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as opened:
        while count := opened.readinto(block):
            crc = zlib.crc32(block[:count], crc)
    return crc


def damaged(folder: Path | str, what: str) -> DataError:
    """Returns the error for a pack whose files have changed since they were written."""
    return DataError(
        f"the pack {folder} is damaged: {what}",
        "a pack with unchanged files",
        "pack the originals into it again with the same arguments (--order listed for a pack of version 1): only damaged files "
        "are written again",
    )


def _no_head(file: Path, reason: str) -> DataError:
    return DataError(
        f"{file} is damaged or belongs to another program: {reason}",
        f"{file.name} as written by stagewright data pack",
        "restore it from a copy, or pack the originals again with --overwrite",
    )


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
