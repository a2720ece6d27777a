"""Tests of Parquet files with images that stay in an object store: the same data set as on the disk, and damage by name."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import ObjectServer
from parquet_files import parquet_ranges, write_parquet
from picture_folders import write_noise
from PIL import Image
from uploaded import upload_folder

from stagewright.data.dataset import Dataset, load_dataset, load_for_evaluation, open_images
from stagewright.data.images.decode import FileImages
from stagewright.data.images.placed import RemotePlacedImages
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.remote.cache import cache_of
from stagewright.data.sources.verify import moved, verify_images
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three classes with 12 images of different sizes and formats each, one turned, one damaged, in a mixed order."""
    root = tmp_path_factory.mktemp("parquets") / "photos"
    exif = Image.Exif()
    exif[274] = 6

    def save(at: int) -> dict[str, Any]:
        return {"exif": exif if at == 3 else Image.Exif()}

    write_noise(root, CLASSES, 12, lambda at: (20 + at, 30), lambda at: (".jpg", ".png", ".jpg")[at % 3], save)
    (root / "cow" / "cut.jpg").write_bytes((root / "cow" / "11.jpg").read_bytes()[:-300])
    files = sorted(root.glob("*/*"))
    return [files[at] for at in np.random.default_rng(0).permutation(len(files))]


@pytest.fixture(scope="module")
def folder(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files for training and one for validation, with 5 rows in a row group."""
    data = tmp_path_factory.mktemp("hub") / "hub" / "data"
    for number in range(2):
        write_parquet(photos[number:28:2], data / f"train-0000{number}-of-00002.parquet", CLASSES, rows=5)
    write_parquet(photos[28:], data / "validation-00000-of-00001.parquet", CLASSES, rows=5)
    (data.parent / "README.md").write_text("a card")
    return data.parent


def load(source: str | Path, **settings: Any) -> Dataset:
    return load_dataset(str(source), Data(**settings))


def refused(source: str | Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as error:
        load(source, **settings)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def contents(dataset: Dataset) -> list[bytes]:
    """Returns the bytes of all images, by row."""
    stored = dataset.images.stored(np.arange(len(dataset.manifest)))
    assert not stored.failures
    return [bytes(stored.data(at)) for at in range(len(stored))]


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets have the same images, classes, parts and reasons of what is left out."""
    assert one.manifest.paths.equals(other.manifest.paths) and one.manifest.digest == other.manifest.digest
    assert one.manifest.widths.tolist() == other.manifest.widths.tolist()
    assert one.manifest.heights.tolist() == other.manifest.heights.tolist()
    assert one.excluded == other.excluded and one.account == other.account
    return contents(one) == contents(other)


def test_the_same_data_set_as_on_the_disk(
    folder: Path, bucket: str, object_server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    here, there = load(folder), load(url + "/")
    assert same(here, there) and len(there.manifest) == 36
    assert isinstance(here.images, FileImages) and isinstance(there.images, RemotePlacedImages)
    assert there.manifest.hash_of == "" and there.manifest.root == f"{url}/data"
    assert [one.name for one in there.manifest.objects] == sorted(one.name for one in (folder / "data").iterdir())
    assert [Path(one.path).suffix for one in there.excluded] == [".jpg"] and "truncated" in there.excluded[0].reason
    assert any("are read in place: 3 Parquet files with 8 row groups" in note for note in there.notes)
    assert not list((tmp_path / "cache").rglob("fetched")) and "Fetching" not in (said := capsys.readouterr().err)
    assert said.startswith("Indexing 3 Parquet files of s3://") and "about $0.0000 for requests" in said
    assert same(here, load(f"{url}/data"))
    object_server.requests(clear=True)
    assert load(url).manifest.digest == here.manifest.digest
    assert not parquet_ranges(object_server) and not capsys.readouterr().err, "the index is built once"
    assert len(load_for_evaluation(url, Data()).manifest) == 36


def test_each_row_group_is_indexed_by_one_read(folder: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    object_server.requests(clear=True)
    load(url)
    asked = parquet_ranges(object_server)
    # The end of each file; bytes and paths of the first 16 rows, which show what the column holds; each row group.
    assert len(asked) == 3 + 2 * 3 + 8 and set(asked.values()) == {1}


def test_one_file_of_many(folder: Path, bucket: str) -> None:
    url = upload_folder(folder / "data", f"{bucket}/data")
    name = "train-00001-of-00002.parquet"
    there = load(f"{url}/{name}", val=0.3)
    assert same(load(folder / "data" / name, val=0.3), there) and there.manifest.root == url
    assert [one.name for one in there.manifest.objects] == [name]
    assert len(there.manifest.rows("val")) and len(there.manifest.rows("train"))
    assert refused(f"{url}/none.parquet").given == f"there is no {url}/none.parquet"


def test_columns_of_groups_and_parts(photos: list[Path], bucket: str, tmp_path: Path) -> None:
    kept = [file for file in photos if file.stem != "cut"]
    more = {
        "site": [f"s{at % 9}" for at in range(36)],
        "split": ["test" if at % 4 == 0 else "train" for at in range(36)],
    }
    write_parquet(kept, tmp_path / "one" / "all.parquet", CLASSES, rows=7, columns=more)
    url = upload_folder(tmp_path / "one", f"{bucket}/one")
    here, there = load(tmp_path / "one", split="none"), load(url, split="none")
    assert same(here, there) and there.manifest.groups is not None
    assert there.manifest.groups.to_pylist()[:3] == ["s0", "s1", "s2"]
    with_parts = load(url, group="none")
    assert with_parts.manifest.rows("test").tolist() == list(range(0, 36, 4))
    assert with_parts.manifest.classes == CLASSES
    by_site = load(url, label="site", split="none", group="none")
    assert len(by_site.manifest.classes) == 9
    assert refused(url, label="none such").given.startswith(f"{url} has no column 'none such'")
    assert refused(url, images="x").given.startswith(f"data.images=x with {url}, which contains its pictures")


def cells(values: Sequence[bytes | None], labels: Sequence[str], file: Path, **more: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(values, pa.binary()), "label": labels, **more}), file, row_group_size=4)
    return file


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_cells_without_a_picture(bucket: str, tmp_path: Path) -> None:
    values: list[bytes | None] = [png(seed) for seed in range(12)]
    values[3], values[4], values[5] = None, b"", b"\x89PNG\r\n\x1a\nbroken"
    cells(values, ["a", "b"] * 6, tmp_path / "one" / "a.parquet")
    url = upload_folder(tmp_path / "one", f"{bucket}/one")
    here, there = load(tmp_path / "one", val=0.3), load(url, val=0.3)
    assert same(here, there) and len(there.manifest) == 9
    reasons = {one.path: one.reason for one in there.excluded}
    assert reasons["row 4"] == "no path in column 'image'" and reasons["a/000004.jpg"] == "the file is empty"
    assert "a/000005.png" in reasons


def test_several_columns_of_pictures(bucket: str, tmp_path: Path) -> None:
    table = {name: [png(seed + at) for seed in range(12)] for at, name in enumerate(("left", "right"))}
    (tmp_path / "one").mkdir()
    pq.write_table(pa.table({**table, "label": ["a", "b"] * 6}), tmp_path / "one" / "a.parquet")
    url = upload_folder(tmp_path / "one", f"{bucket}/one")
    assert refused(url).given == f"{url}/a.parquet has images in several columns: 'left', 'right'"
    found = load(url, path="right", val=0.3)
    assert contents(found) == table["right"] and found.manifest.column == "right"
    found.manifest.write(tmp_path / "manifest.parquet")
    again = open_images(Manifest.read(tmp_path / "manifest.parquet"))
    assert np.array_equal(np.asarray(again.load(3)), np.asarray(found.images.load(3)))


def test_a_table_of_paths_is_no_file_with_pictures(photos: list[Path], bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/x")
    names = [f"images/{file.parent.name}-{file.name}" for file in photos]
    for file, name in zip(photos, names, strict=True):
        obstore.put(store, name, file)
    pq.write_table(pa.table({"path": names, "label": [file.parent.name for file in photos]}), tmp_path / "t.parquet")
    obstore.put(store, "t.parquet", tmp_path / "t.parquet")
    found = load(f"{bucket}/x/t.parquet")
    assert isinstance(found.images, FileImages) and len(found.manifest) == 36


def test_wrong_features_are_refused_by_name(photos: list[Path], bucket: str, tmp_path: Path) -> None:
    import datasets

    rows = {"picture": [one.read_bytes() for one in photos], "kind": [1.5] * len(photos)}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "x" / "x.parquet"))
    assert "no column of classes" in refused(upload_folder(tmp_path / "x", f"{bucket}/x")).given
    write_parquet(photos, tmp_path / "two" / "a.parquet", CLASSES)
    datasets.Dataset.from_dict({**rows, "label": [0] * len(photos)}).to_parquet(str(tmp_path / "two" / "b.parquet"))
    url = upload_folder(tmp_path / "two", f"{bucket}/two")
    given = refused(url).given
    assert given.startswith(
        f"{url}/b.parquet has no images in the column 'image', as a.parquet has; its columns: picture"
    )
    write_parquet(photos, tmp_path / "two" / "b.parquet", CLASSES, columns={"site": ["s"] * len(photos)})
    upload_folder(tmp_path / "two", url)
    assert refused(url).given == f"the Parquet files in {url} have different columns"


def test_truncated_and_damaged_files_are_named(folder: Path, bucket: str, tmp_path: Path) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    name = "data/train-00001-of-00002.parquet"
    data = (folder / name).read_bytes()
    obstore.put(open_store(url), name, data[:-100])
    error = refused(url)
    assert error.given.startswith(f"{url}/{name} cannot be read as a table: it does not end as a Parquet file does")
    assert error.remedy == "download or copy it again"
    obstore.put(open_store(url), name, data[:4000] + data[-(int.from_bytes(data[-8:-4], "little") + 8) :])
    assert refused(url).given.endswith(
        f"{name} cannot be read as a table: its row groups lie outside of it, so a part of it is missing"
    )
    obstore.put(open_store(url), name, b"no table")
    assert f"{url}/{name} cannot be read as a table: " in refused(url).given


def test_a_file_that_changed_is_named(folder: Path, bucket: str, tmp_path: Path, object_server: ObjectServer) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    found = load(url)
    found.manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert manifest.column == "image.bytes" and manifest.lengths is not None
    assert manifest.lengths.tolist() == [len(one) for one in contents(found)]
    shutil.rmtree(tmp_path / "cache")
    object_server.requests(clear=True)
    again = open_images(manifest)
    assert len(parquet_ranges(object_server)) == 3, "only the ends of the files are read to open them again"
    caches = [cache_of(found.images), cache_of(again)]
    assert caches[0] and caches[1] and caches[0].blocks.folder == caches[1].blocks.folder
    assert contents(Dataset(manifest, again, (), (), found.account)) == contents(found)
    verify_images(manifest)
    shutil.rmtree(tmp_path / "cache")
    fresh, name = open_images(manifest), "train-00001-of-00002.parquet"
    other = (folder / "data" / "train-00000-of-00002.parquet").read_bytes()
    obstore.put(open_store(url), f"data/{name}", other)
    with pytest.raises(DataError, match=rf"{name} of {url}/data has changed"):
        open_images(manifest)
    rows = np.flatnonzero([path.startswith(name[:-8]) for path in manifest.paths.to_pylist()])
    failures = fresh.stored(rows).failures
    assert len(failures) == len(rows) and f"{name} of {url}/data has changed" in str(failures[0])
    obstore.delete(open_store(url), f"data/{name}")
    with pytest.raises(DataError, match=rf"{name} of {url}/data is gone"):
        open_images(manifest)


def test_copies_in_another_place(folder: Path, bucket: str, tmp_path: Path) -> None:
    found = load(upload_folder(folder, f"{bucket}/hub"))
    copy = upload_folder(folder, f"{bucket}/copy")
    there = moved(found.manifest, copy)
    assert there.root == f"{copy}/data"
    assert contents(Dataset(there, open_images(there), (), (), found.account)) == contents(found)
    local = moved(found.manifest, folder)
    verify_images(local, everything=True)
    assert isinstance(open_images(local), FileImages)
    name = "data/train-00000-of-00002.parquet"
    data = bytearray((folder / name).read_bytes())
    at = data.index(b"\xff\xda") + 60  # in the pixels of a JPEG
    data[at] ^= 1
    obstore.put(open_store(copy), name, bytes(data))
    with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet of .*/copy/data has changed \(1 picture of"):
        open_images(there)


@pytest.mark.parametrize("order", ["listed", "mixed"])
def test_packing(order: Any, folder: Path, bucket: str, tmp_path: Path, object_server: ObjectServer) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    here = pack(str(folder), tmp_path / "here.pack", Data(), size=16, order=order)
    object_server.requests(clear=True)
    there = pack(url, tmp_path / "there.pack", Data(), size=16, order=order)
    one, other = load(here.folder), load(there.folder)
    assert one.manifest.digest == other.manifest.digest and contents(one) == contents(other)
    asked = parquet_ranges(object_server)
    if order == "listed":
        assert not (tmp_path / "cache" / "fetched").exists(), "no copy of the files"
        assert max(asked.values()) <= 2, "each row group once for the index, once for the records"
    else:
        assert (tmp_path / "cache" / "fetched").exists()


def test_a_disk_that_is_too_small_for_a_copy(folder: Path, bucket: str, tmp_path: Path, monkeypatch: Any) -> None:
    url = upload_folder(folder, f"{bucket}/hub")
    monkeypatch.setattr("stagewright.data.sources.fetched.shutil.disk_usage", lambda folder: _Usage())
    with pytest.raises(StorageError) as caught:
        pack(url, tmp_path / "mixed.pack", Data(), size=16)
    assert "data pack --order listed needs no copy of Parquet files" in caught.value.remedy


class _Usage:
    free = 1000
