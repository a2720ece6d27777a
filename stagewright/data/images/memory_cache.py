"""Caches the decoded images of small data sets in memory.

Images are decoded at their first use, at full size. So that the cache changes no bit, it is not used for data sets whose
JPEGs the loader would decode at a reduced size.
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
"""Largest cached data set in bytes. It must also fit into 1/8 of the machine's memory."""


class CachedImages:
    """A cache of ``images``: each image is decoded at its first use, and then stays in memory.

    ``widths`` and ``heights``, int32 (N,), are the upright sizes in pixels.
    """

    def __init__(self, images: Images, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> None:
        self.images = images
        self.sizes = np.stack([widths, heights], axis=1).astype(np.int32)
        self.lengths = decoded_bytes(widths, heights)
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.memory = np.empty(int(self.lengths.sum()), np.uint8)  # the system assigns memory pages at their first use
        self.decoded = np.zeros(len(self.sizes), np.bool_)
        same_size = bool((self.sizes == self.sizes[:1]).all()) and len(self.sizes) > 0
        self.array = self.memory.reshape(len(self.sizes), self.sizes[0, 1], self.sizes[0, 0], 3) if same_size else None
        """uint8 (N, H, W, 3) if all images have the same size, else None."""

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, row: int) -> Image.Image:
        """Returns the image of ``row``. Raises OSError if it cannot be read."""
        failures = self.ensure(np.array([row]))
        if failures:
            raise failures[0]
        width, height = self.sizes[row].tolist()
        return Image.frombytes("RGB", (width, height), self.stored(np.array([row])).data(0))

    def ensure(self, rows: NDArray[np.int64]) -> dict[int, Exception]:
        """Decodes those images of ``rows`` that are not cached yet.

        Returns the errors of the images that cannot be read, by index into ``rows``. Two threads may decode the same image at
        once: both write the same bytes, and mark the image as decoded only afterwards.
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
                text = f"the picture is now {width} x {height} pixels, but it had another size when it was scanned"
                failures[at] = OSError(text)
                continue
            self.memory[start:end] = np.asarray(picture).reshape(-1)
            self.decoded[row] = True
        return failures

    def stored(self, rows: NDArray[np.int64]) -> Stored:
        """Returns the decoded images of ``rows``. Images that are not cached yet are decoded first."""
        failures = self.ensure(rows)
        sizes = self.sizes[rows]
        sizes[list(failures)] = 0
        which = np.zeros(len(rows), np.int32)
        return Stored("raw", [self.memory], which, self.offsets[rows], self.lengths[rows], sizes, failures)

    def to_stored(self, rows: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns ``boxes`` unchanged: cached images have the sizes of the manifest."""
        return boxes


def cache_if_small(
    images: Images, widths: NDArray[np.int32], heights: NDArray[np.int32], image_size: int, *, exact: bool
) -> Images:
    """Returns a memory cache of ``images`` if they are files, small enough, and never decoded at a reduced size.

    Otherwise returns ``images`` itself. ``image_size`` is the smallest side in pixels at which the images are used. ``exact``
    is True if they are always decoded at full size.
    """
    if not isinstance(images, FileImages) or not len(images):
        return images
    scaled = not exact and int(np.minimum(widths, heights).max()) >= 2 * image_size
    most = min(MOST_BYTES, (memory_bytes() or 8 * MOST_BYTES) // 8)
    if scaled or int(decoded_bytes(widths, heights).sum()) > most:
        return images
    return CachedImages(images, widths, heights)


def cache_for_plan(plan: Plan, manifest: Manifest, images: Images) -> Images:
    """Returns the ``images`` of ``manifest`` for a run of ``plan``: cached in memory if :func:`cache_if_small` allows it."""
    smallest, exact = min(stage.image_size for stage in plan.stages), plan.recipe.decode == "exact"
    return cache_if_small(images, manifest.widths, manifest.heights, smallest, exact=exact)


def decoded_bytes(widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the number of bytes of each decoded image, int64 (N,)."""
    return 3 * widths.astype(np.int64) * heights
