"""Copies of DATA that cannot be read piece by piece: of class folders, tables and Parquet files in an object store, and of data
sets on the Hugging Face hub. Fetched whole into the cache folder, once; a fetch that is interrupted continues.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stagewright.data.images.decode import image_extensions
from stagewright.data.manifest import Manifest
from stagewright.data.sources.embedded import unpacked_again, unpacked_root
from stagewright.data.sources.folders import TABLES
from stagewright.data.sources.shard_names import PARQUET, TAR
from stagewright.data.sources.tables import path_column
from stagewright.data.sources.walk import is_ignored
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import make_folders, read_file, write_json
from stagewright.storage.json_text import parse_object
from stagewright.storage.object_files import Changed, StoredObject, list_objects, repeated
from stagewright.storage.objects import is_remote, open_store, price_of
from stagewright.system.threads import Pool, as_finished
from stagewright.text import counted

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Say = Callable[[str], None]

HUB = "hf:"
_ETAGS = "etags.json"
_AT_ONCE = 16
_CHUNK = 1 << 24


def on_stderr(text: str) -> None:
    """Prints ``text`` for people."""
    print(text, file=sys.stderr, flush=True)


def is_fetched(source: str) -> bool:
    """Returns True if ``source`` is a URL or ``hf:NAME``."""
    return source.startswith(HUB) or is_remote(source)


def fetch(source: str, settings: Data, say: Say = on_stderr) -> str:
    """Returns the local folder or table that has the content of ``source`` (:func:`is_fetched`), after fetching what is missing.

    ``say`` is told the size and the price first. DataError if nothing that can be DATA is there; StorageError if the store
    cannot be read or the disk has too little space.
    """
    if source.startswith(HUB):
        return _fetch_hub(source)
    url = source.rstrip("/")
    root, _, name = url.rpartition("/")
    if os.path.splitext(name)[1].lower() in TABLES:
        return _fetch_table(root, name, settings, say)
    return str(fetch_files(url, not_ignored(files_below(source)), say))


def files_below(source: str) -> dict[str, StoredObject]:
    """Returns the files below the URL ``source`` by name. DataError if there are none, or if they are of a format that is not
    read."""
    url = source.rstrip("/")
    found = list_objects(open_store(url), url)
    wanted = not_ignored(found)
    if not wanted:
        raise DataError(
            f"there is nothing below {source}",
            "the URL of class folders, of a table, of Parquet or tar files, or of a pack",
            "check the URL",
        )
    refuse_formats(source, [one.name for one in wanted])
    return found


def not_ignored(found: Mapping[str, StoredObject]) -> list[StoredObject]:
    """Returns the files without hidden and foreign ones."""
    return [one for key, one in found.items() if not any(is_ignored(part) for part in key.split("/"))]


def whole_copy(url: str, wanted: Sequence[StoredObject]) -> Path | None:
    """Returns the folder of the cache with the files ``wanted`` below ``url``, if an earlier fetch has completed it."""
    folder = _folder_of(url, wanted)
    return folder if folder.is_dir() and not _missing(folder, wanted, _read_etags(folder.parent / _ETAGS)) else None


def _folder_of(url: str, wanted: Sequence[StoredObject]) -> Path:
    names = hashlib.blake2b("\n".join([url, *sorted(one.name for one in wanted)]).encode(), digest_size=16).hexdigest()
    return cache_folder("fetched", names, url.rpartition("/")[2] or "data")


def _missing(folder: Path, wanted: Sequence[StoredObject], there: Mapping[str, str]) -> list[StoredObject]:
    return [one for one in wanted if there.get(one.name) != one.etag or not _has(folder, one)]


def fetch_files(url: str, wanted: Sequence[StoredObject], say: Say) -> Path:
    """Returns the folder of the cache with the files ``wanted`` below ``url``, and with no others."""
    folder = _folder_of(url, wanted)
    etags = folder.parent / _ETAGS
    there = _read_etags(etags)
    missing = _missing(folder, wanted, there)
    if not missing:
        return folder
    size = sum(one.bytes for one in missing)
    say(
        f"Fetching {counted(len(missing), 'file')}, {size / 1e9:,.2f} GB, of {url} to {folder}: about "
        f"${price_of(len(missing))} for requests, and what the store asks for traffic that leaves its region."
    )
    make_folders(folder)
    if (free := shutil.disk_usage(folder).free) < size:
        raise StorageError(
            f"{free / 1e9:.3g} GB are free in {folder}, and {url} needs {size / 1e9:.3g} GB",
            "enough space for a copy",
            "set STAGEWRIGHT_CACHE to a larger disk, or pack it on a machine with one: stagewright data pack --out URL"
            + (
                "; data pack --order listed needs no copy of Parquet files"
                if any(one.name.endswith(PARQUET) for one in wanted)
                else ""
            ),
        )
    store = open_store(url)

    def fetch_one(one: StoredObject) -> None:
        _fetch_one(store, url, one, folder / one.name)
        there[one.name] = one.etag  # here, so that what is under way when another file fails counts too

    try:
        with Pool(_AT_ONCE, "fetch") as pool:
            tasks = [pool.submit(fetch_one, one) for one in missing]
            for number, task in enumerate(as_finished(tasks), 1):
                task.result()
                if number % 5000 == 0:
                    write_json(etags, dict(there), durable=False)
    finally:
        write_json(etags, dict(there), durable=False)
    return folder


def _fetch_one(store: ObjectStore, url: str, one: StoredObject, target: Path) -> None:
    """Writes the file ``one`` to ``target``, completely or not at all."""
    import obstore

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")

    def get() -> None:
        with temporary.open("wb") as out:
            found = obstore.get(store, one.name, options={"if_match": one.etag} if one.etag else {})
            for chunk in found.stream(min_chunk_size=_CHUNK):
                out.write(chunk)
            if (size := out.tell()) != one.bytes:
                raise OSError(f"{size:,} of {one.bytes:,} bytes came")
        os.replace(temporary, target)

    try:
        repeated(get, f"{url}/{one.name}", "fetching it", "s3:GetObject")
    except (Changed, FileNotFoundError) as error:
        raise DataError(
            f"{one.name} of {url} changed while the data were fetched",
            "files that do not change meanwhile",
            "run the command again when they are final",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _has(folder: Path, one: StoredObject) -> bool:
    try:
        return os.path.getsize(folder / one.name) == one.bytes
    except OSError:
        return False


def _read_etags(file: Path) -> dict[str, str]:
    try:
        return {str(name): str(etag) for name, etag in parse_object(read_file(file)).items()}
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def _fetch_table(root: str, name: str, settings: Data, say: Say) -> str:
    """Fetches a table, and the images that it names, which lie beside it or in ``data.images``."""
    table, found = fetch_alone(root, name, say)
    if (column := path_column(table, settings)) is None:  # the images are inside of it
        return str(table)
    base = f"{settings.images.strip('/')}/" if settings.images else ""
    named = {f"{base}{path.removeprefix('./')}" for path in column[1] if path}
    wanted = [found[name], *(one for key, one in found.items() if key in named)]
    return str(fetch_files(root, wanted, say) / name)


def fetch_alone(root: str, name: str, say: Say) -> tuple[Path, dict[str, StoredObject]]:
    """Returns a copy of the table ``name`` below the URL ``root``, and all files there. DataError if there is no such table."""
    found = list_objects(open_store(root), root)
    if name not in found:
        raise DataError(f"there is no {root}/{name}", "a table that exists", "check the URL")
    return fetch_files(root, [found[name]], say) / name, found


_OTHERS = {
    ".tfrecord": "TFRecord",
    ".tfrecords": "TFRecord",
    ".mdb": "LMDB",
    ".lmdb": "LMDB",
    ".mds": "MDS (MosaicML streaming)",
    ".beton": "FFCV",
    ".zip": "zip",
    ".rar": "rar",
    ".7z": "7z",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".rec": "RecordIO (MXNet)",
    ".arrow": "Arrow",
    ".pt": "torch",
    ".pkl": "pickle",
    ".gz": "gzip",
    ".tgz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zst": "zstd",
}
_REPACK = (
    "unpack an archive; else write its images to class folders, or with webdataset (ShardWriter: KEY.jpg and KEY.cls) to tar "
    "files, with the tool that wrote it; then stagewright data pack"
)


def format_of(name: str) -> str | None:
    """Returns the name of a format of data sets that is not read, by the ending of a file; None for all others."""
    lower = name.lower()
    if ".tfrecord" in lower.rpartition("/")[2]:  # train.tfrecord-00000-of-00128
        return "TFRecord"
    return _OTHERS.get(os.path.splitext(lower)[1])


def refuse_formats(source: str, names: Sequence[str]) -> None:
    """DataError if ``names``, the files of ``source``, are of a format that is not read, and none is an image or a table."""
    known = {*image_extensions(), *TABLES, TAR}
    if any(os.path.splitext(name)[1].lower() in known for name in names):
        return
    first = next(((name, what) for name in names if (what := format_of(name))), None)
    if first is not None:
        raise DataError(
            f"{source!r} is in the format {first[1]} ({first[0]}), which is not read",
            "class folders, a table, Parquet with images, WebDataset's tar files (not compressed), or a pack",
            _REPACK,
        )


def found_again(manifest: Manifest) -> str:
    """Returns the folder of the images of ``manifest``; if it was one of copies or of unpacked images and is gone, it is made
    again."""
    if os.path.isdir(manifest.root) or not is_fetched(manifest.source):
        return unpacked_again(manifest)
    place = fetch(manifest.source, Data())
    return unpacked_root(place) or (place if os.path.isdir(place) else os.path.dirname(place))


def _fetch_hub(source: str) -> str:
    """Returns the folder of the data set ``hf:NAME`` in huggingface_hub's cache: its Parquet files, else all of it."""
    name = source.removeprefix(HUB).strip("/")
    if variable := next((one for one in ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(one)), None):
        raise _not_from_hub(source, name, f"{variable} is set")
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise DataError(
            f"{source} needs huggingface_hub, which is not installed ({error})",
            "huggingface_hub",
            "pip install huggingface_hub",
        ) from None
    try:
        for revision in (None, "refs/convert/parquet"):  # the hub converts most data sets itself
            files = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
            if parquet := [file for file in files if file.endswith(".parquet")]:
                return snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=parquet)
        return snapshot_download(name, repo_type="dataset")
    except MemoryError:
        raise
    except Exception as error:  # a download can raise errors of huggingface_hub and of the libraries below it
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _not_from_hub(source, name, why) from error


def _not_from_hub(source: str, name: str, why: str) -> DataError:
    return DataError(
        f"{source} cannot be fetched from the Hugging Face hub: {why}",
        "hf:OWNER/NAME of a data set, a network connection, and HF_TOKEN for one that is not public",
        f"check the name and the connection; or download it elsewhere (hf download --repo-type dataset {name}) and give the "
        "folder",
    )
