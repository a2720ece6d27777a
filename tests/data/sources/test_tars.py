"""Tests of tar files as the library webdataset writes them: the same images and labels as the folder, and damage by name."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pytest
from object_server import ObjectServer
from picture_folders import write_noise
from PIL import Image

from stagewright.augment.geometry import eval_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.images.placed import MappedImages, RemotePlacedImages
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.sources.verify import moved, verify_images
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data, Evaluation
from stagewright.storage.objects import open_store

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 12 images of different sizes and formats each, one turned, one damaged."""
    root = tmp_path_factory.mktemp("tars") / "photos"
    exif = Image.Exif()
    exif[274] = 6
    endings = (".jpg", ".png", ".jpg")

    def save(at: int) -> dict[str, Any]:
        return {"exif": exif if at == 3 else Image.Exif()}

    write_noise(root, CLASSES, 12, lambda at: (20 + at, 30), lambda at: endings[at % 3], save)
    (root / "cow" / "cut.jpg").write_bytes((root / "cow" / "11.jpg").read_bytes()[:-300])
    return root


def write(photos: Path, folder: Path, kind: str = "cls", **given: Any) -> Path:
    """Writes the pictures of class folders to tar files with webdataset; returns their folder."""
    from webdataset.writer import ShardWriter

    folder.mkdir()
    with ShardWriter(str(folder / "part-%06d.tar"), maxcount=8, verbose=0, **given) as sink:
        for file in sorted(photos.glob("*/*")):
            label = CLASSES.index(file.parent.name)
            beside = {
                "cls": {"cls": label},
                "txt": {"txt": file.parent.name},
                "json": {"json": {"species": file.parent.name, "site": f"s{int(file.stat().st_size) % 7}", "id": 3}},
            }[kind]
            sink.write({"__key__": f"{file.parent.name}/{file.stem}", file.suffix[1:]: file.read_bytes(), **beside})
    return folder


def load(source: str | Path, **settings: Any) -> Dataset:
    return load_dataset(str(source), Data(**settings))


def refused(source: str | Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as error:
        load(source, **settings)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def by_name(dataset: Dataset) -> dict[str, tuple[str, str, bytes]]:
    """Returns (class, hash, view of the loader) of each image by ``class/name``."""
    manifest, rows = dataset.manifest, np.arange(len(dataset.manifest))
    geometry = eval_geometry(Evaluation(), manifest.widths, manifest.heights)
    spec = BatchSpec(0, rows, manifest.labels.astype(np.int64), geometry, 16, "bilinear")
    with closing(load_batches(dataset.images, [spec], workers=2)) as batches:
        (batch,) = batches
    assert not batch.bad_rows
    names = ["/".join(os.path.splitext(path)[0].split("/")[-2:]) for path in manifest.paths.to_pylist()]
    views = [view.tobytes() for view in batch.images.numpy()]
    classes = [manifest.classes[label] for label in manifest.labels]
    return dict(zip(names, zip(classes, manifest.hashes.to_pylist(), views, strict=True), strict=True))


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_the_same_images_and_labels_as_the_folder(kind: str, photos: Path, tmp_path: Path) -> None:
    plain, packed = load(photos), load(write(photos, tmp_path / "tars", kind))
    one, other = by_name(plain), by_name(packed)
    named = {name: found if kind != "cls" else (CLASSES[int(found[0])], *found[1:]) for name, found in other.items()}
    assert named == one and len(one) == 36
    assert isinstance(packed.images, MappedImages) and packed.manifest.hash_of == ""
    assert (
        packed.excluded[0].path == "part-000004.tar/cow/cut.jpg"
        and packed.excluded[0].reason == plain.excluded[0].reason
    )
    kept = np.argsort(packed.manifest.hashes.to_pylist()), np.argsort(plain.manifest.hashes.to_pylist())
    assert packed.manifest.splits[kept[0]].tolist() == plain.manifest.splits[kept[1]].tolist() or kind == "json"
    assert (packed.manifest.groups is not None) == (kind == "json")
    where = {"cls": ".cls", "txt": ".txt", "json": "'species' of .json"}[kind]
    assert any(note.startswith("5 tar files of ") and note.endswith(f"classes from {where}") for note in packed.notes)
    again = open_images(packed.manifest)
    assert np.array_equal(np.asarray(again.load(7)), np.asarray(packed.images.load(7)))
    verify_images(packed.manifest)
    names = [path.rpartition("/")[2] for path in packed.manifest.paths.to_pylist()]
    assert packed.manifest.widths[names.index("03.jpg")] == 23, "turned by its EXIF orientation"


def test_braces_globs_and_files(photos: Path, tmp_path: Path) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    whole = load(folder).manifest.digest
    for source in (f"{folder}/part-{{000000..000004}}.tar", f"{folder}/*.tar", f"{tmp_path}/t*/part-*.tar"):
        found = load(source).manifest
        assert len(found) == 36 and (found.digest == whole) == ("t*" not in source)
    assert len(load(f"{folder}/part-{{000001,000003}}.tar").manifest) == 16
    assert load(folder / "part-000001.tar").manifest.classes == ("ant", "bee")
    error = refused(f"{folder}/part-{{000000..000007}}.tar")
    assert (
        error.given.startswith("there is no part-000005.tar for ")
        and "part-000000.tar, part-000001.tar" in error.allowed
    )
    assert refused(f"{folder}/x-*.tar").given.startswith("there is no x-*.tar for")
    assert "stands for" in refused(f"{folder}/part-{{5..1}}.tar").given
    assert refused(tmp_path / "none.tar").given == f"there is no file for '{tmp_path}/none.tar'"


def test_parts_follow_from_names(photos: Path, tmp_path: Path) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    (tmp_path / "tars" / "val").mkdir()
    (tmp_path / "tars" / "train").mkdir()
    for file in sorted(folder.glob("*.tar")):
        file.rename(folder / ("val" if file.name.startswith("part-000003") else "train") / file.name)
    names = load(folder).manifest
    assert {names.paths[int(row)].as_py().split("/")[0] for row in names.rows("val")} == {"val"}
    assert len(names.rows("val")) == 8 and not len(names.rows("test"))
    assert len(load(folder, split="none").manifest.rows("val")) == 5


def damaged(folder: Path, change: Any) -> DataError:
    file = folder / "part-000002.tar"
    good = file.read_bytes()
    file.write_bytes(change(good))
    try:
        return refused(folder)
    finally:
        file.write_bytes(good)


def test_damaged_tar_files_are_named(photos: Path, tmp_path: Path) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    name = f"the tar file {folder}/part-000002.tar is damaged or truncated: "
    for keep in (0.2, 0.4, 0.6):
        error = damaged(folder, lambda data, keep=keep: data[: int(len(data) * keep)])
        assert error.given.startswith(name) and error.remedy == "copy or download it again"
    with tarfile.open(folder / "part-000002.tar") as opened:
        members = opened.getmembers()
    assert "it has no mark of its end" in damaged(folder, lambda data: data[: members[6].offset]).given, "at a member"
    at = members[4].offset
    assert "after 2 samples" in damaged(folder, lambda data: data[:at] + bytes([9]) * 512 + data[at + 512 :]).given
    assert damaged(folder, lambda data: b"no tar file").given.startswith(name)
    compressed = damaged(folder, gzip.compress)
    assert (
        compressed.given.startswith(f"{folder}/part-000002.tar is compressed with gzip")
        and "gunzip" in compressed.remedy
    )


def tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file


def test_missing_members_and_odd_ones(photos: Path, tmp_path: Path) -> None:
    one, two = ((photos / "ant" / f"{at:02d}.jpg").read_bytes() for at in (0, 2))
    good = {
        "a.jpg": one,
        "a.cls": b"0\n",
        "b.jpg": two,
        "b.cls": b"1",
        "b2.jpg": one + b" ",
        "b2.cls": b"1",
        "a2.jpg": two + b" ",
    }
    good |= {"a2.cls": b"0", "x/y.c.jpg": one + b"  ", "x/y.cls": b"0", "x/y.json": b"{}", "._a.jpg": b"of macOS"}
    file = tar(
        tmp_path / "one.tar",
        good | {"c.jpg": one, "d.cls": b"1", "e.jpg": one, "e.cls": b"", "f.jpg": b"", "f.cls": b"1"},
    )
    found = load(file, val=0.4)
    names = found.manifest.paths.to_pylist()
    assert names == [*("one.tar/a.jpg", "one.tar/a2.jpg", "one.tar/b.jpg", "one.tar/b2.jpg", "one.tar/x/y.c.jpg")]
    assert {(one.path, one.reason) for one in found.excluded} == {
        ("one.tar/c.jpg", "no class: it has no .cls"),
        ("one.tar/d", "no image member"),
        ("one.tar/e.jpg", "no class: its .cls is empty"),
        ("one.tar/f.jpg", "the file is empty"),
    }
    assert "two members a.jpg" in refused(tar_twice(tmp_path / "twice.tar", "a.jpg", one)).given
    several = tar(tmp_path / "several.tar", good | {"a.png": one})
    assert refused(several).given == "the sample a of several.tar has several images: .jpg, .png"
    assert len(load(several, path="jpg", val=0.4).manifest) == 4
    masks = tar(tmp_path / "masks.tar", good | {"a.mask.png": one})
    assert load(masks, val=0.4).manifest.paths.to_pylist() == [path.replace("one.", "masks.") for path in names]
    error = refused(tar(tmp_path / "plain.tar", {"ant/a.jpg": one, "bee/b.jpg": two}))
    assert "has an image and a class, e.g. plain.tar/ant/a.jpg (no class: it has no .cls)" in error.given
    assert "unpack other archives" in error.remedy
    fields = {
        "a.jpg": one,
        "a.json": b'{"kind": "x"}',
        "b.jpg": two,
        "b.json": b'{"kind": 3}',
        "c.jpg": one,
        "c.json": b"{",
    }
    assert "they have kind" in refused(tar(tmp_path / "fields.tar", fields)).given
    assert refused(tmp_path / "fields.tar", label="sort").given.startswith("no sample of ")
    assert "no field" not in refused(tmp_path / "fields.tar", label="kind").given
    assert (
        refused(tmp_path / "one.tar", group="camera").given == "data.group=camera, but no .json member has this field"
    )
    assert refused(tmp_path / "one.tar", images="x").given.startswith("data.images=x with ")
    assert "near=together" in refused(tmp_path / "one.tar", near="together").given


def tar_twice(file: Path, name: str, data: bytes) -> Path:
    with tarfile.open(file, "w") as out:
        for _ in range(2):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file


def test_a_tar_file_that_changed(photos: Path, tmp_path: Path) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    load(folder).manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert isinstance(open_images(manifest), MappedImages)
    file = folder / "part-000001.tar"
    data = bytearray(file.read_bytes())
    with tarfile.open(file) as opened:
        at = next(one for one in opened if one.name.endswith(("jpg", "png"))).offset_data + 100
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError) as error:
        open_images(manifest)
    assert error.value.given.startswith(
        f"part-000001.tar of {folder} has changed (1 picture of the run, e.g. part-000001.tar/"
    )
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with pytest.raises(DataError, match=r"part-000001\.tar of .*/copy has changed"):
        open_images(moved(manifest, copy))
    data[at] ^= 1
    (copy / file.name).write_bytes(data)
    assert isinstance(open_images(moved(manifest, copy)), MappedImages)


def upload(folder: Path, url: str) -> str:
    store = open_store(url)
    for file in sorted(folder.glob("*.tar")):
        obstore.put(store, file.name, file)
    return url


def test_in_a_store(photos: Path, tmp_path: Path, bucket: str, object_server: ObjectServer) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    url = upload(folder, f"{bucket}/tars")
    here = load(folder)
    there = load(f"{url}/part-{{000000..000004}}.tar")
    assert isinstance(there.images, RemotePlacedImages)
    assert there.manifest.hash_of == "ETag of the tar file, offset and length"
    with pytest.raises(OSError, match="trunc"):
        there.images.load(there.manifest.paths.to_pylist().index("part-000004.tar/cow/cut.jpg"))
    rows = np.flatnonzero([not path.endswith("cut.jpg") for path in there.manifest.paths.to_pylist()])
    assert there.manifest.paths.take(pa.array(rows)).equals(here.manifest.paths)
    readable = replace(there, manifest=there.manifest.taken(rows), images=open_images(there.manifest.taken(rows)))
    one, other = by_name(here), by_name(readable)
    assert {name: (found[0], found[2]) for name, found in one.items()} == {
        name: (found[0], found[2]) for name, found in other.items()
    }
    object_server.requests(clear=True)
    assert load(url).manifest.digest == there.manifest.digest
    assert not [one for one in object_server.requests() if one["range"]], "the index is built once"
    there.manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert manifest.hash_of == there.manifest.hash_of and manifest.objects == there.manifest.objects
    obstore.put(open_store(url), "part-000003.tar", (folder / "part-000002.tar").read_bytes())
    with pytest.raises(DataError, match=rf"part-000003\.tar of {url} has changed"):
        open_images(manifest)
    obstore.put(open_store(url), "part-000003.tar", (folder / "part-000003.tar").read_bytes()[:20_000])
    assert f"the tar file {url}/part-000003.tar is damaged or truncated" in refused(url).given


def test_packing_tar_files(photos: Path, tmp_path: Path, bucket: str) -> None:
    folder = write(photos, tmp_path / "tars", "txt")
    made = pack(str(folder), tmp_path / "photos.pack", Data(), size=16)
    assert made.records == 36
    packed, plain = load(made.folder), load(folder)
    assert packed.manifest.paths.equals(plain.manifest.paths) and packed.manifest.hashes.equals(plain.manifest.hashes)
    url = upload(folder, f"{bucket}/tars")
    assert pack(url, tmp_path / "remote.pack", Data(), size=16).records == 36
    remote = load(tmp_path / "remote.pack")
    assert remote.manifest.digest == packed.manifest.digest and remote.excluded == packed.excluded


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shared_data / "imagenette-4k.zip") as archive:
        names = [name for name in archive.namelist() if "/train/" in name and name.endswith(".JPEG")][::40]
        archive.extractall(tmp_path, names)
    photos, folder = tmp_path / "imagenette-4k" / "train", tmp_path / "tars"
    folder.mkdir()
    from webdataset.writer import ShardWriter

    with ShardWriter(str(folder / "train-%06d.tar"), maxcount=30, verbose=0) as sink:
        for file in sorted(photos.glob("*/*")):
            sink.write(
                {"__key__": f"{file.parent.name}/{file.stem}", "jpeg": file.read_bytes(), "txt": file.parent.name}
            )
    one, other = by_name(load(photos)), by_name(load(folder))
    assert one == other and len(one) > 70 and len({found[0] for found in one.values()}) == 10
