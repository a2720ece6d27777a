"""The images of a pack by row: where each lies and how large it is, and for a pack on the disk its bytes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import decode
from stagewright.data.images.places import Places
from stagewright.data.images.stored import Stored
from stagewright.data.pack.format import Encoding, Head, damaged, map_part


class PackRows:
    """What is known about the images of a pack, by row, without their bytes."""

    def __init__(
        self,
        place: str,
        head: Head,
        paths: pa.StringArray,
        places: Places,
        widths: NDArray[np.int32],
        heights: NDArray[np.int32],
        original_widths: NDArray[np.int32],
        original_heights: NDArray[np.int32],
    ) -> None:
        self.place, self.head, self.paths, self.places = place, head, paths, places
        self.widths, self.heights = widths, heights
        """int32 (N,): sizes of the stored images in pixels."""
        self.original_widths, self.original_heights = original_widths, original_heights
        """int32 (N,): sizes of the upright original images in pixels, as in the manifest."""
        if self.encoding == "raw":
            wrong = np.flatnonzero(places.lengths != 3 * widths.astype(np.int64) * heights)
            if len(wrong):
                row = int(wrong[0])
                name = head.parts[places.which[row]].file
                raise damaged(place, f"the length of {paths[row].as_py()} in {name} does not match its size in pixels")

    def __len__(self) -> int:
        return len(self.places)

    @property
    def encoding(self) -> Encoding:
        """How the images are stored."""
        return self.head.encoding

    @property
    def which(self) -> NDArray[np.int32]:
        """int32 (N,): number of the part of each image."""
        return self.places.which

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (N,): offset in the part in bytes."""
        return self.places.offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (N,): length in bytes."""
        return self.places.lengths

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Returns a copy of the bytes of ``row``: a JPEG file, or raw pixels."""

    @abstractmethod
    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the images of ``rows`` (n,) in their stored form."""

    def load(self, row: int) -> Image.Image:
        """Returns the upright RGB image of ``row`` at its stored size. Raises OSError if it is damaged."""
        stored = self.stored(np.array([row]))
        if 0 in stored.failures:
            raise stored.failures[0]
        data, size = stored.data(0), (int(self.widths[row]), int(self.heights[row]))
        if self.encoding == "raw":
            return Image.frombytes("RGB", size, data)
        picture = decode(data)
        if picture.size != size:
            raise OSError(f"the picture has {picture.width} x {picture.height} pixels instead of {size[0]} x {size[1]}")
        return picture

    def with_sizes(self, stored: Stored, rows: NDArray[np.int64]) -> Stored:
        """Returns the bytes ``stored`` of ``rows`` as what they are: for raw pixels with the sizes of the images."""
        if self.encoding == "jpeg":
            return stored
        sizes = np.stack([self.widths[rows], self.heights[rows]], axis=1)
        sizes[list(stored.failures)] = 0
        return replace(stored, kind="raw", sizes=sizes)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Converts ``boxes`` (n, 4) from pixels of the original images of ``rows`` (n,) to pixels of the stored images.

        Boxes are (left, top, right, bottom), and are clipped to the stored image. If the stored image has the size of the
        original, a box within the image is returned with the same bits.
        """
        stored = np.stack([self.widths[rows], self.heights[rows]] * 2, axis=1).astype(np.float64)
        original = np.stack([self.original_widths[rows], self.original_heights[rows]] * 2, axis=1).astype(np.float64)
        # Multiply first: then an edge of the original becomes the edge of the stored image without a rounding error.
        return np.clip(np.where(stored == original, boxes, boxes * stored / original), 0.0, stored)


class PackImages(PackRows):
    """The images of a pack on the disk, by row. All methods are thread-safe.

    The parts are memory maps: if another program truncates a part while it is open, the process is killed (SIGBUS).
    """

    def __init__(self, folder: Path, rows: PackRows) -> None:
        self.__dict__.update(vars(rows))
        self.buffers: tuple[NDArray[np.uint8], ...] = tuple(map_part(folder, part) for part in rows.head.parts)
        """One read-only memory map per part file."""

    def read(self, row: int) -> bytes:
        """Returns a copy of the bytes of ``row``: a JPEG file, or raw pixels."""
        begin = int(self.offsets[row])
        return self.buffers[self.which[row]][begin : begin + int(self.lengths[row])].tobytes()

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the images of ``rows`` as positions in the memory maps, without a copy."""
        found = Stored("encoded", self.buffers, self.which[rows], self.offsets[rows], self.lengths[rows])
        return self.with_sizes(found, rows)
