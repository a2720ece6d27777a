"""Images in tar files of WebDataset as DATA: their classes, parts and groups, and the images at random without unpacking.

A sample is one image; its class is in the member ``.cls``, else ``.json``, else ``.txt`` beside it. The part follows from the
names of the files, if each names one. The hash of an image on the disk is that of its bytes; in an object store it is that of
its place in a file of an ETag, and the manifest says so. If all images will be read anyway, to be packed, the files of a store
are read as those on the disk are, and their images have the same hashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.decode import NOT_IDENTIFIED
from stagewright.data.images.placed import MappedImages, PlacedImages, RemotePlacedImages, RemoteWholeImages
from stagewright.data.images.places import Places
from stagewright.data.images.remote import RemoteFiles, changed, refuse_changed
from stagewright.data.manifest import Manifest
from stagewright.data.sources.folder_names import PART_WORDS
from stagewright.data.sources.folders import UNDECIDED, Listing
from stagewright.data.sources.scan import DIGEST_BYTES, Progress, Scan, hex_strings, not_images
from stagewright.data.sources.shard_names import TAR, Shards, find_shards
from stagewright.data.sources.tables import GROUP_NAMES, LABEL_NAMES
from stagewright.data.sources.tar_index import BESIDE, HASH_OF, WINDOW, index_of
from stagewright.data.sources.walk import Excluded
from stagewright.errors import DataError
from stagewright.recipe.name_pattern import NamePattern
from stagewright.recipe.recipe import Data
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import list_objects
from stagewright.storage.objects import is_remote, open_store, price_of
from stagewright.storage.parquet import one_array, pc
from stagewright.system.threads import Pool, as_finished
from stagewright.text import counted, some

_AT_ONCE = 8
"""Files of an object store that are indexed at the same time."""
_USUAL = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, eq=False)
class _Tars:
    """What is in tar files: the images with a class."""

    shards: Shards
    listing: Listing
    scan: Scan
    places: Places
    """In the order of the listing."""
    whole: bool

    @property
    def hash_of(self) -> str:
        """What the digests are of; empty for the bytes of the images."""
        return HASH_OF if self.shards.remote and not self.whole else ""

    def images(self, paths: pa.StringArray, max_pixels: int) -> PlacedImages:
        """Returns the images of ``paths``, all of which are in the listing."""
        rows = pc.index_in(paths, self.listing.paths).to_numpy()
        return _images(self.shards, self.places.taken(rows), paths, max_pixels, whole=self.whole)


def read_tars(
    source: str,
    settings: Data,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    whole: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> _Tars:
    """Finds and indexes the tar files of ``source``; ``whole``: each image will be read at once and as a whole, so files of an
    object store are read as those on the disk are. ``say`` is told about what this costs.

    DataError if one is damaged, or no sample has an image and a class.
    """
    shards = find_shards(source)
    _refuse_settings(source, settings)
    if whole and shards.remote:
        say(_cost(shards))
    table = _index(shards, settings.max_pixels, workers, progress, whole=whole)
    taken, excluded = _one_image_each(table, settings)
    table = table.take(pa.array(taken))
    labels, how, without = _labels(table, settings)
    named = _paths(table.take(pa.array(list(without), pa.int64()))).to_pylist()
    excluded += [Excluded(path, reason) for path, reason in zip(named, without.values(), strict=True)]
    rows = np.setdiff1d(np.arange(len(table)), list(without))
    if not len(rows):
        raise _no_samples(source, shards, excluded)
    table = table.take(pa.array(rows))
    paths = _paths(table)
    parts = _parts([one.name for one in shards.files], settings)[table["shard"].to_numpy()]
    groups, group_name = _groups(table, settings)
    classes = pa.array([labels[row] for row in rows.tolist()], pa.string())
    table = table.take(pc.sort_indices(paths))
    listing = Listing.from_unsorted(shards.root, paths, classes, parts, groups)
    size = sum(one.bytes for one in shards.files)
    notes = (f"{counted(len(shards.files), 'tar file')} of {size / 1e6:,.1f} MB: classes from {how}",)
    listing = Listing(
        *(listing.root, listing.paths, listing.labels, listing.parts, listing.groups, group_name),
        notes=notes,
        excluded=tuple(sorted(excluded, key=lambda one: one.path)),
    )
    found = _Tars(shards, listing, _scan(table, listing.paths), _places(shards, table), whole)
    if whole and shards.remote:
        say(f"Packing reads each of {counted(len(table), 'image')} again: about ${price_of(len(table))} for requests.")
    return found


def _cost(shards: Shards) -> str:
    size = sum(one.bytes for one in shards.files)
    requests = sum(-(-one.bytes // WINDOW) for one in shards.files)
    return (
        f"Reading {counted(len(shards.files), 'tar file')}, {size / 1e9:,.2f} GB, of {shards.root}, unless they are indexed "
        f"already: about ${price_of(requests)} for requests, and what the store asks for traffic that leaves its region."
    )


def holds_tars(manifest: Manifest) -> bool:
    """Returns True if the images of ``manifest`` lie in tar files."""
    return bool(manifest.objects) and not manifest.variant and manifest.objects[0].name.endswith(TAR)


def open_tars(manifest: Manifest, max_pixels: int) -> PlacedImages:
    """Returns the images of ``manifest`` from the tar files of the run. DataError with the name of one that has changed."""
    root, before = manifest.root, manifest.objects
    if is_remote(root):
        found = list_objects(open_store(root), root)
        refuse_changed(root, before, tuple(found.values()))
        shards = Shards(root, tuple(found[one.name] for one in before))
    else:
        shards = Shards(root, before)
    table = _index(shards, max_pixels, 2, None).filter(pc.field("suffix").is_valid())
    own = _paths(table)
    rows = pc.index_in(manifest.paths, own).fill_null(-1).to_numpy().astype(np.int64)
    wrong = rows < 0
    if not wrong.any():
        wrong = ~pc.equal(hex_strings(_digests(table.take(pa.array(rows)))), manifest.hashes).to_numpy(
            zero_copy_only=False
        )
    if wrong.any():
        path = manifest.paths[int(np.flatnonzero(wrong)[0])].as_py()
        name = next(one.name for one in before if path.startswith(one.name + "/"))
        raise changed(root, name, f"has changed ({counted(int(wrong.sum()), 'picture')} of the run, e.g. {path})")
    places = _places(shards, table.take(pa.array(rows)))
    return _images(shards, places, manifest.paths, max_pixels)


def _places(shards: Shards, table: pa.Table) -> Places:
    """Returns where the images of the index ``table`` lie in the files."""
    names, sizes = tuple(one.name for one in shards.files), tuple(one.bytes for one in shards.files)
    return Places(names, sizes, *(table[name].to_numpy() for name in ("shard", "offset", "length")))


def _images(
    shards: Shards, places: Places, paths: pa.StringArray, max_pixels: int, *, whole: bool = False
) -> PlacedImages:
    if shards.remote:
        files = RemoteFiles(shards.root, places, tuple(one.etag for one in shards.files))
        return (RemoteWholeImages if whole else RemotePlacedImages)(files, paths, max_pixels)
    return MappedImages(places, paths, max_pixels, [shards.path(one.name) for one in shards.files])


def _index(
    shards: Shards, max_pixels: int, workers: int, progress: Progress | None, *, whole: bool = False
) -> pa.Table:
    """Returns the indexes of all files, one after the other, with the columns ``shard`` and ``name``."""
    with Pool(max(workers, _AT_ONCE if shards.remote else 1), "index") as pool:
        tasks = [
            pool.submit(index_of, shards.root, one, shards.path(one.name), max_pixels, whole) for one in shards.files
        ]
        for done, _ in enumerate(as_finished(tasks), 1):
            if progress is not None:
                progress(done, len(tasks))
        tables = [task.result() for task in tasks]
    numbered = [
        table.append_column("shard", pa.array(np.full(len(table), number, np.int32))).append_column(
            "name", pa.array([one.name] * len(table), pa.string())
        )
        for number, (one, table) in enumerate(zip(shards.files, tables, strict=True))
    ]
    return pa.concat_tables(numbered)


def _paths(table: pa.Table) -> pa.StringArray:
    """Returns FILE/KEY.EXTENSION of each image."""
    files = pc.binary_join_element_wise(one_array(table["name"]), one_array(table["key"]), "/")
    return pc.binary_join_element_wise(files, one_array(table["suffix"]), ".")


def _one_image_each(table: pa.Table, settings: Data) -> tuple[list[int], list[Excluded]]:
    """Returns the row of each sample's image, and the samples without one. DataError if a sample has several."""
    if (
        settings.path is None
        and not table["suffix"].null_count
        and pc.count_distinct(table["key"]).as_py() == len(table)
    ):
        return list(range(len(table))), []
    samples: dict[tuple[str, str], dict[str | None, int]] = {}
    columns = (table[name].to_pylist() for name in ("name", "key", "suffix"))
    for row, (name, key, suffix) in enumerate(zip(*columns, strict=True)):
        samples.setdefault((name, key), {})[suffix] = row
    rows, excluded = [], []
    for (name, key), found in samples.items():
        suffixes = [suffix for suffix in found if suffix is not None]
        wanted = [settings.path] if settings.path else suffixes if len(suffixes) == 1 else _usual(suffixes)
        chosen = [found[suffix] for suffix in wanted if suffix in found]
        if len(chosen) > 1 or (suffixes and not wanted):
            raise DataError(
                f"the sample {key} of {name} has several images: {some(f'.{one}' for one in suffixes)}",
                "one image for each sample",
                f"name its extension: --set data.path={suffixes[0]}",
            )
        if chosen:
            rows.append(chosen[0])
        else:
            excluded.append(
                Excluded(f"{name}/{key}", f"no image member{f' .{settings.path}' if settings.path else ''}")
            )
    return rows, excluded


def _usual(suffixes: Sequence[str]) -> list[str]:
    return [suffix for suffix in suffixes if suffix in _USUAL]


def _labels(table: pa.Table, settings: Data) -> tuple[list[str | None], str, dict[int, str]]:
    """Returns the class of each sample, where it is from, and the reasons of samples without one."""
    beside = {name: table[name].to_pylist() for name in BESIDE}
    asked = settings.label
    kind = next((name for name in BESIDE if any(value is not None for value in beside[name])), "cls")
    field: str | None = None
    if isinstance(asked, str):
        kind, field = (asked, None) if asked in ("cls", "txt") else ("json", asked)
    if kind != "json":
        words = [None if value is None else value.strip() for value in beside[kind]]
        without = {
            row: f"no class: it has no .{kind}" if word is None else f"no class: its .{kind} is empty"
            for row, word in enumerate(words)
            if not word
        }
        return words, f".{kind}", without
    objects = [_object(text) for text in beside["json"]]
    if field is None:
        known = {name.casefold(): name for one in objects for name in (one or {})}
        field = next((known[name] for name in LABEL_NAMES if name in known), None)
        if field is None:
            raise DataError(
                f"the .json members have no field whose name says that it is the class; they have {some(known.values(), 10)}",
                f"a member .cls, or a field named {some(LABEL_NAMES, 20)}",
                "name the field: --set data.label=NAME",
            )
    words, without = list[str | None](), dict[int, str]()
    for row, one in enumerate(objects):
        value = None if one is None else one.get(field)
        words.append(str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else None)
        if not words[-1]:
            without[row] = (
                "no class: it has no .json" if beside["json"][row] is None else f"no class: no {field!r} in its .json"
            )
    return words, f"{field!r} of .json", without


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        return None if text is None else parse_object(text.encode())
    except ValueError:
        return None


def _groups(table: pa.Table, settings: Data) -> tuple[pa.StringArray | None, str]:
    """Returns the groups that the field ``data.group`` of .json gives, or one of a usual name; None without."""
    if settings.group == "none":
        return None, ""
    objects = [_object(text) for text in table["json"].to_pylist()]
    known = {name for one in objects for name in (one or {})}
    asked = settings.group if isinstance(settings.group, str) else None
    name = asked or next((one for one in GROUP_NAMES if one in known), None)
    if name is None:
        return None, ""
    if name not in known:
        raise DataError(
            f"data.group={name}, but no .json member has this field",
            f"one of {some(sorted(known), 10) or 'no fields: there are no .json members'}",
            "correct it, or leave it out",
        )
    values = [None if one is None or one.get(name) in (None, "") else str(one[name]) for one in objects]
    return pa.array(values, pa.string()), name


def _parts(names: Sequence[str], settings: Data) -> NDArray[np.int8]:
    """Returns the part of each file, by the words of its name; undecided unless each names one, and there are two or more."""
    undecided = np.full(len(names), UNDECIDED, np.int8)
    if settings.split == "none":
        return undecided
    found = [
        {PART_WORDS[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in PART_WORDS} for name in names
    ]
    if any(len(parts) != 1 for parts in found) or len({next(iter(parts)) for parts in found}) < 2:
        return undecided
    return np.array([next(iter(parts)) for parts in found], np.int8)


def _scan(table: pa.Table, paths: pa.StringArray) -> Scan:
    reasons = {row: reason for row, reason in enumerate(table["reason"].to_pylist()) if reason is not None}
    sizes = [table[name].fill_null(0).to_numpy().astype(np.int32) for name in ("width", "height")]
    found = Scan(_digests(table), *sizes, reasons=reasons)
    found.not_images.update(not_images(paths, {row: one for row, one in reasons.items() if one == NOT_IDENTIFIED}))
    return found


def _digests(table: pa.Table) -> NDArray[np.uint8]:
    rows = b"".join(value or bytes(DIGEST_BYTES) for value in table["digest"].to_pylist())
    return np.frombuffer(rows, np.uint8).reshape(-1, DIGEST_BYTES).copy()


def _refuse_settings(source: str, settings: Data) -> None:
    wrong = [name for name in ("label", "group") if isinstance(getattr(settings, name), NamePattern)]
    wrong += ["images"] if settings.images is not None else []
    wrong += ["split"] if settings.split not in (None, "none") else []
    if wrong:
        raise DataError(
            f"{some(f'data.{name}={getattr(settings, name)}' for name in wrong)} with {source!r}, which consists of tar files",
            "data.label=cls, txt or a field of .json; data.group=a field of .json; data.path=the extension of the images",
            "leave it out; parts follow from the names of the tar files",
        )


def _no_samples(source: str, shards: Shards, excluded: Sequence[Excluded]) -> DataError:
    first = f", e.g. {excluded[0].path} ({excluded[0].reason})" if excluded else ""
    return DataError(
        f"no sample of {source!r} ({counted(len(shards.files), 'tar file')}) has an image and a class{first}",
        "tar files as WebDataset writes them: KEY.jpg with KEY.cls, KEY.json or KEY.txt beside it",
        "unpack other archives and point at the folder",
    )
