"""Tests of packing images that lie in an object store: the pack of a copy on the disk, byte for byte, without such a copy."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from object_server import ObjectServer
from picture_folders import write_noise
from uploaded import upload_folder

from stagewright.data.pack.build import PackSummary, pack
from stagewright.errors import DataError, StorageError
from stagewright.recipe.recipe import Data
from stagewright.storage.objects import open_store

PART_BYTES = 8_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forms of DATA: class folders, those with train and val, a flat folder, a table of paths, tar files."""
    root = tmp_path_factory.mktemp("from-store")
    write_noise(root / "classes", "ab", 20, lambda at: (30 + at, 40), lambda at: (".jpg", ".png")[at % 2])
    (root / "classes" / "a" / "notes.txt").write_text("no picture")
    (root / "classes" / ".DS_Store").write_text("hidden")
    for part, count in (("train", 15), ("val", 5)):
        write_noise(root / "parts" / part, "ab", count, lambda at: (30 + at, 40))
    images = sorted((root / "parts").rglob("*.png"))
    (root / "flat").mkdir()
    for at, file in enumerate(images):
        (root / "flat" / f"{file.parent.name}_{at}.png").write_bytes(file.read_bytes())
    (root / "table").mkdir()
    (root / "table" / "images").symlink_to(root / "parts")
    with (root / "table" / "labels.csv").open("w", newline="") as out:
        rows = [(f"images/{file.relative_to(root / 'parts')}", file.parent.name, file.name) for file in images]
        csv.writer(out).writerows([("path", "label", "site"), *rows, ("images/gone.png", "a", "")])
    (root / "tars").mkdir()
    for number in range(2):
        with tarfile.open(root / "tars" / f"part-{number}.tar", "w") as tar:
            for at, file in enumerate(images[number::2]):
                for name, data in ((f"{at:03d}.png", file.read_bytes()), (f"{at:03d}.cls", file.parent.name.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(source: Path | str, out: Path | str, data: dict[str, Any] | None = None, **changes: Any) -> PackSummary:
    settings = Data.model_validate(data or {})
    return pack(str(source), out, settings, **{"size": 24, "part_bytes": PART_BYTES, **changes})


def without_source(files: dict[str, bytes]) -> dict[str, bytes]:
    head = json.loads(files["pack.json"])
    del head["source"], head["sha256"]  # the latter of the rest of the file
    return {**files, "pack.json": json.dumps(head).encode()}


def on_disk(folder: Path) -> dict[str, bytes]:
    return without_source({file.name: file.read_bytes() for file in folder.iterdir()})


def in_store(url: str) -> dict[str, bytes]:
    store = open_store(url)
    names = [one["path"] for page in obstore.list(store) for one in page]
    return without_source({name: bytes(obstore.get(store, name).bytes()) for name in names})


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("classes", {}),
    ("parts", {}),
    ("flat", {"label": {"pattern": "(?P<label>[ab])_"}}),
    ("table/labels.csv", {}),
    ("tars", {}),
    ("tars/part-1.tar", {}),
    ("tars/part-{0..1}.tar", {}),
]


@pytest.mark.parametrize(("source", "data"), FORMS, ids=[name for name, _ in FORMS])
def test_the_bytes_of_a_pack_of_a_copy(
    source: str, data: dict[str, Any], sources: Path, bucket: str, cache: Path, tmp_path: Path
) -> None:
    form = source.partition("/")[0]
    upload_folder(sources / form, f"{bucket}/{form}")
    if form == "table":
        upload_folder(sources / "parts", f"{bucket}/table/images")
    expected = on_disk(make(sources / source, tmp_path / "expected.pack", data).folder)
    assert sum(name.startswith("part-") for name in expected) > (1 if "part-1" in source else 3)
    url = f"{bucket}/{source}"
    texts = list[str]()
    made = make(url, f"{bucket}/made.pack", data, say=texts.append)
    assert in_store(f"{bucket}/made.pack") == expected and made.made == made.records
    assert any(" for requests" in text for text in texts), "the price is told"
    assert on_disk(make(url, tmp_path / "here.pack", data).folder) == expected
    fetched = [file.name for file in cache.glob("fetched/*/*/*") if file.is_file()]
    assert fetched == (["labels.csv"] if form == "table" else []), "no image"


def test_at_most_a_few_parts_are_on_the_disk(sources: Path, bucket: str, cache: Path) -> None:
    url, sizes = upload_folder(sources / "classes", f"{bucket}/classes"), list[int]()

    def progress(done: int, total: int) -> None:
        sizes.append(sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()))

    made = make(url, f"{bucket}/made.pack", progress=progress)
    assert made.bytes > 5 * PART_BYTES and max(sizes) < 3 * PART_BYTES


def test_many_are_read_at_once(sources: Path, bucket: str, object_server: ObjectServer) -> None:
    url = upload_folder(sources / "classes", f"{bucket}/classes")
    object_server.requests(clear=True)
    with object_server.fault("delay", method="GET", path=r"classes/[ab]/", seconds=1.0):
        make(url, f"{bucket}/made.pack", encoding="raw", workers=1)
    at = sorted(one["at"] for one in object_server.requests() if re.search("/classes/[ab]/", one["path"]))
    assert len(at) == 41 + 40, "notes.txt is checked too"
    for began, label in ((at[0], "checked"), (at[41], "packed")):
        assert sum(began <= one < began + 0.9 for one in at) >= 16, f"while the first is {label}"


_KILLED = """
import os, signal, sys
from stagewright.data.pack import build
from stagewright.recipe.recipe import Data
at = int(sys.argv[3])
def progress(done, total):
    if total == 40 and done == at:
        os.kill(os.getpid(), signal.SIGKILL)
build.pack(sys.argv[1], sys.argv[2], Data(), size=24, part_bytes=8_000, progress=progress)
"""


def test_killed_and_gone_on_elsewhere(
    sources: Path, bucket: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan has 41 files with the one that is no picture, the packing 40 records."""
    url = upload_folder(sources / "classes", f"{bucket}/classes")
    expected, made = on_disk(make(sources / "classes", tmp_path / "expected.pack").folder), f"{bucket}/made.pack"
    for number, at in enumerate((14, 33)):
        monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / f"machine-{number}"))
        done = subprocess.run([sys.executable, "-c", _KILLED, url, made, str(at)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    object_server.requests(clear=True)
    last = make(url, made)
    assert 0 < last.made < 20 and in_store(made) == expected
    read = [one["path"] for one in object_server.requests() if one["path"].endswith((".png", ".jpg"))]
    assert len(read) <= 2 * last.made + 24, "what was checked and packed on this machine is not read again"
    assert make(url, made).made == 0


@pytest.mark.parametrize("form", ["classes", "tars"])
def test_changed_between_the_check_and_the_packing(form: str, sources: Path, bucket: str, tmp_path: Path) -> None:
    url = upload_folder(sources / form, f"{bucket}/{form}")
    name, where = {"classes": ("b/07.png", "b/07.png"), "tars": ("part-1.tar", r"part-1\.tar/\d+\.png")}[form]

    def when(words: str, change: Callable[[], object]) -> Callable[[str], None]:
        return lambda text: (words in text and change(), None)[1]

    old = bytes(obstore.get(open_store(url), name).bytes())
    replaced = when("Packing 40 pictures", lambda: obstore.put(open_store(url), name, old + bytes(512)))
    with pytest.raises(DataError, match=f"^{where} has changed since it was scanned"):
        make(url, f"{bucket}/made.pack", encoding="raw", say=replaced)
    deleted = when("Packing", lambda: obstore.delete(open_store(url), name))
    obstore.put(open_store(url), name, old)
    with pytest.raises(DataError, match=f"^{where} cannot be read: s3://.* does not exist"):
        make(url, tmp_path / "made.pack", encoding="raw", say=deleted)


def test_errors_of_the_store(sources: Path, bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    url = upload_folder(sources / "classes", f"{bucket}/classes")
    expected = on_disk(make(sources / "classes", tmp_path / "expected.pack").folder)

    def say(text: str) -> None:
        if text.startswith("Packing 40 pictures"):
            object_server.add_fault("forbidden", method="GET", path="classes/b/03")

    with pytest.raises(StorageError, match=r"classes/b/03\.png: reading it failed: no rights"):
        make(url, f"{bucket}/made.pack", say=say, encoding="raw")
    object_server.lift()
    with object_server.fault("slow", method="GET", share=0.2), object_server.fault("truncate", path="a/", share=0.1):
        make(url, f"{bucket}/made.pack", overwrite=True)
    assert in_store(f"{bucket}/made.pack") == expected
