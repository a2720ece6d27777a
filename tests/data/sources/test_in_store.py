"""Tests of images that are read in an object store, to be packed: found and checked as in a folder, once, and nothing fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import ObjectServer
from picture_folders import write_noise
from PIL import Image
from uploaded import upload_folder

from stagewright.data.dataset import load_dataset
from stagewright.data.images import stored
from stagewright.data.sources import in_store, scan
from stagewright.data.sources.opened import Opened, open_source
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and val with two classes each, and files of every kind that is not an image."""
    root = tmp_path_factory.mktemp("in-store") / "photos"
    for part, count in (("train", 10), ("val", 4)):
        write_noise(root / part, ("ant", "bee"), count, lambda at: (20 + at, 30), lambda at: (".jpg", ".png")[at % 2])
    odd = root / "train" / "ant"
    (odd / "cut.jpg").write_bytes((odd / "00.jpg").read_bytes()[:-300])
    (odd / "empty.png").touch()
    (odd / "notes.txt").write_text("no picture")
    (odd / "film.mp4").write_bytes(bytes(5000))
    Image.effect_noise((90, 90), 50).save(odd / "unnamed", "PNG")
    (odd / ".hidden").write_text("hidden")
    (root / "readme.md").write_text("about")
    return root


def opened(source: str | Path, say: Callable[[str], object] = lambda text: None, **given: Any) -> Opened:
    settings = Data(**given.pop("data", {}))
    given = {"workers": 2, "progress": None, "reading": "once", **given}
    return open_source(str(source), settings, say=lambda text: (say(text), None)[1], **given)


def same(one: Opened, other: Opened) -> bool:
    """Whether two sources have the same images, and the same things to say about them."""
    for name in ("paths", "labels"):
        assert getattr(one.listing, name).equals(getattr(other.listing, name))
    for name in ("excluded", "left_out", "notes"):
        assert getattr(one.listing, name) == getattr(other.listing, name)
    for name in ("digests", "widths", "heights"):
        assert np.array_equal(getattr(one.scan, name), getattr(other.scan, name))
    assert (one.scan.reasons, one.scan.not_images) == (other.scan.reasons, other.scan.not_images)
    return np.array_equal(one.listing.parts, other.listing.parts)


def read(server: ObjectServer) -> list[str]:
    """Names of the objects that were read since the last call, one for each request."""
    found = [one["path"] for one in server.requests(clear=True) if one["method"] == "GET" and not one["query"]]
    return [path.partition("/photos/")[2] for path in found]


def test_as_in_a_folder(
    photos: Path, bucket: str, object_server: ObjectServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_MAX_UNKNOWN_BYTES", 1000)
    url, texts = upload_folder(photos, f"{bucket}/photos"), list[str]()
    object_server.requests(clear=True)
    here, there = opened(photos), opened(url, texts.append)
    assert same(there, here) and there.listing.root == url and there.hash_of == ""
    assert len(there.scan.reasons) == 4 and len(there.scan.not_images) == 2 and there.listing.left_out
    assert [text for text in texts if "33 files, 0.00 GB" in text and "$0.0000 for requests" in text] == texts
    names = read(object_server)
    paths = [path for path in there.listing.paths.to_pylist() if "empty" not in path]
    assert sorted(names) == sorted([*paths, "train/ant/unnamed"]), "one without an extension is looked at first"
    assert not (cache / "fetched").exists()
    row = there.listing.paths.index("val/bee/03.png").as_py()
    assert there.images(there.listing.paths).read(row) == (photos / "val/bee/03.png").read_bytes()


def test_files_that_are_too_large(photos: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", 1 << 11)
    monkeypatch.setattr(in_store, "MOST_BYTES", 1 << 11)
    there, here = opened(upload_folder(photos, f"{bucket}/photos")), opened(photos)
    assert same(there, here) and sum("the most that is read" in reason for reason in there.scan.reasons.values()) > 3


def test_what_was_checked_is_not_read_again(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    first = opened(url)
    object_server.requests(clear=True)
    assert same(opened(url + "/"), first)
    bad = ["train/ant/cut.jpg", "train/ant/film.mp4", "train/ant/notes.txt"]
    assert sorted(read(object_server)) == bad, "these may be repaired"
    old = bytearray((photos / "val/ant/00.jpg").read_bytes())
    old[-10] ^= 1  # of the same size
    obstore.put(open_store(url), "val/ant/00.jpg", bytes(old))
    again = opened(url)
    assert sorted(read(object_server)) == [*bad, "val/ant/00.jpg"]
    assert int((again.scan.digests != first.scan.digests).any(1).sum()) == 1


_KILLED = """
import os, signal, sys
from stagewright.data.sources import scan
from stagewright.data.sources.opened import open_source
from stagewright.recipe.recipe import Data
scan._SAVE_SECONDS, scan._CHUNK = 0.0, 4
def progress(done, total):
    if done > 20:
        os.kill(os.getpid(), signal.SIGKILL)
open_source(sys.argv[1], Data(), workers=1, progress=progress, reading="once")
"""


def test_a_killed_scan_goes_on(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    done = subprocess.run([sys.executable, "-c", _KILLED, url], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    object_server.requests(clear=True)
    assert same(opened(url), opened(photos))
    assert 0 < len(read(object_server)) < 22


def test_a_copy_of_before_is_used(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    load_dataset(url, Data())
    object_server.requests(clear=True)
    texts = list[str]()
    there = opened(url, texts.append)
    assert same(there, opened(photos)) and there.listing.root == url
    assert there.images(there.listing.paths).read(0) == (photos / there.listing.paths[0].as_py()).read_bytes()
    assert not read(object_server) and "which were fetched before" in texts[0]
    obstore.put(open_store(url), "val/ant/00.jpg", b"another")
    assert "which were fetched before" not in str(opened(url, texts.append) and texts[1])


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables(ending: str, photos: Path, bucket: str, object_server: ObjectServer, cache: Path) -> None:
    files = sorted(file for file in photos.rglob("*.*g") if "cut" not in file.name and file.stat().st_size)
    paths = [str(file.relative_to(photos)) for file in files]
    columns = {"path": ["gone.jpg", *paths], "label": ["ant", *(file.parent.name for file in files)]}
    for inner, images in (("", None), ("photos/", "photos")):
        place = photos.parent / f"table-{ending[1:]}-{len(inner)}"
        place.mkdir()
        (place / "photos").symlink_to(photos)
        table = pa.table({**columns, "path": [("photos/" if not inner else "") + path for path in columns["path"]]})
        if ending == ".csv":
            rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
            (place / "labels.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
        else:
            pq.write_table(table, place / "labels.parquet")
        url = f"{bucket}/{place.name}"
        obstore.put(open_store(url), f"labels{ending}", place / f"labels{ending}")
        upload_folder(photos, f"{url}/photos")
        object_server.requests(clear=True)
        there, here = (opened(f"{one}/labels{ending}", data={"images": images}) for one in (url, place))
        assert same(there, here) and len(there.listing.paths) == len(paths) and len(there.listing.excluded) == 1
        assert sorted(filter(None, read(object_server))) == paths
    assert [file.name for file in cache.glob("fetched/*/*/*")] == [f"labels{ending}"] * 2, "the tables alone"


def test_changed_meanwhile(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")

    def change(text: str) -> None:
        obstore.put(open_store(url), "train/bee/07.png", b"another")

    with pytest.raises(DataError, match=r"train/bee/07\.png of s3://.* changed while the data were read"):
        opened(url, change)
    with pytest.raises(DataError, match=r"val/ant/01\.png of s3://.* changed while"):
        opened(url, lambda text: obstore.delete(open_store(url), "val/ant/01.png"))


def test_errors_of_the_store(photos: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(photos, f"{bucket}/photos")
    with (
        object_server.fault("forbidden", method="GET", path="bee/07"),
        pytest.raises(StorageError, match=r"train/bee/07\.png: reading it failed: no rights"),
    ):
        opened(url)
    with object_server.fault("slow", method="GET", share=0.2), object_server.fault("truncate", share=0.1, path="bee"):
        assert same(opened(url), opened(photos))
    with pytest.raises(DataError, match=f"there is nothing below {bucket}/nothing"):
        opened(f"{bucket}/nothing")
    with pytest.raises(StorageError, match="no such bucket"):
        opened(f"s3://no-such-{os.getpid()}/photos")
    with pytest.raises(DataError, match=f"{url}/train/ant holds 15 files but no class folders"):
        opened(f"{url}/train/ant")
