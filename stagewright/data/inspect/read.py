"""Reads all files of a listing into fingerprints, and finds the near duplicates among them."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa

from stagewright.data.inspect.fingerprint import Fingerprints, Pairs, Rows, fingerprint, near_pairs
from stagewright.data.sources import scan
from stagewright.data.sources.folders import Listing
from stagewright.system.threads import Pool, as_finished

_CHUNK = 64


def read_fingerprints(listing: Listing, workers: int, progress: scan.Progress | None, max_pixels: int) -> Fingerprints:
    """Returns the fingerprints of all files of ``listing``, read once by ``workers`` threads."""
    paths = listing.paths
    fingerprints = Fingerprints.empty(len(paths))
    chunks = [np.arange(at, min(at + _CHUNK, len(paths))) for at in range(0, len(paths), _CHUNK)]
    finished = 0
    with Pool(max(workers, 1), "inspect") as pool:
        if progress is not None:
            progress(0, len(paths))
        tasks = [pool.submit(_read_rows, listing.root, paths, fingerprints, chunk, max_pixels) for chunk in chunks]
        for task in as_finished(tasks):
            finished += task.result()
            if progress is not None:
                progress(finished, len(paths))
    fingerprints.not_images.update(scan.not_images(paths, fingerprints.reasons))
    return fingerprints


def _read_rows(root: str, paths: pa.StringArray, fingerprints: Fingerprints, rows: Rows, max_pixels: int) -> int:
    """Reads the files of ``rows`` into ``fingerprints``; returns their number."""
    for row, path in zip(rows.tolist(), paths.take(pa.array(rows)).to_pylist(), strict=True):
        data = scan.content_or_reason(os.path.join(root, path))
        if isinstance(data, str):
            fingerprints.reasons[row] = data
            continue
        fingerprints.sizes[row] = len(data)
        fingerprints.digests[row] = np.frombuffer(scan.digest_of(data), np.uint8)
        fingerprints.put(row, fingerprint(data, max_pixels))
    return len(rows)


def near_rows(fingerprints: Fingerprints) -> Pairs:
    """Returns all pairs of near duplicates as rows of the listing; of identical files only the first takes part."""
    readable = np.flatnonzero(fingerprints.readable)
    _, first = np.unique(np.ascontiguousarray(fingerprints.digests[readable]).view("V16").ravel(), return_index=True)
    first = readable[np.sort(first)]
    pairs = near_pairs(fingerprints.thumbs[first])
    return Pairs(first[pairs.first], first[pairs.second], pairs.mirrored, pairs.complete)
