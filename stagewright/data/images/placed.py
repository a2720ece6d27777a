"""Whole image files that lie inside of larger files: of tar files on the disk, which are mapped, or of tar or Parquet files in an
object store."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import decode
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.data.images.places import Places, map_file
from stagewright.data.images.remote import Reader, RemoteFiles, plain_reader
from stagewright.data.images.stored import Stored
from stagewright.storage.object_files import read_range


class PlacedImages:
    """Images in files of any format within larger files, by row. ``places`` says where each is; all methods are thread-safe.

    Images with more than ``max_pixels`` cannot be read.
    """

    def __init__(self, places: Places, paths: pa.StringArray, max_pixels: int = MOST_PIXELS) -> None:
        self.places, self.paths, self.max_pixels = places, paths, max_pixels

    def __len__(self) -> int:
        return len(self.places)

    def read(self, row: int) -> bytes:
        """Returns the bytes of the image file of ``row``. Raises OSError or DataError if they cannot be read."""
        stored = self.stored(np.array([row]))
        if 0 in stored.failures:
            raise stored.failures[0]
        return bytes(stored.data(0))

    def load(self, row: int) -> Image.Image:
        """Returns the upright RGB image of ``row``. Raises OSError if it cannot be read."""
        return decode(self.read(row), self.max_pixels)

    @abstractmethod
    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the image files of ``rows`` (n,)."""

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ``boxes`` unchanged: the files have the sizes of the manifest."""
        return boxes


class MappedImages(PlacedImages):
    """Images in files on the disk, ``paths_of_files``, which are mapped into memory: nothing is copied.

    If another program truncates a file while it is open, the process is killed (SIGBUS).
    """

    def __init__(self, places: Places, paths: pa.StringArray, max_pixels: int, paths_of_files: Sequence[str]) -> None:
        super().__init__(places, paths, max_pixels)
        self.buffers = tuple(np.frombuffer(map_file(path), np.uint8) for path in paths_of_files)

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the images of ``rows`` as positions in the memory maps, without a copy."""
        places = self.places
        where = places.which[rows], places.offsets[rows], places.lengths[rows]
        return Stored("encoded", self.buffers, *where, max_pixels=self.max_pixels)


class RemotePlacedImages(PlacedImages):
    """Images in files of an object store, or that are such files."""

    def __init__(self, files: RemoteFiles, paths: pa.StringArray, max_pixels: int) -> None:
        super().__init__(files.places, paths, max_pixels)
        self.files = files
        self.reader: Reader = plain_reader(files)
        """Fetches the bytes of rows. A cache of blocks takes its place for a training."""

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Fetches the images of ``rows``. What cannot be fetched is in its ``failures``."""
        found = self.reader.fetch(rows)
        return Stored(
            *("encoded", found.buffers, found.which, found.offsets, found.lengths),
            failures=found.failures,
            max_pixels=self.max_pixels,
        )


class RemoteWholeImages(RemotePlacedImages):
    """Images in files of an object store, or that are such files, each of which is read once and as a whole."""

    def __init__(self, files: RemoteFiles, paths: pa.StringArray, max_pixels: int) -> None:
        super().__init__(files, paths, max_pixels)
        self._store = files.open()

    def read(self, row: int) -> bytes:
        """Returns the bytes of the image file of ``row``. Unlike that of other images, an error says what the store said:
        Changed if the object has another ETag, FileNotFoundError if it is gone, StorageError if the store refuses or does not
        answer."""
        files, number = self.files, int(self.places.which[row])
        place = int(self.places.offsets[row]), int(self.places.lengths[row])
        return read_range(self._store, files.url, self.places.files[number], *place, files.etags[number])
