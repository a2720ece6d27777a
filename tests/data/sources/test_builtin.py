"""Built-in data: digits as a folder, torchvision's arrays; no network is ever needed here."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from stagewright.data.dataset import load_dataset, open_images
from stagewright.data.partition import TEST, TRAIN
from stagewright.data.sources import builtin
from stagewright.data.sources.builtin import digits_folder, load_arrays
from stagewright.data.sources.scan import digest_of
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def test_digits_are_scikit_learns(own_cache: Path) -> None:
    folder = digits_folder()
    assert folder.is_relative_to(own_cache)
    values, labels = load_digits(return_X_y=True)
    files = sorted(folder.glob("*/*.png"), key=lambda file: file.stem)
    assert [int(file.parent.name) for file in files] == labels.tolist()
    for at in (0, 1000, 1796):
        with Image.open(files[at]) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), np.rint(values[at].reshape(8, 8) * 255 / 16))


@pytest.fixture
def few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a set of 20 that is made quickly."""
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "_NUM_DIGITS", 20)

    def write(folder: Path) -> None:
        for at in range(20):
            (folder / str(at % 10)).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), at).save(folder / str(at % 10) / f"{at:04d}.png")

    monkeypatch.setattr(builtin, "_write_digits", write)
    return tmp_path / "cache"


def test_digits_appear_whole(few_digits: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(lambda _: digits_folder(), range(6)))) == 1
    (folder,) = few_digits.iterdir()
    assert sum(1 for _ in folder.glob("*/*.png")) == 20
    (folder / "3" / "0003.png").unlink()
    digits_folder()
    assert sum(1 for _ in folder.glob("*/*.png")) == 20
    assert [path.name for path in few_digits.iterdir()] == [folder.name]


def test_digits_without_a_place_to_write(few_digits: Path) -> None:
    few_digits.write_text("a file where the folder should be")
    with pytest.raises(DataError) as error:
        digits_folder()
    assert error.value.given.startswith(f"the pictures of digits cannot be written to {few_digits}")
    assert (error.value.allowed, error.value.remedy) == ("a folder that can be written", "set STAGEWRIGHT_CACHE to one")


CIFAR_CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar(root: Path) -> dict[str, np.ndarray]:
    """CIFAR-10's own files with 20 pictures each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = {}
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        rows[name] = random.integers(0, 256, (20, 3072)).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows[name], "labels": [at % 10 for at in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_CLASSES}))
    return rows


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A tiny CIFAR-10 in its place; of torchvision only the check of the files' sums is left out."""
    monkeypatch.setenv("STAGEWRIGHT_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, _: os.path.isfile(path))
    return write_cifar(tmp_path)


def test_torchvision_arrays(cifar: dict[str, np.ndarray]) -> None:
    arrays = load_arrays("torchvision:CIFAR10")
    assert arrays.images.shape == (120, 32, 32, 3) and arrays.images.dtype == np.uint8
    last = cifar["test_batch"][19].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(arrays.images[119], last)
    assert arrays.listing.labels.to_pylist() == CIFAR_CLASSES * 12
    assert arrays.listing.paths[0].as_py() == "train/000000" and arrays.listing.paths[119].as_py() == "test/000019"
    assert arrays.listing.parts.tolist() == [TRAIN] * 100 + [TEST] * 20
    assert arrays.scan.digests[119].tobytes() == digest_of(last.tobytes())
    assert set(arrays.scan.widths) == set(arrays.scan.heights) == {32}


def test_torchvision_data_set(cifar: dict[str, np.ndarray], tmp_path: Path) -> None:
    dataset = load_dataset("torchvision:CIFAR10", Data())
    manifest = dataset.manifest
    assert manifest.classes == tuple(sorted(CIFAR_CLASSES)) and manifest.root == ""
    assert manifest.rows("test").tolist() == list(range(100, 120))
    assert len(manifest.rows("val")) == 15
    assert manifest.classes[manifest.labels[4]] == CIFAR_CLASSES[4]
    assert np.array_equal(np.asarray(open_images(manifest).load(7)), np.asarray(dataset.images.load(7)))
    assert "split made by stagewright (test as given by DATA, stratified by class, seed 0)" in dataset.notes[1]
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    rows = write_cifar(tmp_path)
    rows["test_batch"][0, 0] ^= 1
    changed = pickle.dumps({"data": rows["test_batch"], "labels": [at % 10 for at in range(20)]})
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(changed)
    with pytest.raises(DataError, match="torchvision:CIFAR10 has changed since the run began") as error:
        open_images(manifest)
    assert error.value.remedy == "restore its files, or start a new run"


class Stand:
    """What torchvision's data sets have in common, and where they differ."""

    def __init__(self, root: Path, train: bool = True, split: str = "", download: bool = False) -> None:
        count = 30 if train and split != "test" else 10
        shape = {"MNIST": (count, 28, 28), "SVHN": (count, 3, 32, 32), "USPS": (count, 16, 16)}[self.kind]
        values = np.random.default_rng(count).integers(0, 256, shape).astype(np.uint8)
        labels = np.arange(count) % 5
        self.data: Any = torch.from_numpy(values) if self.kind == "MNIST" else values
        if self.kind == "SVHN":
            assert split in ("train", "test")
            self.labels = labels
        else:
            assert not split
            self.targets = torch.from_numpy(labels) if self.kind == "MNIST" else labels.tolist()
        if self.kind == "MNIST":
            self.classes = [f"{digit} - name" for digit in range(5)]

    kind = ""


@pytest.mark.parametrize("kind", ["MNIST", "SVHN", "USPS"])
def test_layouts_of_torchvision(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAGEWRIGHT_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, kind, type(kind, (Stand,), {"kind": kind}))
    arrays = load_arrays(f"torchvision:{kind}")
    side = arrays.images.shape[1]
    assert arrays.images.shape == (40, side, side, 3)
    first = np.random.default_rng(30).integers(0, 256, (30, 3 if kind == "SVHN" else 1, side, side)).astype(np.uint8)[0]
    assert np.array_equal(arrays.images[0], np.broadcast_to(first.transpose(1, 2, 0), (side, side, 3)))
    names = arrays.listing.labels.to_pylist()
    assert names[:6] == (
        ["0 - name", "1 - name", "2 - name", "3 - name", "4 - name", "0 - name"] if kind == "MNIST" else [*"012340"]
    )


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("CIFAR10", ["cifar-10-python.tar.gz"]),
        ("MNIST", ["MNIST/raw/train-images-idx3-ubyte.gz", "MNIST/raw/t10k-labels-idx1-ubyte.gz"]),
        ("SVHN", ["train_32x32.mat", "test_32x32.mat"]),
        ("USPS", ["usps.bz2", "usps.t.bz2"]),
        ("STL10", ["stl10_binary.tar.gz"]),
    ],
)
def test_offline(name: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setenv("STAGEWRIGHT_DATA", str(tmp_path))
    for module in ("cifar", "mnist", "svhn", "usps", "stl10"):
        for function in ("download_url", "download_and_extract_archive"):
            monkeypatch.setattr(f"torchvision.datasets.{module}.{function}", offline, raising=False)
    with pytest.raises(DataError) as error:
        load_arrays(f"torchvision:{name}")
    assert error.value.given.startswith(f"torchvision:{name} is not in {tmp_path} and could not be downloaded: ")
    assert error.value.allowed == "a network connection, or the files of the data set in that folder"
    assert error.value.remedy.startswith("download these files elsewhere and copy them here: ")
    for file in files:
        assert str(tmp_path / file) in error.value.remedy
    assert error.value.remedy.endswith("(or set STAGEWRIGHT_DATA to the folder that has them)")


@pytest.mark.parametrize(("name", "near"), [("cifar10", "'CIFAR10'"), ("CIFAR1O", "'CIFAR10'"), ("ImageNet", "")])
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(DataError) as error:
        load_arrays(f"torchvision:{name}")
    assert error.value.given == f"there is no built-in data set 'torchvision:{name}'" + (
        f"; did you mean {near}?" if near else ""
    )
    assert "torchvision:CIFAR100, torchvision:FashionMNIST" in error.value.allowed
    assert error.value.remedy == "for any other data set, point at its pictures in class folders"
