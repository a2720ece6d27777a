"""Verifies that the image files of a run are unchanged since its manifest was written.

The manifest has the hash, size and times of every file. A resume compares the hashes of files whose size or times differ (of
all files on request), and of a small random sample of the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.stored import read_file
from stagewright.data.manifest import Manifest
from stagewright.data.sources.builtin import digits_folder
from stagewright.data.sources.embedded import unpacked_root
from stagewright.data.sources.fetched import fetch, found_again
from stagewright.data.sources.scan import Progress, digest_of, stamp_of
from stagewright.data.sources.shard_names import find_parquet
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.files import user_path
from stagewright.storage.object_files import StoredObject
from stagewright.storage.objects import is_remote
from stagewright.system.threads import Pool, as_finished
from stagewright.text import counted, some

Rows = NDArray[np.int64]

_SAMPLE = 1000
_SAMPLE_SECONDS = 2.0
_CHUNK = 64
_MAX_NAMED = 3
_SAME, _OTHER, _GONE = 0, 1, 2


def verify_images(
    manifest: Manifest,
    rows: Rows | None = None,
    *,
    everything: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
) -> None:
    """DataError if files of ``manifest`` (its ``rows``; None: all) are missing or have changed since it was written.

    Hashes are compared for files whose size or times differ, or for all files with ``everything``. Of the other files, 1 in
    1,000 is hashed, for at most 2 seconds. ``progress(done, total)`` reports the first kind only. Packs, images in memory and
    those in an object store are not checked here, but when they are opened.
    """
    if manifest.variant or manifest.objects or manifest.source.startswith("torchvision:") or not manifest.root:
        return
    if manifest.source == "digits":  # missing digits are written again, with other times
        manifest = replace(manifest, root=str(digits_folder()))
    manifest = replace(manifest, root=found_again(manifest))
    rows = np.arange(len(manifest)) if rows is None else rows
    with Pool(max(workers, 1), "verify") as pool:

        def compared(
            compare: Callable[[Manifest, Rows, float], NDArray[np.int8]],
            rows: Rows,
            progress: Progress | None = None,
            until: float = float("inf"),
        ) -> NDArray[np.int8]:
            found = np.zeros(len(rows), np.int8)
            chunks = [slice(at, at + _CHUNK) for at in range(0, len(rows), _CHUNK)]
            tasks = {pool.submit(compare, manifest, rows[chunk], until): chunk for chunk in chunks}
            done = 0
            for task in as_finished(tasks):
                chunk = tasks[task]
                found[chunk] = task.result()
                done += len(found[chunk])
                if progress is not None:
                    progress(done, len(rows))
            return found

        states = compared(_compare_stamps, rows)
        suspect = np.full(len(rows), True) if everything else states == _OTHER
        suspect &= states != _GONE
        states[suspect] = compared(_compare_hashes, rows[suspect], progress)
        unchanged = np.flatnonzero(~suspect & (states == _SAME))
        # Not from the seed: the choice has no effect on the training.
        sampled = np.random.default_rng().permutation(unchanged)[: -(-len(unchanged) // _SAMPLE)]
        states[sampled] = compared(_compare_hashes, rows[sampled], until=time.monotonic() + _SAMPLE_SECONDS)
    _raise_if_changed(manifest, rows[states == _GONE], rows[states == _OTHER], len(rows))


def moved(manifest: Manifest, source: str | Path) -> Manifest:
    """Returns ``manifest`` for images that are now in the folder, table or pack ``source``, with the same relative paths."""
    if is_remote(str(source)) and manifest.objects:
        url = str(source).rstrip("/")
        found = find_parquet(url) if manifest.column else None  # they may lie in a folder of it, or it is one of them
        root = url if found is None else found.root
        return replace(manifest, root=root, source=url, objects=_without_etags(manifest))
    path = Path(os.path.abspath(fetch(str(source), Data()) if is_remote(str(source)) else user_path(source)))
    if not path.exists():
        raise DataError(
            f"--data {source}: there is no such folder", "the folder that has the run's pictures now", "check the path"
        )
    where = str(source if is_remote(str(source)) else user_path(source))
    unpacked = None if manifest.variant else unpacked_root(str(path))
    root = unpacked or str(path if path.is_dir() or manifest.variant else path.parent)
    if unpacked is not None or manifest.column:  # on the disk, the images of Parquet files are files of their own
        return replace(manifest, root=root, source=where, objects=(), column="", lengths=None)
    return replace(manifest, root=root, source=where, objects=_without_etags(manifest))


def _without_etags(manifest: Manifest) -> tuple[StoredObject, ...]:
    """Returns the files of ``manifest`` without ETags: copies have others, and the hashes are compared."""
    return tuple(one._replace(etag="") for one in manifest.objects)


def images_gone(manifest: Manifest, bad: Sequence[tuple[int, str]], count: int, total: int, what: str) -> DataError:
    """Returns the error for ``what`` (e.g. the val part), of which ``count`` of ``total`` images cannot be read.

    ``bad`` has (row, reason) of some of them; the first is named if the folder itself is not the problem.
    """
    first = f"{manifest.paths[bad[0][0]].as_py()} ({bad[0][1]})" if bad else ""
    return DataError(
        f"{count:,} of {total:,} pictures of {what} cannot be read; {_folder_problem(manifest) or f'the first is {first}'}",
        "at most a share of data.max_unreadable (0.05 by default)",
        "restore the pictures, then stagewright resume RUN (with --data DIR if they are in another folder now); or continue "
        "without them: --set data.max_unreadable=1",
    )


def _folder_problem(manifest: Manifest) -> str:
    """Returns what is wrong with the folder of the images; empty if it exists and is not empty."""
    root = manifest.root
    if not root or manifest.source.startswith("torchvision:") or is_remote(root):
        return ""
    if not os.path.exists(root):
        return f"{root} does not exist any more"
    try:
        empty = os.path.isdir(root) and not os.listdir(root)
    except OSError as error:
        return f"{root} cannot be opened: {error.strerror or error}"
    return f"{root} exists but is empty: is its disk mounted?" if empty else ""


def _compare_stamps(manifest: Manifest, rows: Rows, until: float) -> NDArray[np.int8]:
    """Compares size and times of the files ``rows``; returns _SAME, _OTHER or _GONE for each. ``until`` is not used."""
    found = np.full(len(rows), _SAME, np.int8)
    for at, (row, path) in enumerate(zip(rows.tolist(), manifest.paths.take(rows).to_pylist(), strict=True)):
        try:
            status = os.stat(os.path.join(manifest.root, path))
        except OSError:
            found[at] = _GONE
            continue
        if manifest.stamps is not None and stamp_of(status) != tuple(manifest.stamps[row].tolist()):
            found[at] = _OTHER
    return found


def _compare_hashes(manifest: Manifest, rows: Rows, until: float) -> NDArray[np.int8]:
    """Compares the hashes of the files ``rows`` as above; stops at the time ``until`` (time.monotonic), the rest are _SAME."""
    found = np.full(len(rows), _SAME, np.int8)
    for at, (row, path) in enumerate(zip(rows.tolist(), manifest.paths.take(rows).to_pylist(), strict=True)):
        if time.monotonic() > until:
            break
        try:
            same = digest_of(read_file(os.path.join(manifest.root, path))).hex() == manifest.hashes[row].as_py()
        except OSError:
            found[at] = _GONE
            continue
        found[at] = _SAME if same else _OTHER
    return found


def _raise_if_changed(manifest: Manifest, missing: Rows, changed: Rows, total: int) -> None:
    """DataError if there are ``missing`` or ``changed`` rows."""
    if not len(missing) and not len(changed):
        return
    parts = [
        f"{_listed(manifest, rows)} {what}"
        for rows, what in ((changed, "changed"), (missing, "cannot be read"))
        if len(rows)
    ]
    folder_problem = _folder_problem(manifest)
    raise DataError(
        f"the pictures of {manifest.source!r} have changed since the run began: of {total:,}, "
        f"{'; '.join(parts)}{f'; {folder_problem}' if folder_problem else ''}",
        "the same files with the same bytes",
        "restore or mount them; if they are in another folder now, give it with --data DIR; or start a new run on the "
        "pictures as they are now",
    )


def _listed(manifest: Manifest, rows: Rows) -> str:
    """Returns ``12 pictures (cat 8, dog 4), e.g. a.jpg, b.jpg, ...,``."""
    labels, counts = np.unique(manifest.labels[rows], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    classes = ", ".join(f"{manifest.classes[labels[at]]} {counts[at]:,}" for at in order)
    more = ", ..." if len(labels) > len(order) else ""
    names = some(manifest.paths.take(rows[:20]).to_pylist(), _MAX_NAMED)
    return f"{counted(len(rows), 'picture')} ({classes}{more}), e.g. {names},"
