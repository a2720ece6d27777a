"""Row groups of Parquet files in a store as blocks of the cache: the bytes are right, and each is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from object_server import ObjectServer
from parquet_files import parquet_ranges, write_parquet
from remote_packs import make_folder, opened_in_blocks
from uploaded import upload_folder

from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import Dataset, load_dataset
from stagewright.data.images import row_groups
from stagewright.data.images.placed import RemotePlacedImages
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.data.remote.traffic import expected_traffic
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store

COUNT, ROWS = 240, 6
CLASSES = ("class-00", "class-01", "class-02")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files without parts, of 20 row groups each: a split that is made lies across all of them."""
    root = tmp_path_factory.mktemp("rows")
    files = sorted(make_folder(root / "pictures", COUNT).glob("*/*"))
    files = [files[at] for at in np.random.default_rng(0).permutation(COUNT)]
    for number in range(2):
        write_parquet(files[number::2], root / "data" / f"part-{number}.parquet", CLASSES, rows=ROWS)
    return root / "data"


@pytest.fixture
def url(folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return upload_folder(folder, f"{bucket}/data")


def same_bytes(dataset: Dataset, folder: Path, rows: np.ndarray) -> bool:
    """Whether images come as they are in the files on the disk."""
    local = load_dataset(str(folder), Data())
    assert isinstance(dataset.images, RemotePlacedImages) and local.manifest.paths.equals(dataset.manifest.paths)
    here, there = local.images.stored(rows), dataset.images.stored(rows)
    assert not there.failures
    return all(bytes(here.data(at)) == bytes(there.data(at)) for at in range(len(rows)))


def test_a_row_group_is_a_block_for_each_split(url: str, folder: Path, object_server: ObjectServer) -> None:
    with opened_in_blocks(url) as (dataset, cache):
        table, groups = cache.table, cache.table.row_groups
        assert groups is not None and len(groups) == 40
        for block in range(len(table)):
            rows = table.rows(block)
            assert len(set(groups.of[rows].tolist())) == len(set(dataset.manifest.splits[rows].tolist())) == 1
        assert len(table) > 80 and table.sizes.sum() == table.places.lengths.sum()
        object_server.requests(clear=True)
        for _ in range(2):
            for rows in np.array_split(np.random.default_rng(0).permutation(COUNT), 20):
                assert same_bytes(dataset, folder, rows)
        asked = parquet_ranges(object_server)
        assert len(asked) == 40, "only the column of the images"
        assert asked.total() == table.num_requests.sum() == cache.download.num_requests == len(table)
        assert cache.download.num_bytes == table.request_bytes.sum() > table.sizes.sum()
    object_server.requests(clear=True)
    with opened_in_blocks(url) as (dataset, _):  # as a later run
        assert same_bytes(dataset, folder, np.arange(COUNT))
    assert not parquet_ranges(object_server)


def test_large_row_groups_come_in_pieces(
    url: str, folder: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "_REQUEST_BYTES", 10_000)
    with opened_in_blocks(url) as (dataset, cache):
        object_server.requests(clear=True)
        assert same_bytes(dataset, folder, np.arange(COUNT))
        asked = parquet_ranges(object_server).total()
        assert asked == cache.table.num_requests.sum() == cache.download.num_requests > 3 * len(cache.table)


def test_what_has_no_room_is_read_by_row_group(url: str, folder: Path, object_server: ObjectServer) -> None:
    with opened_in_blocks(url, capacity=60_000) as (dataset, cache):
        assert same_bytes(dataset, folder, np.arange(COUNT))
        assert 0 < cache.blocks.used_bytes() <= cache.capacity
    with opened_in_blocks(url, capacity=60_000) as (dataset, cache):
        object_server.requests(clear=True)
        order = np.arange(COUNT)
        for rows in np.array_split(order, 30):  # in the order of the files, as an evaluation
            assert same_bytes(dataset, folder, rows)
        asked = parquet_ranges(object_server)
        assert 30 < len(asked) <= 40 and set(asked.values()) == {1}, "the last row groups are remembered"


def test_the_plan_knows_what_a_run_asks_for(url: str, object_server: ObjectServer) -> None:
    with opened_in_blocks(url) as (dataset, cache):
        fields = {"image_size": 16, "batch_size": 8, "epochs": "2ep", "order": "blocked"}
        plan = resolve(recipes.from_dict(fields), dataset.manifest.info())
        needs = Needs(plan, dataset.manifest, cache.table, HostRanks())
        expected = expected_traffic(needs, cache.capacity)
        object_server.requests(clear=True)
        for spec in train_specs(plan, dataset.manifest, 0):
            cache.follow(needs, 0) if spec.step == 0 else cache.at(spec.step)
            assert not dataset.images.stored(spec.rows).failures
        asked = parquet_ranges(object_server)
        train = cache.table.split_of == 0
        assert set(asked.values()) == {1} and len(asked) == 40 == cache.table.num_requests[train].sum()
        held_out = np.flatnonzero(dataset.manifest.splits)
        assert not dataset.images.stored(held_out).failures
        assert expected.fits and expected.requests == cache.download.num_requests == len(cache.table)
        assert expected.bytes == cache.download.num_bytes


@pytest.mark.parametrize("fault", ["slow", "reset", "truncate"])
def test_a_fault_passes(url: str, folder: Path, object_server: ObjectServer, fault: Any) -> None:
    with opened_in_blocks(url) as (dataset, _), object_server.fault(fault, path="parquet", share=0.4, times=12):
        assert same_bytes(dataset, folder, np.arange(60))


def test_a_file_that_changes_during_a_run_is_named(url: str, folder: Path) -> None:
    with opened_in_blocks(url) as (dataset, _):
        rows = np.flatnonzero([path.startswith("part-1/") for path in dataset.manifest.paths.to_pylist()])
        obstore.put(open_store(url), "part-1.parquet", (folder / "part-0.parquet").read_bytes())
        found = dataset.images.stored(np.arange(COUNT))
        assert sorted(found.failures) == rows.tolist()
        assert f"part-1.parquet of {url} has changed since its pictures were listed" in str(found.failures[rows[0]])
