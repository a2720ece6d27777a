"""Thumbnails of a run's images, as the evaluation sees them, read from where the run found them.

The images may be gone or changed since the run: what cannot be shown has a reason instead of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stagewright.augment.geometry import eval_boxes, jpeg_scale
from stagewright.data.dataset import open_images
from stagewright.data.images.decode import FileImages, Images, crop_resize, decode_for
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import digest_of
from stagewright.errors import StagewrightError
from stagewright.recipe.fields import Evaluation, Interpolation
from stagewright.report.read import RunRecord
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest
from stagewright.system.machine import cores
from stagewright.system.threads import Pool

_SIDE = 112
"""Side of a thumbnail in pixels."""
_AHEAD = 32
_MOST_FAILURES = 5
"""After so many images that are there and cannot be read, no other is tried: each takes seconds on storage that fails."""


@dataclass(eq=False)
class Thumbnails:
    """Reads the thumbnails of images by their paths in the manifest."""

    manifest: Manifest
    images: Images
    crop: float
    fit: str
    interpolation: Interpolation
    side: int
    gone: int = field(init=False, default=0)
    """Number of images that are missing or have changed."""
    reason: str = field(init=False, default="")
    """Why the last of them is not shown."""
    _rows: dict[str, int] = field(init=False)
    _failures: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._rows = {path: row for row, path in enumerate(self.manifest.paths.to_pylist())}

    def read(self, paths: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8] | None]]:
        """Yields each path with its thumbnail, uint8 (S, S, 3), or None if it cannot be shown; reads a few images ahead."""
        with Pool(min(4, cores()), "thumbnails") as pool:
            for at in range(0, len(paths), _AHEAD):
                chunk = paths[at : at + _AHEAD]
                tasks = [pool.submit(self._one, path) for path in chunk]
                for path, task in zip(chunk, tasks, strict=True):
                    found = task.result()
                    if isinstance(found, str):
                        self.gone, self.reason = self.gone + 1, found
                    yield path, None if isinstance(found, str) else found

    def _one(self, path: str) -> NDArray[np.uint8] | str:
        row = self._rows.get(path)
        if row is None:
            return "it is not in the manifest"
        if self._failures >= _MOST_FAILURES:
            return "its disk cannot be read"
        try:
            return self._pixels(row)
        except FileNotFoundError:
            return "it does not exist any more"
        except (OSError, ValueError, StagewrightError) as error:
            self._failures += 1
            return getattr(error, "strerror", None) or str(error).splitlines()[0]

    def _pixels(self, row: int) -> NDArray[np.uint8] | str:
        size = self.manifest.widths[row : row + 1], self.manifest.heights[row : row + 1]
        box = eval_boxes(*size, self.crop, self.fit)
        scale = 1
        if isinstance(self.images, FileImages):
            data = self.images.read(row)
            if digest_of(data).hex() != self.manifest.hashes[row].as_py():
                return "it has changed since the run"
            width, height = box[0, 2:] - box[0, :2]
            wanted = int(jpeg_scale(width, height, self.side))
            image, scale, _ = decode_for(data, wanted, self.images.max_pixels)
        else:
            image, box = self.images.load(row), self.images.to_stored(np.array([row]), box)
        edges = np.minimum(box[0] / scale, [image.width, image.height] * 2)
        return crop_resize(image, tuple(edges.tolist()), (self.side, self.side), self.interpolation, exact=False)


def thumbnails(record: RunRecord) -> Thumbnails | str:
    """Returns the reader of the run's thumbnails, or a sentence on why there is none."""
    try:
        manifest = readable_manifest(RunDir(record.path))
        images = open_images(manifest)
    except (StagewrightError, FileNotFoundError) as error:
        said = getattr(error, "given", None) or str(error)
        return f"The pictures themselves cannot be shown: {said}"
    recipe = record.plan.get("recipe", {})
    view: dict[str, Any] = recipe.get("eval", {})
    size = view.get("image_size") or max((s.get("image_size", _SIDE) for s in record.stages), default=_SIDE)
    return Thumbnails(
        manifest,
        images,
        view.get("crop", Evaluation().crop),
        view.get("fit", "crop"),
        cast(Interpolation, recipe.get("interpolation", "bilinear")),
        max(1, min(_SIDE, size)),
    )
