"""The cache of blocks against a real server: the bytes are right, each block is fetched once, and faults of the store pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from object_server import ObjectServer
from remote_packs import BYTES, SIDE, SmallPack, make_pack, opened_in_blocks, upload

from stagewright.data.batches.specs import train_specs
from stagewright.data.dataset import Dataset, load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.pack.images import PackRows
from stagewright.data.remote.cache import BlockCache
from stagewright.data.remote.download import PATIENCE
from stagewright.data.remote.eviction import fewest_fetches
from stagewright.data.remote.needs import HostRanks, Needs
from stagewright.errors import StorageError
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store

COUNT = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(tmp_path_factory.mktemp("small"), COUNT)


@pytest.fixture
def small(folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPack:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return upload(folder, bucket)


def plan_of(manifest: Manifest, **changes: Any) -> Plan:
    fields = {"image_size": 16, "batch_size": 8, "epochs": "3ep", "order": "blocked", **changes}
    return resolve(recipes.from_dict(fields), manifest.info())


def ranges(server: ObjectServer) -> list[str]:
    """The ranges of parts that were asked for, in order."""
    asked = [one for one in server.requests() if one["method"] == "GET" and ".arrow" in one["path"]]
    return [f"{one['path'].rpartition('/')[2]} {one['range']}" for one in asked]


def same_bytes(dataset: Dataset, small: SmallPack, rows: np.ndarray) -> bool:
    """Whether images come as they lie in the pack on the disk."""
    local = load_dataset(str(small.folder), Data()).images
    assert isinstance(local, PackRows) and isinstance(dataset.images, PackRows)
    here, there = local.stored(rows), dataset.images.stored(rows)
    assert not there.failures
    return all(bytes(here.data(at)) == bytes(there.data(at)) for at in range(len(rows)))


def test_images_come_as_they_are_and_each_block_once(small: SmallPack, object_server: ObjectServer) -> None:
    with opened_in_blocks(small.url) as (dataset, cache):
        assert len(cache.table) > 20 and cache.table.sizes.sum() == COUNT * BYTES
        object_server.requests(clear=True)
        for _ in range(2):
            for rows in np.array_split(np.random.default_rng(0).permutation(COUNT), 20):
                assert same_bytes(dataset, small, rows)
        asked = Counter(ranges(object_server))
        assert set(asked.values()) == {1}
        assert len(asked) == cache.table.num_requests.sum() == cache.download.num_requests
    object_server.requests(clear=True)
    with opened_in_blocks(small.url) as (dataset, _):  # as a later run
        assert same_bytes(dataset, small, np.arange(COUNT))
    assert not ranges(object_server)


def test_what_has_no_room_is_read_image_by_image(small: SmallPack, object_server: ObjectServer) -> None:
    with opened_in_blocks(small.url, capacity=3 * 10 * BYTES) as (dataset, cache):
        assert same_bytes(dataset, small, np.arange(COUNT))
        assert 0 < cache.blocks.used_bytes() <= cache.capacity
        object_server.requests(clear=True)
        assert same_bytes(dataset, small, np.arange(COUNT))
        there = np.isin(cache.table.block_of, cache.blocks.present())
        assert len(ranges(object_server)) == np.count_nonzero(~there) > 0


def read_passes(dataset: Dataset, cache: BlockCache, plan: Plan, seconds: float) -> list[int]:
    """Reads all batches of ``plan``, one every so many seconds; returns the blocks that it used, in order."""
    assert isinstance(dataset.images, PackRows)
    used = list[int]()
    needs = Needs(plan, dataset.manifest, cache.table, HostRanks())
    for spec in train_specs(plan, dataset.manifest, 0):
        cache.follow(needs, 0) if spec.step == 0 else cache.at(spec.step)
        time.sleep(seconds)
        assert not dataset.images.stored(spec.rows).failures
        used += np.unique(cache.table.block_of[spec.rows]).tolist()
    return used


def test_traffic_is_near_the_optimum_and_never_above_the_capacity(
    tmp_path: Path, bucket: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    small = upload(make_pack(tmp_path, 900), bucket)
    with opened_in_blocks(small.url) as (dataset, cache):
        plan = plan_of(dataset.manifest, batch_size=12, epochs="3ep")
        cache.cache_gb = int(cache.table.sizes.sum()) * 0.3 / 1e9
        used = read_passes(dataset, cache, plan, 0.06)
        optimum = fewest_fetches(used, cache.table.sizes, cache.capacity)
        best = int(cache.table.sizes[optimum].sum())
        assert cache.blocks.used_bytes() <= cache.capacity
        assert 0 < cache.fetched_bytes <= 1.05 * best
        assert len(set(used)) < len(optimum)


def test_blocks_of_updates_that_are_still_being_read_stay(small: SmallPack, object_server: ObjectServer) -> None:
    with opened_in_blocks(small.url, capacity=8 * 10 * BYTES) as (dataset, cache):
        assert isinstance(dataset.images, PackRows)
        plan = plan_of(dataset.manifest, epochs="1ep")
        specs = list(train_specs(plan, dataset.manifest, 0))
        needs = Needs(plan, dataset.manifest, cache.table, HostRanks())
        object_server.requests(clear=True)
        cache.follow(needs, 0, pending=4)
        for step in range(len(specs) + 4):
            if step < len(specs):
                cache.at(step)
            time.sleep(0.02)
            if step >= 4:
                assert not dataset.images.stored(specs[step - 4].rows).failures
        asked = Counter(ranges(object_server))
        assert set(asked.values()) == {1} and len(asked) > 15


def test_if_all_fits_a_later_pass_reads_nothing(small: SmallPack, object_server: ObjectServer) -> None:
    with opened_in_blocks(small.url) as (dataset, cache):
        plan = plan_of(dataset.manifest, epochs="1ep")
        read_passes(dataset, cache, plan, 0.0)
        train = cache.table.split_of == 0
        assert cache.download.num_requests == cache.table.num_requests[train].sum()
        object_server.requests(clear=True)
        read_passes(dataset, cache, plan_of(dataset.manifest, epochs="3ep", seed=5), 0.0)
        assert not ranges(object_server)


@pytest.mark.parametrize("fault", ["slow", "error", "reset", "truncate", "stall"])
def test_a_fault_passes(
    small: SmallPack, object_server: ObjectServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_STORE_TIMEOUT", "0.5")
    with (
        opened_in_blocks(small.url) as (dataset, _),
        object_server.fault(fault, path="part-", share=0.4, times=12, seconds=5),
    ):
        assert same_bytes(dataset, small, np.arange(60))


def test_a_store_that_is_away_for_a_while_is_waited_for(small: SmallPack, object_server: ObjectServer) -> None:
    with opened_in_blocks(small.url) as (dataset, _):
        number = object_server.add_fault("slow", path="part-")
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _LIFT, object_server.endpoint, str(number)]
        )  # lifts the fault after 8 s, when the retries of a request are over
        assert same_bytes(dataset, small, np.arange(8))
        assert process.wait() == 0 and time.monotonic() - began > 7


_LIFT = """
import json, sys, time, urllib.request
time.sleep(8)
request = urllib.request.Request(sys.argv[1] + "/-/lift", json.dumps({"number": int(sys.argv[2])}).encode(), method="POST")
urllib.request.urlopen(request).close()
"""


def test_a_store_that_stays_away_is_told_with_each_image(
    small: SmallPack, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "0")
    with opened_in_blocks(small.url) as (dataset, cache), object_server.fault("error", path="part-"):
        found = cache.fetch(np.arange(3))
        assert set(found.failures) == {0, 1, 2} and found.lengths.tolist() == [0, 0, 0]
        assert all("the store" in str(error) or "InternalError" in str(error) for error in found.failures.values())
    with opened_in_blocks(small.url) as (dataset, _):
        assert same_bytes(dataset, small, np.arange(3))
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(StorageError, match="STAGEWRIGHT_STORE_PATIENCE=soon"):
        load_dataset(small.url, Data())


def test_a_block_that_was_damaged_on_the_disk_is_fetched_again(small: SmallPack) -> None:
    with opened_in_blocks(small.url) as (dataset, cache):
        assert same_bytes(dataset, small, np.arange(COUNT))
        block = int(cache.table.block_of[7])
        file = cache.blocks.folder / str(block)
        file.write_bytes(bytes(len(file.read_bytes())))
    with opened_in_blocks(small.url) as (dataset, _):
        assert same_bytes(dataset, small, np.arange(COUNT))


def test_an_image_that_is_damaged_in_the_store_is_unreadable_by_its_name(small: SmallPack) -> None:
    with opened_in_blocks(small.url) as (dataset, cache):
        places = cache.table.places
        name = places.files[places.which[7]]
        content = bytearray((small.folder / name).read_bytes())
        content[int(places.offsets[7]) + 5] ^= 255
    obstore.put(open_store(small.url), name, bytes(content))
    with opened_in_blocks(small.url) as (dataset, cache):
        assert isinstance(dataset.images, PackRows)
        block = np.flatnonzero(cache.table.block_of == cache.table.block_of[7])
        found = dataset.images.stored(block)
        path = dataset.manifest.paths[7].as_py()
        assert [str(error) for error in found.failures.values()] == [
            f"{path} is damaged: its bytes do not match its checksum"
        ]
        assert cache.download.num_requests == 2 * cache.table.num_requests[cache.table.block_of[7]]


_READER = """
import sys
import numpy as np
from stagewright.data.dataset import load_dataset
from stagewright.recipe.recipe import Data
images = load_dataset(sys.argv[1], Data()).images
images.reader.cache_gb = 1.0
print("begins", flush=True)
for rows in np.array_split(np.arange(240), 60):
    assert not images.stored(rows).failures
print("done", flush=True)
"""


def test_processes_share_the_blocks_and_a_killed_one_leaves_no_wrong_one(
    small: SmallPack, object_server: ObjectServer
) -> None:
    object_server.requests(clear=True)
    command = [sys.executable, "-c", _READER, small.url]
    with object_server.fault("delay", path="part-", seconds=0.1):
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == "begins\n"
        time.sleep(0.3)
        os.kill(readers[0].pid, signal.SIGKILL)
        for reader in readers:
            reader.communicate()
    assert [reader.returncode for reader in readers] == [-signal.SIGKILL, 0, 0]
    asked = Counter(ranges(object_server))
    assert (
        max(asked.values()) <= 2 and sum(count - 1 for count in asked.values()) <= 32
    )  # what the killed one had begun
    with opened_in_blocks(small.url) as (dataset, cache):
        assert same_bytes(dataset, small, np.arange(COUNT))
        assert not list(cache.blocks.folder.glob("*.part"))


def test_the_side_is_that_of_the_pack(small: SmallPack) -> None:
    with opened_in_blocks(small.url) as (dataset, _):
        assert dataset.manifest.widths.tolist() == [SIDE] * COUNT
