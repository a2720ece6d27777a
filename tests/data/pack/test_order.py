"""Tests of the order of a pack's records: mixed by a key, without influence on manifest and batches; and of version 1."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_folders import write_noise
from PIL import Image

from stagewright.augment.geometry import train_geometry
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.pack.build import pack
from stagewright.data.pack.format import open_part
from stagewright.data.pack.images import PackImages
from stagewright.data.pack.reader import Pack
from stagewright.errors import DataError
from stagewright.recipe.recipe import Augment, Data, Evaluation

VERSION_1 = Path(__file__).parent / "version-1.pack"
VERSION_1_MANIFEST = "09115e65b4a4421d11569d0202c9ced397bb94ac18d04de5bc94f15d39f29cf7"
VERSION_1_RECORDS = "7cc920c43e09256e2fec2e19ebf39c760acd297e42ac00b05c804868ad6406f6"
"""Digests of the manifest and of the records in its order, as the version that wrote the pack computed them."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 20 images each, and a file that cannot be read."""
    root = tmp_path_factory.mktemp("order") / "photos"
    write_noise(root, "abc", 20, lambda at: (24 + at, 30))
    (root / "b" / "cut.png").write_bytes((root / "b" / "00.png").read_bytes()[:99])
    return root


@pytest.fixture(scope="module")
def packs(photos: Path) -> dict[str, Path]:
    """A pack of several parts in each order."""
    made = {}
    for order in ("mixed", "listed"):
        made[order] = photos.parent / f"{order}.pack"
        pack(str(photos), made[order], Data(), size=16, order=order, part_bytes=12_000)
    return made


def load(folder: Path) -> Dataset:
    return load_dataset(str(folder), Data())


def placed(folder: Path) -> list[str]:
    """Returns the paths of a pack in the order of its records."""
    images = load(folder).images
    assert isinstance(images, PackImages)
    order = np.lexsort((images.offsets, images.which))
    return [images.paths[int(row)].as_py() for row in order]


def test_neighbours_are_of_all_classes_and_the_key_is_the_listing(packs: dict[str, Path], photos: Path) -> None:
    assert placed(packs["listed"]) == sorted(placed(packs["mixed"])) != placed(packs["mixed"])
    classes = [path[0] for path in placed(packs["mixed"])]
    assert all(len(set(classes[at : at + 20])) == 3 for at in range(0, 60, 20))
    again = photos.parent / "again.pack"
    pack(str(photos), again, Data(), size=16, workers=1, part_bytes=12_000)
    for file in packs["mixed"].iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    fewer = Path(shutil.copytree(photos, photos.parent / "fewer"))
    (fewer / "a" / "00.png").unlink()
    pack(str(fewer), photos.parent / "fewer.pack", Data(), size=16)
    assert [path for path in placed(packs["mixed"]) if path != "a/00.png"] != placed(photos.parent / "fewer.pack")


def batches(dataset: Dataset) -> Iterator[bytes]:
    """Yields the pixels of some batches of the train part."""
    manifest, rows = dataset.manifest, dataset.manifest.rows("train")

    def specs() -> Iterator[BatchSpec]:
        for step in range(4):
            chosen = rows[np.random.default_rng(step).permutation(len(rows))[:16]]
            sizes = manifest.widths[chosen], manifest.heights[chosen]
            drawn = train_geometry(Augment(), 0, chosen, np.full(16, step), *sizes, 12, Evaluation())
            yield BatchSpec(step, chosen, manifest.labels[chosen].astype(np.int64), drawn, 12, "bilinear", False)

    with closing(load_batches(dataset.images, specs(), workers=2)) as loaded:
        for batch in loaded:
            assert not batch.bad_rows
            yield batch.images.numpy().tobytes()


def test_manifest_and_batches_do_not_depend_on_the_order(packs: dict[str, Path]) -> None:
    mixed, listed = load(packs["mixed"]), load(packs["listed"])
    assert mixed.manifest.digest == listed.manifest.digest and mixed.manifest.paths.equals(listed.manifest.paths)
    assert list(batches(mixed)) == list(batches(listed))


@pytest.mark.parametrize("order", ["mixed", "listed"])
def test_the_index_tells_where_records_lie(order: str, packs: dict[str, Path]) -> None:
    opened = Pack.open(packs[order])
    places, head = opened.places(), opened.head
    assert head.order == order and len(places) == 60 and len(places.files) > 3
    for number, part in enumerate(head.parts):
        _, offsets, lengths = open_part(opened.folder, part)
        rows = np.flatnonzero(places.which == number)
        rows = rows[np.argsort(places.offsets[rows])]
        assert places.offsets[rows].tolist() == offsets.tolist() and places.lengths[rows].tolist() == lengths.tolist()
        listed = opened.columns("file")["file"].is_valid().to_numpy().nonzero()[0]
        assert opened.rows_of(part).tolist() == listed[rows].tolist()
    assert places.sizes == tuple(part.bytes for part in head.parts)


def test_version_1_is_read_as_before(tmp_path: Path) -> None:
    dataset = load(VERSION_1)
    assert dataset.manifest.digest == VERSION_1_MANIFEST and len(dataset.manifest) == 16
    images = open_images(dataset.manifest)
    assert isinstance(images, PackImages)
    assert hashlib.sha256(b"".join(images.read(row) for row in range(16))).hexdigest() == VERSION_1_RECORDS
    assert [(item.path, item.reason) for item in dataset.excluded] == [
        ("bee/cut.jpg", "Truncated File Read"),
        ("bee/notes.txt", "not a picture in any format that Pillow reads"),
    ]
    places = Pack.open(VERSION_1).places()
    assert places.which.tolist() == sorted(places.which.tolist()) and places.crcs is not None
    damaged = Path(shutil.copytree(VERSION_1, tmp_path / "damaged.pack"))
    data = bytearray((damaged / "part-00001.arrow").read_bytes())
    data[int(places.offsets[6]) + 100] ^= 1
    (damaged / "part-00001.arrow").write_bytes(data)
    with pytest.raises(DataError, match=r"record 6 \(ant/06\.jpg\) in part-00001\.arrow changed"):
        load(damaged)


def test_a_pack_of_version_1_gets_the_new_index_and_keeps_its_parts(tmp_path: Path) -> None:
    """The images are taken from a pack that holds the bytes of its originals."""
    photos, folder = tmp_path / "photos", tmp_path / "photos.pack"
    for name in ("a", "b"):
        (photos / name).mkdir(parents=True)
        for at in range(6):
            pixels = np.random.default_rng(at + 10 * (name == "b")).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{at}.jpg")
    pack(str(photos), folder, Data(), size=32, order="listed", part_bytes=3_000)
    new = {file.name: file.read_bytes() for file in folder.iterdir()}
    as_version_1(folder)
    before = load(folder)
    with pytest.raises(DataError) as error:
        pack(str(photos), folder, Data(), size=32, part_bytes=3_000)
    assert error.value.given == f"{folder} contains another pack: order listed instead of mixed"
    assert "--order listed keeps the parts of a pack of version 1" in error.value.remedy
    made = pack(str(photos), folder, Data(), size=32, order="listed", part_bytes=3_000)
    assert made.made == 0 and {file.name: file.read_bytes() for file in folder.iterdir()} == new
    assert load(folder).manifest.digest == before.manifest.digest and Pack.open(folder).head.version == 2


def as_version_1(folder: Path) -> None:
    """Rewrites index and head as version 1 had them."""
    import zlib

    import pyarrow.parquet as pq

    from stagewright.data.pack import format as files

    index = pq.read_table(folder / "index.parquet").drop_columns(["offset", "length"])
    pq.write_table(index, folder / "index.parquet")
    head: dict[str, Any] = json.loads((folder / "pack.json").read_text())
    head |= {"version": 1, "index_crc32": zlib.crc32((folder / "index.parquet").read_bytes())}
    del head["order"], head["sha256"]
    (folder / "pack.json").write_text(json.dumps(head | {"sha256": files._sha256(head)}))


def test_a_head_of_version_2_without_an_order_is_refused(packs: dict[str, Path], tmp_path: Path) -> None:
    from stagewright.data.pack import format as files

    folder = Path(shutil.copytree(packs["mixed"], tmp_path / "x.pack"))
    head: dict[str, Any] = json.loads((folder / "pack.json").read_text())
    del head["order"], head["sha256"]
    (folder / "pack.json").write_text(json.dumps(head | {"sha256": files._sha256(head)}))
    with pytest.raises(DataError, match="order: it is missing"):
        load(folder)
    with pytest.raises(DataError, match="--order shuffled"):
        pack(str(folder), tmp_path / "y.pack", Data(), order="shuffled")  # pyright: ignore[reportArgumentType]
