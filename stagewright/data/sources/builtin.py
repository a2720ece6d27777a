"""Built-in data sets: scikit-learn's digits as a folder of PNGs, and torchvision data sets as arrays in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.partition import TEST, TRAIN
from stagewright.data.sources.folders import Listing
from stagewright.data.sources.scan import DIGEST_BYTES, Scan, digest_of
from stagewright.errors import DataError
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import unreadable, user_path
from stagewright.text import nearest

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN", "USPS")
_BY_SPLIT = frozenset({"STL10", "SVHN"})  # these take split="train", the others train=True

_NUM_DIGITS = 1797


def digits_folder() -> Path:
    """Returns the folder of ``digits``, written on first use: 1,797 grey PNGs of 8 x 8 pixels in class folders 0 to 9.

    The source is scikit-learn's ``load_digits`` (the test part of the UCI set "Optical Recognition of Handwritten
    Digits"); values 0 to 16 are scaled to 0 to 255. The folder is created atomically, also if two processes write it at
    once. DataError if the cache folder cannot be written.
    """
    folder = cache_folder("digits-1")
    if sum(1 for _ in folder.glob("[0-9]/*.png")) == _NUM_DIGITS:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".digits-", dir=folder.parent) as temporary:
            built = Path(temporary, "digits")
            _write_digits(built)
            try:
                os.rename(built, folder)
            except OSError:  # the folder exists: another process has just created it, or some of its files are missing
                if sum(1 for _ in folder.glob("[0-9]/*.png")) != _NUM_DIGITS:
                    shutil.rmtree(folder)
                    os.rename(built, folder)
    except OSError as error:
        raise DataError(
            f"the pictures of digits cannot be written to {folder}: {error.strerror or error}",
            "a folder that can be written",
            "set STAGEWRIGHT_CACHE to one",
        ) from error
    return folder


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for at, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / str(label) / f"{at:04d}.png")


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory: first its train part, then its test part."""

    images: NDArray[np.uint8]
    """uint8 (N, H, W, 3)."""
    listing: Listing
    scan: Scan


def load_arrays(source: str) -> Arrays:
    """Returns ``torchvision:NAME`` as arrays, read from ``$STAGEWRIGHT_DATA`` or the cache folder; downloads missing data.

    DataError if the name is not one of :data:`TORCHVISION`, or if the data is missing and cannot be downloaded.
    """
    name = source.removeprefix("torchvision:")
    if name not in TORCHVISION:
        raise DataError(
            f"there is no built-in data set {source!r}{nearest(name, TORCHVISION)}",
            ", ".join(f"torchvision:{known}" for known in TORCHVISION),
            "for any other data set, point at its pictures in class folders",
        )
    root = user_path(os.environ.get("STAGEWRIGHT_DATA") or cache_folder("torchvision"))
    train, test = (_read(name, split, root) for split in ("train", "test"))
    images = np.concatenate([_as_rgb(train.data), _as_rgb(test.data)])
    labels = np.concatenate(
        [np.asarray(getattr(data, "targets", getattr(data, "labels", None))) for data in (train, test)]
    )
    names = np.array(getattr(train, "classes", [str(label) for label in range(int(labels.max()) + 1)]))
    counts = (len(train.data), len(test.data))
    listing = Listing(
        root="",
        paths=pa.array(
            [f"{split}/{at:06d}" for split, count in zip(("train", "test"), counts, strict=True) for at in range(count)]
        ),
        labels=pa.array(names[labels.astype(np.int64)].tolist(), pa.string()),
        parts=np.repeat(np.array([TRAIN, TEST], np.int8), counts),
    )
    digests = np.frombuffer(b"".join(digest_of(image.tobytes()) for image in images), np.uint8)
    height, width = images.shape[1:3]
    widths, heights = np.full(len(images), width, np.int32), np.full(len(images), height, np.int32)
    return Arrays(images, listing, Scan(digests.reshape(-1, DIGEST_BYTES), widths, heights))


def _read(name: str, split: str, root: Path) -> Any:
    """Returns torchvision's data set ``name`` of the split ``split`` (train or test), downloaded to ``root`` if missing."""
    from torchvision import datasets

    dataset_class = getattr(datasets, name)
    split_argument = {"split": split} if name in _BY_SPLIT else {"train": split == "train"}
    with warnings.catch_warnings():  # NumPy warns about the pickles of CIFAR
        warnings.simplefilter("ignore")
        try:
            return dataset_class(root, **split_argument)
        except (RuntimeError, FileNotFoundError):  # not downloaded yet
            pass
        except OSError as error:
            if error.errno is not None:
                raise unreadable(error.filename or root, error) from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            return dataset_class(root, **split_argument, download=True)
        except MemoryError:
            raise
        except Exception as error:  # a download can raise errors of urllib, http, zip, tar, gzip and torchvision
            files = ", ".join(str(file) for file in _files(dataset_class, root))
            raise DataError(
                f"torchvision:{name} is not in {root} and could not be downloaded: {(str(error) or repr(error)).splitlines()[0]}",
                "a network connection, or the files of the data set in that folder",
                f"download these files elsewhere and copy them here: {files} "
                "(or set STAGEWRIGHT_DATA to the folder that has them)",
            ) from error


def _files(dataset_class: Any, root: Path) -> list[Path]:
    """Returns the files that torchvision looks for before it downloads them."""
    if hasattr(dataset_class, "resources"):
        return [root / dataset_class.__name__ / "raw" / name for name, _ in dataset_class.resources]
    if hasattr(dataset_class, "split_list"):
        return [root / dataset_class.split_list[split][1] for split in ("train", "test")]
    return [root / dataset_class.filename]


def _as_rgb(data: Any) -> NDArray[np.uint8]:
    """Converts images (N, H, W), (N, 3, H, W) or (N, H, W, 3) to uint8 (N, H, W, 3)."""
    images = np.asarray(data)
    if images.ndim == 3:
        return np.repeat(images[..., None], 3, axis=3)
    return np.ascontiguousarray(images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1))
