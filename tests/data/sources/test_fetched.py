"""Tests of DATA that is fetched whole (class folders, tables), of Parquet files, and of formats that are not read."""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path

import numpy as np
import obstore
import pytest
from object_server import ObjectServer
from parquet_files import write_parquet
from picture_folders import write_noise
from uploaded import upload_folder

from stagewright.augment.geometry import eval_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.sources.verify import verify_images
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data, Evaluation
from stagewright.storage.objects import open_store

CLASSES = ("ant", "bee")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 10 images each."""
    root = tmp_path_factory.mktemp("fetched") / "photos"
    write_noise(root, CLASSES, 10, lambda at: (20 + at, 30), lambda at: (".jpg", ".png")[at % 2])
    return root


def load(source: str | Path, **settings: str) -> Dataset:
    return load_dataset(str(source), Data.model_validate(settings))


def refused(source: str | Path, **settings: str) -> DataError:
    with pytest.raises(DataError) as error:
        load(source, **settings)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def contents(dataset: Dataset) -> list[tuple[str, str, bytes]]:
    """Returns (hash, class, view of the loader) of each image, sorted."""
    manifest, rows = dataset.manifest, np.arange(len(dataset.manifest))
    geometry = eval_geometry(Evaluation(), manifest.widths, manifest.heights)
    spec = BatchSpec(0, rows, manifest.labels.astype(np.int64), geometry, 16, "bilinear")
    with closing(load_batches(dataset.images, [spec], workers=2)) as batches:
        (batch,) = batches
    assert not batch.bad_rows
    classes = [manifest.classes[label] for label in manifest.labels]
    views = [view.tobytes() for view in batch.images.numpy()]
    return sorted(zip(manifest.hashes.to_pylist(), classes, views, strict=True))


def test_class_folders(
    photos: Path, bucket: str, object_server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    there = load(url)
    said = capsys.readouterr().err
    assert said.startswith("Fetching 20 files, 0.00 GB, of s3://") and "about $0.0000 for requests" in said
    assert there.manifest.digest == load(photos).manifest.digest and there.manifest.source == url
    object_server.requests(clear=True)
    again = load(url + "/")
    assert again.manifest.digest == there.manifest.digest and not capsys.readouterr().err
    assert not [one for one in object_server.requests() if one["path"].endswith((".jpg", ".png"))]
    obstore.put(open_store(url), "ant/00.jpg", (photos / "ant" / "02.jpg").read_bytes())
    obstore.delete(open_store(url), "bee/03.png")
    changed = load(url)
    assert capsys.readouterr().err.startswith("Fetching 19 files") and len(changed.manifest) == 19
    there.manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    verify_images(manifest)
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(DataError, match="have changed since the run began"):
        verify_images(manifest)
    upload_folder(photos, url)
    verify_images(manifest)
    assert np.array_equal(np.asarray(open_images(manifest).load(3)), np.asarray(again.images.load(3)))
    made = pack(url, tmp_path / "photos.pack", Data(), size=16)
    assert load(made.folder).manifest.paths.equals(manifest.paths)


def test_a_fetch_that_is_interrupted_goes_on(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    with object_server.fault("forbidden", method="GET", path="bee/07"), pytest.raises(StorageError, match="no rights"):
        load(url)
    object_server.requests(clear=True)
    with object_server.fault("truncate", method="GET", path="bee/07", times=2):
        assert len(load(url).manifest) == 20
    fetched = [one["path"] for one in object_server.requests() if not one["query"]]
    assert 1 < len(fetched) < 18 and sum("bee/07" in path for path in fetched) >= 2


def test_tables(photos: Path, bucket: str, tmp_path: Path) -> None:
    files = sorted(photos.glob("*/*"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = [(f"images/{one.parent.name}/{one.name}", one.parent.name) for one in files]
        csv.writer(file).writerows([("path", "label"), *rows, ("images/ant/gone.jpg", "ant")])
    upload_folder(photos, f"{bucket}/x/images")
    upload_folder(photos, f"{bucket}/x/other")
    obstore.put(open_store(f"{bucket}/x"), "labels.csv", tmp_path / "labels.csv")
    found = load(f"{bucket}/x/labels.csv")
    assert contents(found) == contents(load(photos)) and found.excluded[0].path == "images/ant/gone.jpg"
    assert not list((tmp_path / "cache").rglob("other")), "only what the table names"
    assert refused(f"{bucket}/x/none.csv").given == f"there is no {bucket}/x/none.csv"
    assert refused(f"{bucket}/nothing/").given == f"there is nothing below {bucket}/nothing/"


def test_parquet_of_the_library_datasets(photos: Path, bucket: str, tmp_path: Path) -> None:
    """The names of the files are those of ImageNet-1k on the hub: a test part without classes is left out."""
    files = sorted(photos.glob("*/*"))
    data = tmp_path / "parquet" / "data"
    for number in range(2):
        write_parquet(files[number:14:2], data / f"train-0000{number}-of-00002.parquet", CLASSES)
    write_parquet(files[14:] + files[:1], data / "validation-00000-of-00001.parquet", CLASSES)
    write_parquet(files[1:3], data / "test-00000-of-00001.parquet", CLASSES, labels=[-1, -1])
    here, there = load(data.parent), load(upload_folder(data.parent, f"{bucket}/parquet"))
    plain = {hash: (label, view) for hash, label, view in contents(load(photos))}
    for found in (here, there):
        assert {hash: (label, view) for hash, label, view in contents(found)} == plain
        assert [len(found.manifest.rows(part)) for part in ("train", "val", "test")] == [14, 7, 0]
        assert sum(one.reason.startswith("no class") for one in found.excluded) == 2
    assert here.manifest.digest == there.manifest.digest
    single = load(f"{upload_folder(data, f'{bucket}/flat')}/train-00000-of-00002.parquet", val="0.3")
    assert len(single.manifest) == 7


def test_wrong_features(photos: Path, tmp_path: Path) -> None:
    import datasets

    files = sorted(photos.glob("*/*"))
    rows = {"picture": [one.read_bytes() for one in files], "kind": [1.5] * len(files)}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "data" / "x.parquet"))
    assert "no column of classes" in refused(tmp_path / "data").given
    write_parquet(files, tmp_path / "two" / "a.parquet", CLASSES)
    datasets.Dataset.from_dict({**rows, "label": [0] * len(files)}).to_parquet(str(tmp_path / "two" / "b.parquet"))
    error = refused(tmp_path / "two")
    assert error.given.startswith(f"{tmp_path}/two/b.parquet has no images in the column 'image', as a.parquet has;")
    (tmp_path / "two" / "b.parquet").write_bytes((tmp_path / "two" / "a.parquet").read_bytes()[:-100])
    assert f"{tmp_path}/two/b.parquet cannot be read as a table" in refused(tmp_path / "two").given


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["train.tfrecord-00000-of-00128", "train.tfrecord-00001-of-00128"], "TFRecord"),
        (["data.mdb", "lock.mdb"], "LMDB"),
        (["index.json", "shard.00000.mds"], "MDS (MosaicML streaming)"),
        (["train.beton"], "FFCV"),
        (["photos.zip"], "zip"),
        (["photos.rar"], "rar"),
        (["train.h5"], "HDF5"),
        (["images.npy", "labels.npy"], "NumPy"),
        (["photos.tar.gz"], "gzip"),
    ],
)
def test_other_formats_are_named(names: list[str], what: str, tmp_path: Path, bucket: str) -> None:
    for name in names:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x" * 9)
    url = upload_folder(tmp_path / "data", f"{bucket}/data")
    for source in (tmp_path / "data", tmp_path / "data" / names[-1], url):
        error = refused(source)
        assert error.given.startswith(f"{str(source)!r} is in the format {what} (")
        assert "webdataset (ShardWriter: KEY.jpg and KEY.cls)" in error.remedy and "not compressed" in error.allowed


@pytest.mark.long
def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("hf:nobody/nothing").given.endswith(": STAGEWRIGHT_OFFLINE is set")
    monkeypatch.delenv("STAGEWRIGHT_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    error = refused("hf:nobody/nothing")
    assert error.given.startswith("hf:nobody/nothing cannot be fetched from the Hugging Face hub: ")
    assert "HF_TOKEN" in error.allowed and "hf download --repo-type dataset nobody/nothing" in error.remedy


def test_a_disk_that_is_too_small(photos: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: _Usage())
    with pytest.raises(StorageError, match=r"1e-06 GB are free in .* needs"):
        load(url)


class _Usage:
    free = 1000


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_near_duplicates_are_found_in_a_copy(form: str, photos: Path, bucket: str, tmp_path: Path) -> None:
    if form == "parquet":
        write_parquet(sorted(photos.glob("*/*")), tmp_path / "parquet" / "train.parquet", CLASSES)
    local = photos if form == "folder" else tmp_path / "parquet"
    there = load(upload_folder(local, f"{bucket}/photos"), near="together")
    assert there.manifest.digest == load(local, near="together").manifest.digest and not there.manifest.column
