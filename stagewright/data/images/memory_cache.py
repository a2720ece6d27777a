"""Caches the decoded images of small data sets in memory: in that of this process, or in memory that processes share.

Images are decoded at their first use, at full size. So that the cache changes no bit, it is not used for data sets whose
JPEGs the loader would decode at a reduced size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stagewright.data.images.decode import FileImages, Images
from stagewright.data.images.shared_pictures import load_scanned, open_shared
from stagewright.data.images.stored import Stored
from stagewright.data.manifest import Manifest
from stagewright.errors import StorageError
from stagewright.plan.plan import Plan
from stagewright.storage.shared_file import SharedFile
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
        self.memory = self._allocated(int(self.lengths.sum()))
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
        for at in np.flatnonzero(~self._decoded()[rows]).tolist():
            if (error := self._decode(int(rows[at]))) is not None:
                failures[at] = error
        return failures

    def _decode(self, row: int) -> OSError | None:
        """Decodes the image of ``row`` into the cache; returns the error if it cannot be read."""
        try:
            picture = self._read(row)
        except OSError as error:
            return error
        if picture.size != tuple(self.sizes[row].tolist()):
            width, height = picture.size
            return OSError(f"the picture is now {width} x {height} pixels, but it had another size when it was scanned")
        self._keep(row, np.asarray(picture).reshape(-1))
        return None

    def _allocated(self, num_bytes: int) -> NDArray[np.uint8]:
        """Returns the memory of all images, uint8 (num_bytes,)."""
        self._done = np.zeros(len(self.sizes), np.bool_)
        return np.empty(num_bytes, np.uint8)  # the system assigns memory pages at their first use

    def _decoded(self) -> NDArray[np.bool_]:
        """Returns which images are in the memory, bool (N,)."""
        return self._done

    def _read(self, row: int) -> Image.Image:
        return self.images.load(row)

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Puts the ``pixels`` of an image, uint8 (bytes,), into the memory, and marks it as decoded."""
        start = int(self.offsets[row])
        self.memory[start : start + len(pixels)] = pixels
        self._done[row] = True

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


class SharedImages(CachedImages):
    """A cache whose memory is shared by all processes of the machine that use the same images, each of which decodes a part.

    StorageError if it cannot be shared (:class:`stagewright.storage.shared_file.SharedFile`).
    """

    def __init__(self, images: FileImages, manifest: Manifest) -> None:
        self.files, self.manifest = images, manifest
        super().__init__(images, manifest.widths, manifest.heights)

    def close(self) -> None:
        """Ends the sharing; what is decoded stays in memory."""
        self.shared.close()

    def ensure(self, rows: NDArray[np.int64]) -> dict[int, Exception]:
        """Decodes as in :meth:`CachedImages.ensure`, first those that no other process decodes now.

        Of the others, those that are not ready then are decoded here too: nobody waits for a process that may have been stopped.
        """
        failures, others = dict[int, Exception](), list[int]()
        for at in np.flatnonzero(~self._decoded()[rows]).tolist():
            row = int(rows[at])
            with self.shared.claim(row) as mine:
                if not mine:
                    others.append(at)
                elif not self._decoded()[row] and (error := self._decode(row)) is not None:
                    failures[at] = error
        if others:
            left = np.array(others)
            failures |= {int(left[at]): error for at, error in super().ensure(rows[left]).items()}
        return failures

    def _allocated(self, num_bytes: int) -> NDArray[np.uint8]:
        self.shared: SharedFile = open_shared(self.files, self.manifest, num_bytes)
        return self.shared.data

    def _decoded(self) -> NDArray[np.bool_]:
        return self.shared.done

    def _read(self, row: int) -> Image.Image:
        return load_scanned(self.files, row, self.manifest.hashes[row].as_py())

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        self.shared.write(row, int(self.offsets[row]), pixels)


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


def cache_for_plan(
    plan: Plan, manifest: Manifest, images: Images, *, not_shared: Callable[[str], object] | None = None
) -> Images:
    """Returns the ``images`` of ``manifest`` for a run of ``plan``: cached in memory if :func:`cache_if_small` allows it.

    With ``not_shared``, the memory is shared with the other processes of the machine; where that is not possible, the cache is
    one of this process alone, and ``not_shared`` is called with a sentence.
    """
    smallest, exact = min(stage.image_size for stage in plan.stages), plan.recipe.decode == "exact"
    cached = cache_if_small(images, manifest.widths, manifest.heights, smallest, exact=exact)
    if not_shared is None or not isinstance(cached, CachedImages) or not isinstance(images, FileImages):
        return cached
    try:
        return SharedImages(images, manifest)
    except StorageError as error:
        not_shared(
            f"{error.given}; each process keeps its own decoded pictures. To share them, set STAGEWRIGHT_CACHE to {error.allowed}"
        )
        return cached


def decoded_bytes(widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the number of bytes of each decoded image, int64 (N,)."""
    return 3 * widths.astype(np.int64) * heights
