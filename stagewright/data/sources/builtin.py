"""Built-in data: scikit-learn's digits as a folder of PNGs, and torchvision's data sets that are arrays in memory."""

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
from stagewright.errors import DataError, nearest
from stagewright.storage.cache import cache_folder
from stagewright.storage.files import unreadable, user_path

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN", "USPS")
_BY_SPLIT = frozenset({"STL10", "SVHN"})  # these take split="train", the others train=True

_NUM_DIGITS = 1797


def digits_folder() -> Path:
    """The folder of ``digits``, written on first use: 1,797 grey PNGs of 8 x 8 pixels in class folders 0 to 9.

    scikit-learn's ``load_digits`` (the test part of the UCI set "Optical Recognition of Handwritten Digits"; values 0 to
    16 become 0 to 255). It appears whole or not at all, also when two processes write it at once. DataError if the cache
    folder cannot be written.
    """
    folder = cache_folder("digits-1")
    if sum(1 for _ in folder.glob("[0-9]/*.png")) == _NUM_DIGITS:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".digits-", dir=folder.parent) as part:
            made = Path(part, "digits")
            _write_digits(made)
            try:
                os.rename(made, folder)
            except OSError:  # it is there already: another process has just made it, or files have gone from it
                if sum(1 for _ in folder.glob("[0-9]/*.png")) != _NUM_DIGITS:
                    shutil.rmtree(folder)
                    os.rename(made, folder)
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
    pictures = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for at, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        Image.fromarray(picture).save(folder / str(label) / f"{at:04d}.png")


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory: its train part, then its test part."""

    pictures: NDArray[np.uint8]
    """(N, H, W, 3)"""
    listing: Listing
    scan: Scan


def load_arrays(source: str) -> Arrays:
    """``torchvision:NAME`` as arrays; read from ``$STAGEWRIGHT_DATA``, else the cache folder, and downloaded if absent.

    DataError for a name that is not one of :data:`TORCHVISION`, or if there is neither the data nor a network.
    """
    name = source.removeprefix("torchvision:")
    if name not in TORCHVISION:
        known = {known.casefold(): known for known in TORCHVISION}
        near = known.get(name.casefold())
        raise DataError(
            f"there is no built-in data set {source!r}{f'; did you mean {near!r}?' if near else nearest(name, TORCHVISION)}",
            ", ".join(f"torchvision:{known}" for known in TORCHVISION),
            "for any other, point at its pictures in class folders",
        )
    root = user_path(os.environ.get("STAGEWRIGHT_DATA") or cache_folder("torchvision"))
    train, test = (_read(name, part, root) for part in ("train", "test"))
    pictures = np.concatenate([_as_rgb(train.data), _as_rgb(test.data)])
    labels = np.concatenate(
        [np.asarray(getattr(data, "targets", getattr(data, "labels", None))) for data in (train, test)]
    )
    names = np.array(getattr(train, "classes", [str(label) for label in range(int(labels.max()) + 1)]))
    counts = (len(train.data), len(test.data))
    listing = Listing(
        root="",
        paths=pa.array(
            [f"{part}/{at:06d}" for part, count in zip(("train", "test"), counts, strict=True) for at in range(count)]
        ),
        labels=pa.array(names[labels.astype(np.int64)].tolist(), pa.string()),
        parts=np.repeat(np.array([TRAIN, TEST], np.int8), counts),
    )
    digests = np.frombuffer(b"".join(digest_of(picture.tobytes()) for picture in pictures), np.uint8)
    height, width = pictures.shape[1:3]
    widths, heights = np.full(len(pictures), width, np.int32), np.full(len(pictures), height, np.int32)
    return Arrays(pictures, listing, Scan(digests.reshape(-1, DIGEST_BYTES), widths, heights))


def _read(name: str, part: str, root: Path) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name)
    which = {"split": part} if name in _BY_SPLIT else {"train": part == "train"}
    with warnings.catch_warnings():  # of NumPy, on the pickles of CIFAR
        warnings.simplefilter("ignore")
        try:
            return kind(root, **which)
        except (RuntimeError, FileNotFoundError):  # it is not there yet
            pass
        except OSError as error:
            if error.errno is not None:
                raise unreadable(error.filename or root, error) from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            return kind(root, **which, download=True)
        except MemoryError:
            raise
        except Exception as error:  # of the download: urllib's, http's, those of zip, tar and gzip, torchvision's own
            raise DataError(
                f"torchvision:{name} is not in {root} and could not be downloaded: {(str(error) or repr(error)).splitlines()[0]}",
                "a network connection, or the files of the data set in their place",
                f"download elsewhere and put here: {', '.join(str(file) for file in _files(kind, root))} "
                "(or set STAGEWRIGHT_DATA to the folder that has them)",
            ) from error


def _files(kind: Any, root: Path) -> list[Path]:
    """The files that torchvision looks for before it downloads them."""
    if hasattr(kind, "resources"):
        return [root / kind.__name__ / "raw" / name for name, _ in kind.resources]
    if hasattr(kind, "split_list"):
        return [root / kind.split_list[part][1] for part in ("train", "test")]
    return [root / kind.filename]


def _as_rgb(data: Any) -> NDArray[np.uint8]:
    """Pictures (N, H, W), (N, 3, H, W) or (N, H, W, 3) as uint8 (N, H, W, 3)."""
    pictures = np.asarray(data)
    if pictures.ndim == 3:
        return np.repeat(pictures[..., None], 3, axis=3)
    return np.ascontiguousarray(pictures if pictures.shape[3] == 3 else pictures.transpose(0, 2, 3, 1))
