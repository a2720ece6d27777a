"""Every reader of our own files and of DATA: a file that cannot be read now is neither missing nor damaged."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from stagewright.bundle.bundle import BundleSpec, load_bundle, save_bundle
from stagewright.bundle.preprocessing import Preprocessing
from stagewright.data.dataset import load_dataset
from stagewright.data.manifest import Manifest
from stagewright.data.pack import format
from stagewright.data.pack.build import pack
from stagewright.data.pack.reader import Pack
from stagewright.data.pack.verify import check_records
from stagewright.data.sources import scan
from stagewright.data.sources.table_text import read_text
from stagewright.errors import BundleError, DataError, ModelError, StagewrightError, Unreadable
from stagewright.model.availability import architecture_of
from stagewright.model.weight_file import locate, read_tensors
from stagewright.model.zoo import create_model
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data
from stagewright.report.read import read_run
from stagewright.storage import files

Read = Callable[[Path], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """One file of each kind."""
    root = tmp_path_factory.mktemp("files")
    load_dataset(str(picture_folder), Data()).manifest.write(root / "manifest.parquet")
    pack(str(picture_folder), root / "p.pack", Data(), size=16)
    view = Preprocessing(image_size=8, crop=1.0, fit="crop", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    spec = BundleSpec("cifar_resnet18", ("a", "b"), view, 8, {"width": 4})
    sample = (picture_folder / "down" / "00.png").read_bytes()
    save_bundle(
        root / "model", create_model("cifar_resnet18", 2, image_size=8, options={"width": 4}), spec, [(sample, ".png")]
    )
    torch.save({"a": torch.zeros(2)}, root / "weights.pth")
    save_file({"a": torch.zeros(2)}, root / "other.safetensors")
    (root / "t.csv").write_text("path;label\na.png;x\n")
    pq.write_table(pa.table({"path": ["a.png"], "label": ["x"]}), root / "t.parquet")
    (root / "r.yaml").write_text("name: mine\n")
    for name in ("plan.json", "summary.json"):
        (root / name).write_text("{}")
    (root / "events.jsonl").touch()
    return root


def report(file: Path) -> object:
    record = read_run(file.parent)
    return (record, *record.problems)[0]


READERS: dict[str, Read] = {
    "manifest.parquet": Manifest.read,
    "p.pack/pack.json": lambda file: Pack.open(file.parent),
    "p.pack/index.parquet": lambda file: Pack.open(file.parent).listing(Data()),
    "p.pack/part-00000.arrow": lambda file: check_records(Pack.open(file.parent)),
    "model/model.json": lambda file: load_bundle(file.parent),
    "model/weights.safetensors": lambda file: load_bundle(file.parent),
    "model/golden.safetensors": lambda file: load_bundle(file.parent),
    "model/golden/00.png": lambda file: load_bundle(file.parent.parent),
    "weights.pth": read_tensors,
    "other.safetensors": read_tensors,
    "t.csv": read_text,
    "t.parquet": read_text,
    "r.yaml": lambda file: recipes.load(str(file)),
    "summary.json": report,
}


class Faults:
    """Reads of ``file`` that fail: the first ``failing`` ones with ``error``, or with other bytes where that is None."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.file, self.failing = str(file), 0
        self.error: Exception | None = OSError(errno.EIO, "Input/output error")
        self.pauses: list[float] = []
        read, crc32 = files._read, format._crc32
        monkeypatch.setattr(
            files, "_read", lambda path, *more: self.faulty(path, lambda: read(path, *more), b"\0\0\0\0damaged")
        )
        monkeypatch.setattr(format, "_crc32", lambda path: self.faulty(path, lambda: crc32(path), 1))
        monkeypatch.setattr(files.time, "sleep", self.pauses.append)

    def faulty(self, path: str, read: Callable[[], Any], other: Any) -> Any:
        if os.fspath(path) != self.file or self.failing <= 0:
            return read()
        self.failing -= 1
        if self.error is None:
            return other
        raise self.error


@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_read_for_a_moment_is_read_again(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    faults = Faults(monkeypatch, place / name)
    for faults.error in (OSError(errno.ESTALE, "Stale file handle"), MemoryError()):
        faults.failing = 2
        READERS[name](place / name)
        assert faults.pauses and faults.failing == 0
        shutil.rmtree(tmp_path / "packs", ignore_errors=True)


@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_read_is_not_called_damaged(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    faults = Faults(monkeypatch, place / name)
    for faults.error in (
        OSError(errno.EIO, "Input/output error"),
        PermissionError(13, "Permission denied"),
        MemoryError(),
    ):
        faults.failing = 99
        with pytest.raises(Unreadable, match=r"cannot be read: [\s\S]*4 attempts[\s\S]*nothing was changed"):
            READERS[name](place / name)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"r.yaml", "summary.json"}))
def test_what_is_damaged_is_read_twice_before_it_counts(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    faults = Faults(monkeypatch, place / name)
    faults.error = None
    if name != "t.csv":  # any bytes are a CSV file
        faults.failing = 1
        READERS[name](place / name)
        assert faults.failing == 0
    shutil.rmtree(tmp_path / "packs", ignore_errors=True)
    faults.failing = 99
    with pytest.raises((DataError, BundleError, ModelError)):
        READERS[name](place / name)


@pytest.mark.parametrize(
    "name", ["p.pack/part-00000.arrow", "p.pack/index.parquet", "model/golden.safetensors", "weights.pth"]
)
def test_what_is_missing_is_neither(place: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(StagewrightError, match=r"is not there|is missing|No such file"):
        READERS[name](tmp_path / "copy" / name)


def test_a_pack_is_not_made_again_of_what_cannot_be_read(
    place: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(place / "p.pack", tmp_path / "p.pack")
    before = {path.name: path.read_bytes() for path in (tmp_path / "p.pack").iterdir()}
    for name in before:
        with monkeypatch.context() as patch:
            Faults(patch, tmp_path / "p.pack" / name).failing = 99
            with pytest.raises(Unreadable):
                pack(str(picture_folder), tmp_path / "p.pack", Data(), size=16, overwrite=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "p.pack").iterdir()} == before


def test_weights_that_cannot_be_read_are_not_unknown_weights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert architecture_of(place) is not None
    Faults(monkeypatch, place / "model" / "model.json").failing = 99
    for ask in (architecture_of, locate):
        with pytest.raises(Unreadable):
            ask(place)


def test_a_scan_goes_without_a_cache_that_cannot_be_read_and_leaves_it(
    picture_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))
    paths = pa.array(sorted(str(path.relative_to(picture_folder)) for path in picture_folder.glob("*/*.png")))
    first = scan.scan(str(picture_folder), paths)
    (cache,) = (tmp_path / "scans").iterdir()
    content = cache.read_bytes()
    Faults(monkeypatch, cache).failing = 99
    again = scan.scan(str(picture_folder), paths)
    assert np.array_equal(first.digests, again.digests) and cache.read_bytes() == content
    assert [note for note in again.notes if "cannot be read" in note and "Input/output error" in note]


def test_a_recipe_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(StagewrightError, match="byte 0xe9 is not UTF-8"):
        recipes.load(str(tmp_path / "r.yaml"))
