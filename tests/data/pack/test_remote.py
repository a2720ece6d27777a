"""Tests of packs in an object store, on a real server: opened without reading the parts, each record checked when it is read."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import obstore
import pytest
from object_server import ObjectServer
from picture_folders import write_noise
from PIL import Image
from uploaded import upload_folder

from stagewright.augment.geometry import eval_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.manifest import Manifest
from stagewright.data.pack.build import pack
from stagewright.data.pack.footers import find_records
from stagewright.data.pack.format import open_part
from stagewright.data.pack.images import PackImages
from stagewright.data.pack.reader import Pack
from stagewright.data.pack.remote import RemotePack, RemotePackImages
from stagewright.data.sources.verify import moved
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data, Evaluation
from stagewright.storage.objects import open_store

VERSION_1 = Path(__file__).parent / "version-1.pack"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A JPEG pack and a raw pack of 40 images in several parts, and the one of version 1."""
    root = tmp_path_factory.mktemp("remote") / "photos"
    write_noise(root, "ab", 20, lambda at: (30 + at, 40))
    made = {"version 1": VERSION_1}
    for encoding in ("jpeg", "raw"):
        made[encoding] = root.parent / f"{encoding}.pack"
        pack(str(root), made[encoding], Data(), size=24, encoding=encoding, part_bytes=16_000)
    return made


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))


def upload(folder: Path, url: str) -> str:
    """Copies a pack to ``url``, and returns the URL of the pack there."""
    return upload_folder(folder, f"{url}/{folder.name}")


def load(source: str | Path) -> Dataset:
    return load_dataset(str(source), Data())


def refused(source: str) -> DataError:
    with pytest.raises(DataError) as error:
        load(source)
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def views(dataset: Dataset) -> tuple[bytes, list[str]]:
    """Returns the pixels of a batch of all images, and what it says about those that cannot be read."""
    manifest, rows = dataset.manifest, np.arange(len(dataset.manifest))
    geometry = eval_geometry(Evaluation(), manifest.widths, manifest.heights)
    spec = BatchSpec(0, rows, manifest.labels.astype(np.int64), geometry, 16, "bilinear")
    with closing(load_batches(dataset.images, [spec], workers=2)) as batches:
        (batch,) = batches
    return batch.images.numpy().tobytes(), [f"{row}: {reason}" for row, reason in batch.bad_rows]


@pytest.mark.parametrize("kind", ["jpeg", "raw", "version 1"])
def test_the_same_manifest_and_batches_as_on_the_disk(
    kind: str, local: dict[str, Path], bucket: str, object_server: ObjectServer
) -> None:
    url = upload(local[kind], bucket)
    here = load(local[kind])
    object_server.requests(clear=True)
    there = load(url)
    seen = object_server.requests(clear=True)
    assert there.manifest.digest == here.manifest.digest and there.manifest.paths.equals(here.manifest.paths)
    assert there.excluded == here.excluded and isinstance(there.images, RemotePackImages)
    assert there.manifest.root == there.manifest.source == url
    gets = [request for request in seen if request["method"] == "GET" and "part-" in request["path"]]
    if kind == "version 1":
        assert all(request["range"] for request in gets) and len(gets) == 3 * len(Pack.open(VERSION_1).head.parts)
    else:
        assert not gets, "no part is read to open a pack"
    assert views(there) == views(here) and not views(here)[1]
    object_server.requests(clear=True)
    again = load(url)
    names = [request["path"].rpartition("/")[2] for request in object_server.requests() if request["method"] == "GET"]
    assert again.manifest.digest == here.manifest.digest and not {"pack.json", "index.parquet"} & set(names)
    assert not [name for name in names if name.startswith("part-")], "version 1 is indexed once"


def test_footers_are_found_in_parts_of_several_batches(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(2100):
            Image.new("L", (8, 8), (at * 7 + (name == "b")) % 256).save(tmp_path / "photos" / name / f"{at:04d}.png")
    made = pack(str(tmp_path / "photos"), tmp_path / "photos.pack", Data(), size=8)
    (part,) = Pack.open(made.folder).head.parts
    data = (made.folder / part.file).read_bytes()
    offsets, lengths = find_records(lambda at, count: data[at : at + count], len(data))
    _, expected_offsets, expected_lengths = open_part(made.folder, part)
    assert len(offsets) == 4200 and offsets.tolist() == expected_offsets.tolist()
    assert lengths.tolist() == expected_lengths.tolist()
    for damaged in (data[:-1], data[: len(data) // 2], data[:-10] + bytes(4) + data[-6:], b"ARROW1"):
        with pytest.raises(ValueError, match=r"footer|Arrow"):
            find_records(lambda at, count, data=damaged: data[at : at + count], len(damaged))
    random, begin = np.random.default_rng(0), len(data) - 1100
    outcomes = set()
    for _ in range(400):  # whatever is there, it is records or a ValueError
        broken = bytearray(data)
        broken[random.integers(begin, len(data) - 6)] = random.integers(256)
        try:
            find_records(lambda at, count, data=bytes(broken): data[at : at + count], len(data))
            outcomes.add("records")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"records", "refused"}


def test_a_damaged_record_is_an_image_that_cannot_be_read(local: dict[str, Path], bucket: str) -> None:
    for kind in ("jpeg", "raw"):
        url = upload(local[kind], bucket)
        images = load(local[kind]).images
        assert isinstance(images, PackImages)
        part = Pack.open(local[kind]).head.parts[images.which[7]]
        data = bytearray((local[kind] / part.file).read_bytes())
        data[images.offsets[7] + images.lengths[7] // 2] ^= 1
        obstore.put(open_store(url), part.file, bytes(data))
        _, bad = views(load(url))
        assert bad == ["7: OSError: a/07.png is damaged: its bytes do not match its checksum"]


def test_a_part_that_changed_since_the_run_began_is_refused(
    local: dict[str, Path], bucket: str, tmp_path: Path
) -> None:
    url = upload(local["jpeg"], bucket)
    dataset = load(url)
    dataset.manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert manifest.objects == dataset.manifest.objects and len(manifest.objects) > 2
    assert all(one.etag and one.bytes for one in manifest.objects)
    assert isinstance(open_images(manifest), RemotePackImages)
    data = bytearray((local["jpeg"] / "part-00001.arrow").read_bytes())
    data[-40] ^= 1
    obstore.put(open_store(url), "part-00001.arrow", bytes(data))
    with pytest.raises(DataError) as error:
        open_images(manifest)
    assert error.value.given.startswith(f"part-00001.arrow of {url} has changed (ETag ")
    assert "start a new run on the data as they are now" in error.value.remedy
    _, bad = views(dataset)  # of a run that goes on
    part = Pack.open(local["jpeg"]).head.parts[1]
    assert len(bad) == part.rows and all(f"part-00001.arrow of {url} has changed since" in one for one in bad)
    other = upload(local["jpeg"], f"{bucket}/elsewhere")
    assert isinstance(open_images(moved(manifest, other)), RemotePackImages)
    assert isinstance(open_images(moved(manifest, local["jpeg"])), PackImages)


def test_what_is_no_whole_pack_is_refused(local: dict[str, Path], bucket: str, object_server: ObjectServer) -> None:
    url = upload(local["jpeg"], bucket)
    store = open_store(url)
    assert refused(f"{bucket}/none.pack").given == f"there is no pack {bucket}/none.pack: no file below this address"
    data = (local["jpeg"] / "part-00001.arrow").read_bytes()
    obstore.put(store, "part-00001.arrow", data[:-1])
    assert refused(url).given.endswith(f"part-00001.arrow has {len(data) - 1:,} bytes instead of {len(data):,}")
    obstore.delete(store, "part-00001.arrow")
    assert refused(url).given == f"the pack {url} is damaged: part-00001.arrow is missing"
    obstore.put(store, "part-00001.arrow", data)
    load(url)
    head = json.loads((local["jpeg"] / "pack.json").read_text())
    obstore.put(store, "pack.json", json.dumps(head | {"size": 25}).encode())
    assert "its content does not match its digest" in refused(url).given
    obstore.put(store, "pack.json", local["jpeg"] / "pack.json")
    shutil.rmtree(RemotePack.open_url(url).folder)
    obstore.put(store, "index.parquet", (local["raw"] / "index.parquet").read_bytes())
    assert refused(url).given.endswith("index.parquet changed after the pack was written")
    obstore.delete(store, "pack.json")
    assert "pack.json is not below this address" in refused(url).given
    obstore.put(store, "packing.json", b"{}")
    assert "is not finished" in refused(url).given
    object_server.delete_bucket(bucket)
    with pytest.raises(StorageError, match="no such bucket"):
        load(url)


def test_requests_that_fail_are_repeated(local: dict[str, Path], bucket: str, object_server: ObjectServer) -> None:
    url = upload(local["jpeg"], bucket)
    expected = views(load(local["jpeg"]))
    with object_server.fault("slow", method="GET", share=0.3), object_server.fault("reset", method="GET", share=0.2):
        assert views(load(url)) == expected
