"""Takes a small subset of a data set with images of every class, e.g. for a rehearsal of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stagewright.data.dataset import Dataset, open_images
from stagewright.data.manifest import SPLITS, Manifest

Rows = NDArray[np.int64]


def sample(dataset: Dataset, *, train: int, val: int, test: int) -> Dataset:
    """Returns a subset of ``dataset``, chosen by :func:`sample_manifest`, with a note that states its size."""
    manifest = sample_manifest(dataset.manifest, train=train, val=val, test=test)
    counts = [f"{len(manifest.rows(name))} of {len(dataset.manifest.rows(name)):,} {name}" for name in SPLITS]
    note = f"A sample of the pictures is used: {', '.join(counts)}."
    return replace(dataset, manifest=manifest, images=open_images(manifest), notes=(*dataset.notes, note))


def sample_manifest(manifest: Manifest, *, train: int, val: int, test: int) -> Manifest:
    """Returns a manifest of at most ``train``, ``val`` and ``test`` images of the three splits; it is deterministic.

    A split keeps at least one image of each of its classes, even if it then exceeds its limit, because training on a
    fraction of the data requires this. Classes with enough images get the same number of images.
    """
    limits = zip(SPLITS, (train, val, test), strict=True)
    rows = np.sort(np.concatenate([spread(manifest.rows(name), manifest.labels, limit) for name, limit in limits]))
    return manifest.taken(rows)


def spread(rows: Rows, labels: NDArray[np.int32], limit: int) -> Rows:
    """Returns at most ``limit`` of ``rows``, but at least one of each class; sorted, int64.

    Takes the classes in turn, and rows from all over each class. ``labels`` is indexed by row.
    """
    if len(rows) <= limit:
        return np.sort(rows)
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rounds: list[tuple[Rows, Rows]] = []
    for start, count in zip(starts, counts, strict=True):
        # Neighbours in a folder or table are often from one sequence, so the chosen rows are far apart. Up to `limit` rows
        # are candidates in each class, because they also replace what smaller classes lack.
        picked = by_class[start + np.unique(np.linspace(0, count - 1, min(limit, int(count))).astype(np.int64))]
        rounds.append((_far_apart(len(picked)), picked))
    turn = np.concatenate([order for order, _ in rounds])
    picked = np.concatenate([own for _, own in rounds])
    chosen = np.argsort(turn, kind="stable")[: max(limit, len(counts))]
    return np.sort(picked[chosen])


@lru_cache(maxsize=64)
def _far_apart(count: int) -> Rows:
    """Returns the rank of each of ``count`` positions in an order that starts with the ends, then halves the gaps."""
    turns = np.full(count, -1, np.int64)
    turn, parts = 0, 1
    while turn < count:
        for place in np.unique(np.linspace(0, count - 1, parts + 1).astype(np.int64)):
            if turns[place] < 0:
                turns[place] = turn
                turn += 1
        parts *= 2
    return turns
