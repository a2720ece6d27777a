"""Finds the images of one data set that another one has too: the same content, or near duplicates of it.

Near duplicates are those of :mod:`stagewright.data.inspect.fingerprint`, so ``data inspect`` of both sets together would name
the same pairs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.images.decode import FileImages, Images
from stagewright.data.inspect.fingerprint import SIDE, Pixels, Rows, fingerprint, near_pairs, thumbnail
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress, digest_of
from stagewright.storage.parquet import pc
from stagewright.system.threads import Pool, as_finished

_CHUNK = 64


def same_content(hashes: pa.StringArray, known: pa.StringArray) -> Rows:
    """Returns (N,): for each of ``hashes`` (N,) the first row of ``known`` with the same content; -1 if there is none."""
    return pc.index_in(hashes, known).fill_null(-1).to_numpy().astype(np.int64)


def near_twins(thumbs: Pixels, known: Pixels) -> Rows:
    """Returns (N,): for each of ``thumbs`` (N, 16, 16, 3) the first row of ``known`` (M, 16, 16, 3) that is a near duplicate,
    also a mirrored one; -1 if there is none."""
    count = len(known)
    pairs = near_pairs(np.concatenate([known, thumbs]))
    new = pairs.second >= count  # the first of such a pair is below count, or it is no pair of the two sets
    found = np.full(len(thumbs), count, np.int64)
    np.minimum.at(found, pairs.second[new] - count, pairs.first[new])
    return np.where(found < count, found, -1)


def read_thumbs(
    manifest: Manifest, images: Images, rows: Rows, *, workers: int, progress: Progress | None = None
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Returns the thumbnails of the ``rows`` (N,) of ``manifest``, (N, 16, 16, 3) uint8, and (N,) which of them could be read.

    A file that is another one now than its hash in ``manifest`` says counts as one that could not be read.
    """
    thumbs, read = np.zeros((len(rows), SIDE, SIDE, 3), np.uint8), np.zeros(len(rows), np.bool_)

    def fill(chunk: slice) -> int:
        for at, row in enumerate(rows[chunk].tolist(), chunk.start):
            if (found := _thumb(manifest, images, row)) is not None:
                thumbs[at], read[at] = found, True
        return len(rows[chunk])

    done = 0
    with Pool(max(workers, 1), "thumbnails") as pool:
        tasks = [pool.submit(fill, slice(at, at + _CHUNK)) for at in range(0, len(rows), _CHUNK)]
        for task in as_finished(tasks):
            done += task.result()
            if progress is not None:
                progress(done, len(rows))
    return thumbs, read


def _thumb(manifest: Manifest, images: Images, row: int) -> Pixels | None:
    try:
        if not isinstance(images, FileImages):
            return np.asarray(thumbnail(images.load(row)))
        data = images.read(row)
    except OSError:
        return None
    same = digest_of(data).hex() == manifest.hashes[row].as_py()
    return fingerprint(data, images.max_pixels).thumb if same else None
