"""Kept pictures: small sets are decoded once, at their first use, and stay in memory.

Only where that changes no bit: a picture in memory is decoded at full size, so sets whose JPEGs the loader would decode
at a part of their size are left alone, whatever memory there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.stored import Stored
from stagewright.data.manifest import Manifest
from stagewright.plan.plan import Plan
from stagewright.system.machine import memory_bytes

MOST_BYTES = 2**31
"""No set of more bytes than this is kept, nor one of more than an eighth of the machine's memory."""


class CachedImages:
    """The pictures of ``images``, of upright sizes ``widths`` and ``heights`` (N,), in memory once they have been used."""

    def __init__(self, images: Images, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> None:
        self.images = images
        self.sizes = np.stack([widths, heights], axis=1).astype(np.int32)
        self.lengths = decoded_bytes(widths, heights)
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.memory = np.empty(int(self.lengths.sum()), np.uint8)  # pages come with first use
        self.decoded = np.zeros(len(self.sizes), np.bool_)
        alike = bool((self.sizes == self.sizes[:1]).all()) and len(self.sizes) > 0
        self.array = self.memory.reshape(len(self.sizes), self.sizes[0, 1], self.sizes[0, 0], 3) if alike else None
        """uint8 (N, H, W, 3) where all pictures have one size."""

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, row: int) -> Image.Image:
        """The picture of ``row``; OSError if it cannot be read."""
        failures = self.ensure(np.array([row]))
        if failures:
            raise failures[0]
        width, height = self.sizes[row].tolist()
        return Image.frombytes("RGB", (width, height), self.stored(np.array([row])).data(0))

    def ensure(self, rows: NDArray[np.int64]) -> dict[int, Exception]:
        """Decodes what is not there yet; why pictures could not be read, by their place in ``rows``.

        Two threads may decode the same picture at once: they write the same bytes, and only then say that it is there.
        """
        failures: dict[int, Exception] = {}
        for at in np.flatnonzero(~self.decoded[rows]).tolist():
            row = int(rows[at])
            start, end = int(self.offsets[row]), int(self.offsets[row] + self.lengths[row])
            try:
                picture = self.images.load(row)
            except OSError as error:
                failures[at] = error
                continue
            if picture.size != tuple(self.sizes[row].tolist()):
                width, height = picture.size
                failures[at] = OSError(f"the picture is {width} x {height} pixels now and was not when it was scanned")
                continue
            self.memory[start:end] = np.asarray(picture).reshape(-1)
            self.decoded[row] = True
        return failures

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """The decoded pictures of ``rows``."""
        failures = self.ensure(rows)
        sizes = self.sizes[rows]
        sizes[list(failures)] = 0
        which = np.zeros(len(rows), np.int32)
        return Stored("raw", [self.memory], which, self.offsets[rows], self.lengths[rows], sizes, failures)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """``boxes`` as they are."""
        return boxes


def cache_if_small(
    images: Images, widths: NDArray[np.int32], heights: NDArray[np.int32], image_size: int, *, exact: bool
) -> Images:
    """``images`` kept in memory where they are files, few and small enough; else as they are.

    ``image_size`` is the smallest view that is taken of them, ``exact`` whether they are always decoded at full size.
    """
    if not isinstance(images, FileImages) or not len(images):
        return images
    scaled = not exact and int(np.minimum(widths, heights).max()) >= 2 * image_size
    most = min(MOST_BYTES, (memory_bytes() or 8 * MOST_BYTES) // 8)
    if scaled or int(decoded_bytes(widths, heights).sum()) > most:
        return images
    return CachedImages(images, widths, heights)


def cache_for_plan(plan: Plan, manifest: Manifest, images: Images) -> Images:
    """The ``images`` of ``manifest`` as a run of ``plan`` reads them: cached in memory if :func:`cache_if_small` allows it."""
    smallest, exact = min(stage.image_size for stage in plan.stages), plan.recipe.decode == "exact"
    return cache_if_small(images, manifest.widths, manifest.heights, smallest, exact=exact)


def decoded_bytes(widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.int64]:
    """Bytes of each picture once it is decoded, int64 (N,)."""
    return 3 * widths.astype(np.int64) * heights
