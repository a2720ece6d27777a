"""Images inside Parquet files, as Hugging Face writes them: unpacked once into the cache folder, and then files like others.

A column holds images if it is ``struct<bytes, path>`` or binary and its values are no text. Each value becomes the file
``SHARD/ROW.EXTENSION``; where the files stay in an object store (:mod:`stagewright.data.sources.parquets`), it has this path too,
so that the data set is the same. A folder of unpacked images belongs to the Parquet files of one path, size and time, and is
complete or absent. It may be deleted at any time: :func:`unpacked_again` makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stagewright.data.images.decode import image_extensions
from stagewright.data.manifest import Manifest
from stagewright.data.sources.folder_names import part_folders
from stagewright.data.sources.folders import PART_NAMES, absolute_path
from stagewright.data.sources.walk import is_folder, is_ignored
from stagewright.errors import DataError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import make_folders, unwritable
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import RangeFile
from stagewright.text import some

_BATCH = 16
"""Rows that are in memory at once."""
_PREFERRED = ("image", "img", "picture", "photo")
_SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
_SIGNATURES |= {b"II*\0": ".tif", b"MM\0*": ".tif"}
_SPLIT = "split"


@dataclass(frozen=True)
class Embedded:
    """The images of one or several Parquet files, and the other columns."""

    root: str
    """Folder of the unpacked images, or the URL of the Parquet files."""
    where: str
    """What became of the images, for the user: ``were unpacked to FOLDER``."""
    column: str
    """The column of the images; in ``table`` it has their paths relative to ``root``, empty where there is no image."""
    table: pa.Table
    """Columns of the Parquet files: class names of Hugging Face in place of their numbers; ``split`` from the file names."""
    class_columns: tuple[str, ...]
    """Columns whose features say that they are classes."""


def shards(folder: Path) -> list[Path]:
    """Returns the Parquet files with images of a folder that has nothing else but files, or of its only folder ``data``."""
    try:
        with os.scandir(folder) as opened:  # which knows folders without asking for each of a million images
            entries = sorted((entry for entry in opened if not is_ignored(entry.name)), key=lambda entry: entry.name)
        folders = [entry.name for entry in entries if is_folder(entry)]
    except OSError:
        return []
    if folders == ["data"] and not any(entry.name.endswith(".parquet") for entry in entries):
        return shards(folder / "data")
    named = [folder / entry.name for entry in entries if entry.name.lower().endswith(".parquet")]
    files = [file for file in named if file.is_file()]
    return files if files and not folders and image_column(files[0]) is not None else []


def image_column(file: Path, requested: str | None = None) -> str | None:
    """Returns the column of the Parquet file that holds images, or None; ``requested`` must be that column, if it is given.

    DataError if there are several and none of a usual name, or if the file is damaged.
    """
    with opened(file, str(file)) as parquet:
        return find_column(parquet, str(file), requested)


def find_column(parquet: pq.ParquetFile, file: str, requested: str | None) -> str | None:
    """Returns the column of the opened Parquet file ``file`` that holds images; the rest as for :func:`image_column`."""
    schema = parquet.schema_arrow
    named = [name for name in schema.names if schema.names.count(name) == 1]
    found = [name for name in named if _may_hold_images(schema.field(name).type) and _holds_images(parquet, name)]
    if requested is not None:
        return requested if requested in found else None
    features = [name for name in found if _features(schema).get(name, {}).get("_type") == "Image"]
    usual = [name for name in _PREFERRED if name in found]
    if len(found) > 1 and not usual and len(features) != 1:
        raise DataError(
            f"{file} has images in several columns: {some(map(repr, found))}",
            "one image for each row",
            f"name the column: --set data.path={found[0]}",
        )
    return next(iter([*(features if len(features) == 1 else []), *usual, *found]), None)


def unpack(files: Sequence[Path], requested: str | None = None) -> Embedded | None:
    """Unpacks the images of ``files`` into the cache folder, unless that was done before; None if they hold no images.

    ``requested`` is the column of the images, if the user has named it. DataError for damaged files and for files with other
    columns than the first; StorageError if the cache cannot be written.
    """
    column = image_column(files[0], requested)
    if column is None:
        return None
    _refuse_other_columns(files, column)
    stamps = [[str(file), *_stamp(file)] for file in files]
    root = cache_folder("unpacked", hashlib.blake2b(json.dumps([column, stamps]).encode(), digest_size=16).hexdigest())
    if not root.is_dir():
        _write_all(files, column, root)
    table = joined(
        [_columns_of(file, column, root) for file in files], [file.stem for file in files], str(files[0].parent)
    )
    with opened(files[0], str(files[0])) as parquet:
        classes = class_columns(parquet.schema_arrow)
    return Embedded(str(root), f"were unpacked to {root}", column, table, classes)


def joined(tables: Sequence[pa.Table], stems: Sequence[str], folder: str) -> pa.Table:
    """Returns the ``tables`` of files with these names, without ``.parquet``, as one; with the column ``split``, if they have
    none and their names say it. DataError if they differ in columns."""
    parts = _parts(stems)
    if parts and not any(_SPLIT in table.column_names for table in tables):
        tables = [
            table.append_column(_SPLIT, pa.array([parts[stem]] * len(table), pa.string()))
            for stem, table in zip(stems, tables, strict=True)
        ]
    if any(table.column_names != tables[0].column_names for table in tables):
        raise different_columns(folder)
    return pa.concat_tables(tables)


def different_columns(folder: str) -> DataError:
    """Returns the error for Parquet files in ``folder`` that have other columns than the first."""
    return DataError(
        f"the Parquet files in {folder} have different columns",
        "files of one data set",
        "point at one of them, or move the others away",
    )


def class_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Returns the columns of which the features of Hugging Face say that they are classes."""
    return tuple(name for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel")


def unpacked_again(manifest: Manifest) -> str:
    """Returns the folder of the images of ``manifest``; if it was one of unpacked images and is gone, it is made again."""
    if os.path.isdir(manifest.root) or Path(manifest.root).parent != cache_folder("unpacked"):
        return manifest.root
    return unpacked_root(manifest.source) or manifest.root


def unpacked_root(source: str) -> str | None:
    """Returns the folder of the unpacked images of ``source``, or None if it is not a Parquet file, or folder, with images."""
    files = parquet_files(absolute_path(source))
    found = unpack(files) if files else None
    return None if found is None else str(found.root)


def parquet_files(place: Path) -> list[Path]:
    """Returns the Parquet files of ``place``: itself, or those of a folder of shards; [] for anything else."""
    if place.is_dir():
        return shards(place)
    return [place] if place.suffix.lower() == ".parquet" and place.is_file() else []


def _refuse_other_columns(files: Sequence[Path], column: str) -> None:
    """DataError with the name of the first file that has no images in ``column``."""
    for file in files[1:]:
        with opened(file, str(file)) as parquet:
            refuse_other_column(parquet.schema_arrow, str(file), column, files[0].name)


def refuse_other_column(schema: pa.Schema, file: str, column: str, first: str) -> None:
    """DataError if the Parquet file ``file`` has no images in ``column``, as the file ``first`` has."""
    if column not in schema.names or not _may_hold_images(schema.field(column).type):
        raise DataError(
            f"{file} has no images in the column {column!r}, as {first} has; its columns: {some(schema.names, 9)}",
            "Parquet files of one data set, with the same columns",
            "point at one of them, or move the others away",
        )


def _may_hold_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether values of the column are no text. Some programs write text as binary, and struct columns may hold only paths."""
    for _, values, _ in _cells(parquet, column):
        known = [value for value in values if value]
        if known:
            return any(not _is_text(value) for value in known)
    return False


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value[:4096].decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # a character that 4096 bytes cut in two


def _cells(parquet: pq.ParquetFile, column: str) -> Iterator[tuple[int, list[bytes | None], list[str | None]]]:
    """Yields (first row, bytes, file names) of a few rows at a time."""
    row = 0
    for batch in parquet.iter_batches(_BATCH, columns=[column]):
        cells, names = cells_of(batch.column(0))
        yield row, cells, names
        row += len(cells)


def cells_of(column: pa.Array) -> tuple[list[bytes | None], list[str | None]]:
    """Returns the bytes of the images in rows of a column, and the names that their files had, where it has them."""
    cells, names = column.to_pylist(), list[object]()
    if pa.types.is_struct(column.type):
        names = [cell.get("path") if cell else None for cell in cells]
        cells = [cell["bytes"] if cell else None for cell in cells]
    return cells, [name if isinstance(name, str) else None for name in names or [None] * len(cells)]


def _write_all(files: Sequence[Path], column: str, root: Path) -> None:
    """Writes the images of ``files`` to ``root``, completely or not at all."""
    make_folders(root.parent)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.part")
    try:
        for file in files:
            (temporary / file.stem).mkdir(parents=True)
            with opened(file, str(file)) as parquet:
                for first, values, names in _cells(parquet, column):
                    for row, (value, name) in enumerate(zip(values, names, strict=True), first):
                        if value is not None:
                            (temporary / path_of(file.stem, row, value, name)).write_bytes(value)
        try:
            temporary.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster
                raise
    except OSError as error:
        raise unwritable(root, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def path_of(stem: str, row: int, value: bytes, name: str | None) -> str:
    """Returns the path of the image ``value`` in a row of the file ``stem``.parquet; ``name``: that of its file, if known."""
    return f"{stem}/{row:06d}{_extension(value, name)}"


def _extension(value: bytes, name: str | None) -> str:
    given = os.path.splitext(name or "")[1].lower()
    if given in image_extensions():
        return given
    return next((extension for start, extension in _SIGNATURES.items() if value.startswith(start)), ".jpg")


def _columns_of(file: Path, column: str, root: Path) -> pa.Table:
    """Returns the columns of the file besides its images, and in place of these the paths of the files below ``root``."""
    with opened(file, str(file)) as parquet:
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows
        table = with_class_names(parquet.read(other_columns(schema, column)), schema)
    paths = [""] * count
    for entry in (root / file.stem).iterdir():
        paths[int(entry.stem)] = f"{file.stem}/{entry.name}"
    return table.append_column(column, pa.array(paths, pa.string()))


def other_columns(schema: pa.Schema, column: str) -> list[str]:
    """Returns the columns that hold no images."""
    return [name for name in schema.names if name != column and not _may_hold_images(schema.field(name).type)]


def with_class_names(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns ``table``, columns of a file with ``schema``, with the names of classes in place of their numbers."""
    for name, feature in _features(schema).items():
        names = feature.get("names")
        if name in table.column_names and isinstance(names, list) and pa.types.is_integer(schema.field(name).type):
            at = table.column_names.index(name)
            table = table.set_column(at, name, _class_names(table[name], [str(one) for one in names]))
    return table


def _class_names(column: pa.ChunkedArray, names: list[str]) -> pa.Array:
    """Returns the names of classes by number; null for -1, which means that a row has no class. Others stay numbers."""
    texts = {number: name for number, name in enumerate(names)}
    return pa.array(
        [None if number is None or number < 0 else texts.get(number, str(number)) for number in column.to_pylist()],
        pa.string(),
    )


def _parts(stems: Sequence[str]) -> dict[str, str]:
    """Returns the part (train, val, test) of each file by its name, ``train-00000-of-00002``; {} if there is only one."""
    words = {stem: stem.split("-")[0] if "-of-" in stem else stem for stem in stems}
    found = part_folders(sorted(set(words.values())))
    by_word = {word: PART_NAMES[part] for part, named in found.names.items() for word in named if part in PART_NAMES}
    if len(set(by_word.values())) < 2 or set(words.values()) != set(by_word):
        return {}
    return {stem: by_word[word] for stem, word in words.items()}


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Returns Hugging Face's description of the columns, by name; {} if there is none that can be read."""
    try:
        found = parse_object((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


@contextmanager
def opened(file: Path | RangeFile, name: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Opens the Parquet file ``name``; ``metadata`` is read if it is not given. DataError if it turns out to be damaged."""
    try:
        # Not buffered ahead, so that one row group at a time is read.
        with pq.ParquetFile(file, metadata=metadata, pre_buffer=False, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk, or of a file that is written meanwhile
            raise
        raise damaged(name, error) from error


def damaged(name: str, error: Exception) -> DataError:
    """Returns the error for a Parquet file that cannot be read."""
    return DataError(
        f"{name} cannot be read as a table: {(str(error).splitlines() or [type(error).__name__])[0]}",
        "a Parquet file",
        "download or copy it again",
    )
