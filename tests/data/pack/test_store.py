"""Tests of packing into an object store: the same bytes as on the disk, also after a kill, and nothing half visible."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest
from object_server import ObjectServer
from picture_folders import write_noise

from stagewright.data.dataset import load_dataset
from stagewright.data.pack.build import PackSummary, pack
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 20 images each."""
    root = tmp_path_factory.mktemp("store") / "photos"
    write_noise(root, "ab", 20, lambda at: (30 + at, 40))
    return root


@pytest.fixture(scope="module")
def expected(photos: Path) -> dict[str, bytes]:
    """The files of the pack on the disk."""
    made = make(photos, photos.parent / "photos.pack")
    return {file.name: file.read_bytes() for file in made.folder.iterdir()}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))


def make(source: Path | str, out: Path | str, **changes: Any) -> PackSummary:
    return pack(str(source), out, Data(), **{"size": 24, "part_bytes": 8_000, **changes})


def contents(url: str) -> dict[str, bytes]:
    store = open_store(url)
    return {one["path"]: bytes(obstore.get(store, one["path"]).bytes()) for page in obstore.list(store) for one in page}


def test_the_same_bytes_as_on_the_disk(
    photos: Path, expected: dict[str, bytes], bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    url = f"{bucket}/x/photos.pack"
    made = make(photos, url)
    assert (made.records, made.made, made.place) == (40, 40, url) and contents(url) == expected
    puts = [one["path"].rpartition("/")[2] for one in object_server.requests() if one["method"] == "PUT"]
    assert puts[-1] == "pack.json", "last, so that there is no pack before it is whole"
    assert not list((tmp_path / "cache" / "packing").glob("*/*"))
    object_server.requests(clear=True)
    assert make(photos, url).made == 0
    assert not [one for one in object_server.requests() if one["method"] in ("PUT", "DELETE")]
    assert (
        load_dataset(url, Data()).manifest.digest
        == load_dataset(str(photos.parent / "photos.pack"), Data()).manifest.digest
    )


_KILLED = """
import os, signal, sys
from stagewright.data.pack import build
from stagewright.recipe.recipe import Data
at = int(sys.argv[3])
def progress(done, total):
    if (done, total) == (at, 40) and not (total == 40 and scanning[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    if (done, total) == (40, 40):
        scanning[0] = False
scanning = [True]
build.pack(sys.argv[1], sys.argv[2], Data(), size=24, part_bytes=8_000, progress=progress)
"""


def test_killed_and_gone_on_elsewhere(
    photos: Path, expected: dict[str, bytes], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/photos.pack"
    for number, at in enumerate((1, 15, 33)):
        monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / f"machine-{number}"))
        done = subprocess.run([sys.executable, "-c", _KILLED, str(photos), url, str(at)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert "pack.json" not in contents(url) and "packing.json" in contents(url)
        with pytest.raises(DataError, match="is not finished"):
            load_dataset(url, Data())
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "last machine"))
    before = sum(name.startswith("part-") for name in contents(url))
    made = make(photos, url)
    assert before >= 3 and 0 < made.made < 20 and contents(url) == expected


def test_a_part_that_is_gone_is_made_anew(photos: Path, expected: dict[str, bytes], bucket: str) -> None:
    url = f"{bucket}/photos.pack"
    make(photos, url)
    store = open_store(url)
    obstore.delete(store, "part-00001.arrow")
    obstore.put(store, "part-00002.arrow", b"cut")
    said: list[str] = []
    assert 0 < make(photos, url, say=said.append).made < 25 and contents(url) == expected
    assert "part-00001.arrow is damaged or missing and will be written again." in said
    obstore.delete(store, "index.parquet")
    assert make(photos, url).made > 0 and contents(url) == expected


def test_what_is_refused(
    photos: Path, expected: dict[str, bytes], bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    url = f"{bucket}/photos.pack"
    make(photos, url)
    with pytest.raises(DataError) as error:
        make(photos, url, size=20)
    assert error.value.given == f"{url} contains another pack: size 24 instead of 20"
    assert make(photos, url, size=20, overwrite=True).records == 40
    assert load_dataset(url, Data()).manifest.variant == "pack of 20 px, jpeg q90"
    obstore.put(open_store(f"{bucket}/thesis"), "thesis.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"/thesis contains other files: thesis\.txt"):
            make(photos, f"{bucket}/thesis", overwrite=overwrite)
    assert contents(f"{bucket}/thesis") == {"thesis.txt": b"mine"}
    with object_server.fault("forbidden", method="PUT"), pytest.raises(StorageError, match="s3:PutObject"):
        make(photos, f"{bucket}/forbidden.pack")
    with object_server.fault("slow", share=0.3), object_server.fault("lost", method="PUT", share=0.1):
        make(photos, f"{bucket}/slow.pack")
    assert contents(f"{bucket}/slow.pack") == expected
