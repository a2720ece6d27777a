"""Indexes a tar file of WebDataset: where each image lies, its size in pixels, and what stands beside it (.cls, .json, .txt).

The members whose names are equal up to the first dot are one sample. A file on the disk is read once and each image is decoded
once, as other files are. A file in an object store is read in windows of 4 MB, so that members larger than this are skipped,
and only the begin of each image is looked at, since its size is in the header, unless the whole images are asked for. An index
is cached by place, size and ETag, or time.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import PIL
import pyarrow as pa

from stagewright.data.images.decode import image_extensions, open_image, read_error, turned
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.places import map_file
from stagewright.data.images.remote import changed
from stagewright.data.sources.scan import DIGEST_BYTES, described, digest_of
from stagewright.errors import DataError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import missing_or_unreadable
from stagewright.storage.object_files import Changed, RangeFile, StoredObject, read_range
from stagewright.storage.objects import open_store
from stagewright.storage.parquet import read_table, write_table

BESIDE = ("cls", "json", "txt")
"""Members beside an image that may hold its class."""
HASH_OF = "ETag of the tar file, offset and length"
"""What hashes of images in a store are of: their bytes are not read before the training."""
WINDOW = 1 << 22
"""Bytes of an object that are read at a time."""
_HEAD = 1 << 16
"""Bytes of an image in a store in which its size must be; what has it later is read whole."""
_MOST_BESIDE = 1 << 20
_VERSION = 1
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""WebDataset's rule: key, then all extensions."""
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "suffix": pa.string(),  # of the image member, in lower case; null for a sample without an image
        "offset": pa.int64(),
        "length": pa.int64(),
        **{name: pa.string() for name in BESIDE},
        "digest": pa.binary(DIGEST_BYTES),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),  # why it is no image that can be read
    }
)


def index_of(root: str, shard: StoredObject, path: str, max_pixels: int = MOST_PIXELS, whole: bool = False) -> pa.Table:
    """Returns the index of a tar file, a table of :data:`SCHEMA` with one row for each image, in the order of the file.

    ``path`` is the file on the disk, or its URL; ``root`` the folder or URL that ``shard.name`` is relative to; ``whole``: one in
    a store is read completely, and has the index that it would have on the disk. DataError if it is damaged, truncated,
    compressed or has changed.
    """
    remote = bool(shard.etag)
    stamp = [shard.bytes, shard.etag, *(["whole"] if whole else [])] if remote else _stamp(path)
    words = [_VERSION, PIL.__version__, max_pixels, path, *stamp]
    file = cache_folder("tars", hashlib.blake2b(repr(words).encode(), digest_size=16).hexdigest() + ".parquet")
    try:
        table = read_table(file)
        if table.schema.equals(SCHEMA):
            return table
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        pass
    table = _index_remote(root, shard, max_pixels, whole) if remote else _index_local(path, max_pixels)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, file)
    return table


def _stamp(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise missing_or_unreadable(path, error) from error
    return [status.st_size, status.st_mtime_ns, status.st_ino]


@dataclass
class _Sample:
    key: str
    images: dict[str, dict[str, Any]]
    """By suffix: what the index says of it."""
    beside: dict[str, str | None]


Read = Callable[[int, int], bytes]
"""Returns bytes of the tar file by (offset, length)."""
Picture = Callable[[int, int], dict[str, Any]]
"""Returns digest, width and height of the image at (offset, length), or the reason why it has none."""


def _index_local(path: str, max_pixels: int) -> pa.Table:
    try:
        content = memoryview(map_file(path))
        _refuse_compressed(path, bytes(content[:6]))
        with open(path, "rb") as file:
            read: Read = lambda at, count: bytes(content[at : at + count])  # noqa: E731
            return _index(path, file, read, _decoded(read, max_pixels))
    except OSError as error:
        raise missing_or_unreadable(path, error) from error


def _decoded(read: Read, max_pixels: int) -> Picture:
    return lambda offset, length: described(read(offset, length), max_pixels)


def _index_remote(root: str, shard: StoredObject, max_pixels: int, whole: bool) -> pa.Table:
    windows = Windows(root, shard)
    url = f"{root}/{shard.name}"
    _refuse_compressed(url, windows.at(0, min(6, shard.bytes)))

    def picture(offset: int, length: int) -> dict[str, Any]:
        found: dict[str, Any] = {"digest": digest_of(f"{shard.etag}:{offset}:{length}".encode())}
        try:
            try:
                found["width"], found["height"] = _size_in(windows.at(offset, min(length, _HEAD)), max_pixels)
            except OSError:
                found["width"], found["height"] = _size_in(windows.at(offset, length), max_pixels)
        except OSError as error:
            found["reason"] = str(error)
        return found

    file = RangeFile(shard.bytes, windows.at)
    return _index(url, cast(BinaryIO, file), windows.at, _decoded(windows.at, max_pixels) if whole else picture)


def _size_in(head: bytes, max_pixels: int) -> tuple[int, int]:
    """Returns the upright (width, height) of the image that begins with ``head``; OSError if it does not tell them."""
    try:
        image = open_image(head, max_pixels)
        return turned(image.size, image)
    except Exception as error:
        raise read_error(error, max_pixels) from error


def _index(name: str, file: BinaryIO, read: Read, picture: Picture) -> pa.Table:
    """Returns the index of the tar ``file``. DataError if it is damaged."""
    by_key: dict[str, _Sample] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                _take(name, info, by_key, read, picture)
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _truncated(name, len(by_key), str(error)) from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise _truncated(name, len(by_key), "it has no mark of its end" if not end else "what follows is no member")
    rows: list[dict[str, Any]] = []
    for sample in by_key.values():
        named = {"key": sample.key, **sample.beside}
        rows += [{**named, "suffix": suffix, **found} for suffix, found in sample.images.items()] or [named]
    return pa.Table.from_pylist(rows, SCHEMA)


def _take(name: str, info: tarfile.TarInfo, by_key: dict[str, _Sample], read: Read, picture: Picture) -> None:
    """Adds a member of the tar file to its sample."""
    split = _KEY.fullmatch(info.name.removeprefix("./"))
    if not info.isreg() or split is None or os.path.basename(info.name).startswith("."):
        return
    key, suffix = split[1], split[2].lower()
    is_image = f".{suffix.rpartition('.')[2]}" in image_extensions()
    if not is_image and suffix not in BESIDE:
        return
    sample = by_key.setdefault(key, _Sample(key, {}, {}))
    if suffix in sample.images or suffix in sample.beside:
        raise _damaged(name, f"it has two members {key}.{suffix}", "one member of each name")
    place = {"offset": info.offset_data, "length": info.size}
    if not is_image:
        sample.beside[suffix] = _text(read(info.offset_data, info.size)) if info.size <= _MOST_BESIDE else None
    elif info.size:
        sample.images[suffix] = {**place, **picture(info.offset_data, info.size)}
    else:
        sample.images[suffix] = {**place, "reason": "the file is empty"}


def _text(data: bytes) -> str | None:
    """Returns the text of a member beside an image; None if it is no text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class Windows:
    """A file in an object store, of which a window is in memory. DataError if it changes."""

    def __init__(self, root: str, shard: StoredObject) -> None:
        self.root, self.shard, self.store = root, shard, open_store(root)
        self.begin, self.window = 0, b""

    def at(self, offset: int, length: int) -> bytes:
        """Returns bytes of the file."""
        if not length:
            return b""
        if not self.begin <= offset <= offset + length <= self.begin + len(self.window):
            size = min(max(length, WINDOW), self.shard.bytes - offset)
            try:
                self.window = read_range(self.store, self.root, self.shard.name, offset, size, self.shard.etag)
            except (Changed, FileNotFoundError) as error:
                raise changed(self.root, self.shard.name) from error
            self.begin = offset
        return self.window[offset - self.begin :][:length]


_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _refuse_compressed(name: str, begin: bytes) -> None:
    for magic, how in _COMPRESSED.items():
        if begin.startswith(magic):
            raise DataError(
                f"{name} is compressed with {how}, so that no image in it can be found without reading all before it",
                "tar files that are not compressed (images are already)",
                "unpack it to a .tar (gunzip, bunzip2, unxz, unzstd)",
            )


def _truncated(name: str, samples: int, why: str) -> DataError:
    return _damaged(name, f"after {samples:,} samples it cannot be read: {why}", "a whole tar file")


def _damaged(name: str, what: str, allowed: str) -> DataError:
    return DataError(f"the tar file {name} is damaged or truncated: {what}", allowed, "copy or download it again")
