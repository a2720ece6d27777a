"""Reads a pack, which can be used as DATA like any other source of images. The format is defined in ``format.py``.

A pack returns the same listing and the same scan results as its source, including the sizes of the original images in
pixels. So a recipe makes the same manifest of it, and the same crops. Only the pixels differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from stagewright.data.images.places import Places
from stagewright.data.pack.format import (
    HEAD,
    INDEX,
    INDEX_SCHEMA,
    PARTS,
    UNFINISHED,
    Extents,
    Head,
    PartFile,
    damaged,
    has_crc32,
    open_part,
    unfinished_folder,
)
from stagewright.data.pack.images import PackImages, PackRows
from stagewright.data.sources.folders import UNDECIDED, Listing
from stagewright.data.sources.local import refuse_columns
from stagewright.data.sources.scan import DIGEST_BYTES, Scan, hex_strings
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import is_there, size_of
from stagewright.storage.object_files import StoredObject
from stagewright.storage.parquet import one_array, read_table
from stagewright.system.allocators import give_back_memory
from stagewright.text import counted, some

pc: Any = pyarrow.compute  # its functions are created at import, so type checkers do not know them


def is_pack(folder: Path) -> bool:
    """Returns True if ``folder`` is named ``*.pack`` or contains the head of a finished or unfinished pack."""
    return folder.suffix == ".pack" or any(is_there(folder / name) for name in (HEAD, UNFINISHED))


@dataclass(frozen=True, eq=False)
class Pack:
    """A finished pack whose files have been checked, except for the checksums of its parts."""

    folder: Path
    head: Head

    @classmethod
    def open(cls, folder: Path) -> Pack:
        """Opens the pack in ``folder``, and checks the sizes of its files and the checksum of its index.

        Raises DataError if the folder is not a pack, or the pack is unfinished or damaged. Raises Unreadable if a file cannot
        be read now.
        """
        try:
            head = Head.read(folder / HEAD)
        except FileNotFoundError:
            raise _not_finished(folder) from None
        if (rows := sum(part.rows for part in head.parts)) != head.num_records:
            raise damaged(folder, f"its parts have {rows:,} records instead of {head.num_records:,}")
        for part in head.parts:
            try:
                size = size_of(folder / part.file)
            except FileNotFoundError as error:
                raise damaged(folder, f"{part.file} is missing") from error
            if size != part.bytes:
                raise damaged(folder, f"{part.file} has {size:,} bytes instead of {part.bytes:,}")
        try:
            intact = has_crc32(folder / INDEX, head.index_crc32)
        except FileNotFoundError as error:
            raise damaged(folder, f"{INDEX} is missing") from error
        if not intact:
            raise damaged(folder, f"{INDEX} changed after the pack was written")
        return cls(folder, head)

    @property
    def place(self) -> str:
        """Where the pack is."""
        return str(self.folder)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The parts of a pack in an object store; none for a pack on the disk."""
        return ()

    @property
    def note(self) -> str:
        """Describes the pack in one sentence for the user."""
        head, size = self.head, sum(part.bytes for part in self.head.parts)
        return (
            f"{os.path.basename(self.place)} is a {head.variant}: {counted(head.num_records, 'picture')} of {head.source}, "
            f"reduced to a short side of {head.size} px if they were larger, in {size / 1e6:,.1f} MB"
        )

    def columns(self, *names: str) -> pa.Table:
        """Reads columns of the index. Raises DataError if the index is damaged.

        Who needs many columns of a large index reads them one by one: Arrow's tables and its spare memory add up.
        """
        give_back_memory()
        try:
            table = read_table(self.folder / INDEX, names)
            _check_index(table, names, self.head)
        except (FileNotFoundError, pa.ArrowException, ValueError) as error:
            raise damaged(self.place, f"{INDEX} cannot be read ({str(error).splitlines()[0]})") from error
        return table

    def listing(self, settings: Data) -> Listing:
        """Returns the listing of the source. Raises DataError if ``settings`` request columns that the pack does not have."""
        use_split, use_groups = _choices(self, settings)
        head = self.head
        excluded = self.columns("path", "reason").slice(head.num_listed).to_pylist()
        words = pc.index_in(self._listed("split"), pa.array(PARTS.values())).to_numpy()
        parts = np.array(list(PARTS), np.int8)[words]
        return Listing(
            root=self.place,
            paths=self._paths,
            labels=one_array(self._listed("label")),
            parts=parts if use_split else np.full(len(parts), UNDECIDED, np.int8),
            groups=one_array(self._listed("group")) if use_groups and head.grouped else None,
            group_name=head.group_name if use_groups else "",
            notes=(self.note, *head.notes),
            excluded=tuple(Excluded(row["path"], row["reason"]) for row in excluded),
        )

    def scan(self) -> Scan:
        """Returns the results of the scan of the source."""
        table = self.columns("digest", "width", "height", "reason", "picture").slice(0, self.head.num_listed)
        without = np.flatnonzero(table["reason"].is_valid().to_numpy())
        reasons = table["reason"].take(pa.array(without)).to_pylist()
        return Scan(
            digests=_digests(table["digest"]),
            widths=table["width"].to_numpy().copy(),
            heights=table["height"].to_numpy().copy(),
            reasons=dict(zip(without.tolist(), reasons, strict=True)),
            not_images=set(np.flatnonzero(~table["picture"].to_numpy()).tolist()),
        )

    def images(self, paths: pa.StringArray, hashes: pa.StringArray | None = None) -> PackRows:
        """Returns the images of ``paths``.

        Raises DataError if a path is not in the pack, or if its original file did not have the hash given in ``hashes``.
        """
        return PackImages(self.folder, self.rows_for(paths, hashes))

    def rows_for(self, paths: pa.StringArray, hashes: pa.StringArray | None = None) -> PackRows:
        """Returns where and how large the images of ``paths`` are; errors as for :meth:`images`."""
        listed = self._listed("file")
        own, records = (
            self._paths if not listed.null_count else self._paths.filter(pc.is_valid(listed).combine_chunks()),
            None,
        )
        if not own.equals(paths):
            records = pc.index_in(paths, own).fill_null(-1).to_numpy().astype(np.int64)
        del own
        wrong = np.zeros(0, np.bool_) if records is None else records < 0
        if hashes is not None and not wrong.any():
            stored = hex_strings(_digests(self._records("digest")["digest"]))
            stored = stored if records is None else stored.take(pa.array(records))
            wrong = ~pc.equal(stored, hashes).to_numpy(zero_copy_only=False)
        if wrong.any():
            names = paths.take(pa.array(np.flatnonzero(wrong))).to_pylist()
            raise DataError(
                f"{self.place} does not contain {counted(len(names), 'picture')} of the run: {some(names, 3)}",
                "the pack that the run was started with",
                "restore that pack, or start a new run",
            )
        del wrong, listed
        names = ("stored_width", "stored_height", "width", "height")
        places = self.places()
        sizes = [self._records(name)[name].to_numpy() for name in names]
        if records is not None:
            places, sizes = places.taken(records), [column[records] for column in sizes]
        return PackRows(self.place, self.head, paths, places, *sizes)

    def places(self) -> Places:
        """Returns where the records of the images lie, in the order of the index.

        In version 1 the index does not tell it, and the parts are opened. Raises DataError if the pack is damaged.
        """
        head = self.head
        if head.version == 1:
            table, (offsets, lengths) = self._records("file", "crc32"), self.extents()
        else:
            table = self._records("file", "offset", "length", "crc32")
            offsets, lengths = table["offset"].to_numpy(), table["length"].to_numpy()
        if len(lengths) and lengths.min() <= 0:
            raise damaged(self.place, f"{INDEX} cannot be read (records have no bytes)")
        files, sizes = tuple(part.file for part in head.parts), tuple(part.bytes for part in head.parts)
        try:
            return Places(files, sizes, table["file"].to_numpy(), offsets, lengths, table["crc32"].to_numpy())
        except ValueError as error:
            raise damaged(self.place, f"{INDEX} cannot be read ({error})") from error

    def extents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns offset and length of each record of a pack of version 1, by number, from its parts."""
        found = Extents.empty(self.head.num_records)
        for part in self.head.parts:
            span = slice(part.first, part.first + part.rows)
            _, found.offsets[span], found.lengths[span] = open_part(self.folder, part)
        return found.offsets, found.lengths

    def rows_of(self, part: PartFile) -> NDArray[np.int64]:
        """Returns the rows of the index of the records of ``part``, in the order of the records."""
        number = self.head.parts.index(part)
        names = ("file",) if self.head.version == 1 else ("file", "offset")
        table = self.columns(*names).slice(0, self.head.num_listed)
        rows = np.flatnonzero(pc.equal(table["file"], number).fill_null(False).to_numpy())
        return rows if self.head.version == 1 else rows[np.argsort(table["offset"].take(rows).to_numpy())]

    @cached_property
    def _paths(self) -> pa.StringArray:
        """The paths of the rows that were scanned; kept, since the manifest has the same array."""
        return one_array(self._listed("path"))

    def _listed(self, name: str) -> pa.ChunkedArray:
        """Reads a column of the rows that were scanned."""
        return self.columns(name)[name].slice(0, self.head.num_listed)

    def _records(self, *names: str) -> pa.Table:
        """Reads columns of those rows of the index that have a record."""
        table = self.columns(*dict.fromkeys((*names, "file"))).slice(0, self.head.num_listed)
        return (table.filter(pc.is_valid(table["file"])) if table["file"].null_count else table).select(names)


_ALWAYS = ("path", "label", "split", "digest", "width", "height", "picture")
"""Columns of the index in which a row that was scanned has a value."""


def _check_index(table: pa.Table, names: tuple[str, ...], head: Head) -> None:
    """Raises ValueError if the columns ``names`` of the index do not have the types and values of a pack's index."""
    if table.schema.names != list(names) or any(
        not table.schema.field(name).type.equals(INDEX_SCHEMA.field(name).type) for name in names
    ):
        raise ValueError("it does not have the columns of an index")
    if len(table) < head.num_listed:
        raise ValueError(f"it has {len(table):,} rows instead of {head.num_listed:,} or more")
    listed = table.slice(0, head.num_listed)
    for name in set(names) & set(_ALWAYS):
        if listed[name].null_count:
            raise ValueError(f"{name} has empty cells")
    for name in {"path", "reason"} & set(names):
        if table[name].slice(head.num_listed).null_count:
            raise ValueError(f"{name} has empty cells")
    if "split" in names and not pc.all(pc.is_in(listed["split"], pa.array(PARTS.values()))).as_py() and len(listed):
        raise ValueError(f"split has values other than {', '.join(PARTS.values())}")
    if "file" in names:
        stored = listed.filter(pc.is_valid(listed["file"]))
        counts = np.bincount(np.maximum(stored["file"].to_numpy(), -1) + 1, minlength=len(head.parts) + 1)
        if counts.tolist() != [0, *(part.rows for part in head.parts)]:
            raise ValueError(f"it does not have the {head.num_records:,} records of the parts")
        for name in {"stored_width", "stored_height", "offset", "length", "crc32"} & set(names):
            if stored[name].null_count:
                raise ValueError(f"a record has no {name}")
    for name in {"width", "height"} & set(names):
        lowest = pc.min(listed[name]).as_py()
        if lowest is not None and lowest < 0:
            raise ValueError(f"{name} has values below 0")


def _not_finished(folder: Path) -> DataError:
    begun = next((one for one in (folder, unfinished_folder(folder)) if (one / UNFINISHED).is_file()), None)
    if begun is None and not folder.is_dir():
        return DataError(
            f"there is no pack {folder}", f"a folder with {HEAD} in it", "check the path, or pack the originals again"
        )
    if begun is None:
        return DataError(
            f"{folder} is named like a pack, but it has no {HEAD}",
            f"a folder made by stagewright data pack, with {HEAD}, {INDEX} and part-00000.arrow",
            "if it was copied, copy it again; if it is a folder of class folders, give it another name",
        )
    try:
        head = Head.read(begun / UNFINISHED)
        done = f"{sum(part.rows for part in head.parts):,} of {counted(head.num_records, 'record')} are written"
    except (FileNotFoundError, DataError):
        done = f"{UNFINISHED} is damaged"
    return DataError(
        f"the pack {folder} is not finished: {done}",
        "a finished pack",
        "run the same data pack command again: it continues where it stopped",
    )


def _choices(pack: Pack, settings: Data) -> tuple[bool, bool]:
    """Returns (use the split of the pack, use the groups of the pack).

    Raises DataError if ``settings`` request columns that the pack was not made with.
    """
    head = pack.head
    if head.form != "table":
        refuse_columns(pack.place, f"a pack of {head.source}", settings)
        return True, True
    for name in ("path", "label", "images", "split", "group"):
        requested, packed = getattr(settings, name), head.settings[name]
        requested = None if requested is None else str(requested)
        known = {None, packed} | (
            {"none", head.group_name} if name == "group" else {"none"} if name == "split" else set()
        )
        if requested not in known:
            raise DataError(
                f"data.{name} is {requested!r}, but {pack.place} was made with {f'{packed!r}' if packed else 'the default'}",
                "the columns that the table was packed with",
                f"leave out data.{name}, or pack the table again with --set data.{name}={requested}",
            )
    return settings.split != "none", settings.group != "none"


def _digests(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Converts a column of fixed-size binary values to uint8 (N, 16)."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, DIGEST_BYTES)[chunk.offset :][: len(chunk)]
        for chunk in column.chunks
    ]
    return np.concatenate([*chunks, np.empty((0, DIGEST_BYTES), np.uint8)])
