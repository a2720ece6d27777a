"""Whether the pictures of a run are still those that it began with, and what to say where they are not.

The manifest has every file's hash, and its size and times when it was looked at. A resume hashes what has another size or time
(all of it, where asked), and a few of the others at random.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.stored import read_file
from stagewright.data.manifest import Manifest
from stagewright.data.sources.builtin import digits_folder
from stagewright.data.sources.scan import Progress, digest_of, stamp_of
from stagewright.errors import DataError
from stagewright.system.threads import Pool
from stagewright.text import counted, some

Rows = NDArray[np.int64]

_SAMPLE = 1000
_SAMPLE_SECONDS = 2.0
_CHUNK = 64
_NAMED = 3
_SAME, _OTHER, _GONE = 0, 1, 2


def verify_images(
    manifest: Manifest,
    rows: Rows | None = None,
    *,
    everything: bool = False,
    workers: int = 2,
    progress: Progress | None = None,
) -> None:
    """DataError where files of ``manifest`` (its ``rows``; None: all) are gone or hold other bytes than when it was written.

    Hashed are those whose size or times differ, or all with ``everything``, and of the rest 1 in 1,000 within 2 seconds.
    ``progress(done, total)`` is told of the first. Packs and pictures in memory are checked where they are opened.
    """
    if manifest.variant or manifest.source.startswith("torchvision:") or not manifest.root:
        return
    if manifest.source == "digits":  # made again where they are gone, so with other times
        manifest = replace(manifest, root=str(digits_folder()))
    rows = np.arange(len(manifest)) if rows is None else rows
    with Pool(max(workers, 1), "verify") as pool:

        def states(
            look: object, rows: Rows, tell: Progress | None = None, until: float = float("inf")
        ) -> NDArray[np.int8]:
            found = np.zeros(len(rows), np.int8)
            chunks = [slice(at, at + _CHUNK) for at in range(0, len(rows), _CHUNK)]
            futures = {pool.submit(look, manifest, rows[chunk], until): chunk for chunk in chunks}  # pyright: ignore
            done = 0
            for future in as_completed(futures):
                chunk = futures[future]
                found[chunk] = future.result()
                done += len(found[chunk])
                if tell is not None:
                    tell(done, len(rows))
            return found

        stamped = states(_compare_stamps, rows)
        suspect = np.full(len(rows), True) if everything else stamped == _OTHER
        suspect &= stamped != _GONE
        stamped[suspect] = states(_compare_hashes, rows[suspect], progress)
        quiet = np.flatnonzero(~suspect & (stamped == _SAME))
        picked = np.random.default_rng().permutation(quiet)[: -(-len(quiet) // _SAMPLE)]  # any: it decides nothing
        stamped[picked] = states(_compare_hashes, rows[picked], until=time.monotonic() + _SAMPLE_SECONDS)
    _refuse(manifest, rows[stamped == _GONE], rows[stamped == _OTHER], len(rows))


def moved(manifest: Manifest, source: str | Path) -> Manifest:
    """``manifest`` with its pictures below the folder, table or pack ``source``, under the same relative paths."""
    place = Path(os.path.abspath(source))
    if not place.exists():
        raise DataError(
            f"--data {source}: there is no such folder", "where the run's pictures are now", "check the path"
        )
    root = place if place.is_dir() or manifest.variant else place.parent
    return replace(manifest, root=str(root), source=str(source))


def images_gone(manifest: Manifest, bad: Sequence[tuple[int, str]], count: int, total: int, what: str) -> DataError:
    """The error of ``what``, in which ``count`` of ``total`` pictures could not be read, among them ``bad`` (row, reason)."""
    first = f"{manifest.paths[bad[0][0]].as_py()} ({bad[0][1]})" if bad else ""
    return DataError(
        f"{count:,} of {total:,} pictures of {what} cannot be read; {_where(manifest) or f'the first is {first}'}",
        "at most data.max_unreadable of them (0.05 where the recipe says nothing)",
        "bring the pictures back, then stagewright resume RUN (with --data where they are now, if they moved); or go on "
        "without them: --set data.max_unreadable=1",
    )


def _where(manifest: Manifest) -> str:
    """What is wrong with the pictures' folder itself; empty where it is there and holds something."""
    root = manifest.root
    if not root or manifest.source.startswith("torchvision:"):
        return ""
    if not os.path.exists(root):
        return f"{root} is not there any more"
    try:
        empty = os.path.isdir(root) and not os.listdir(root)
    except OSError as error:
        return f"{root} cannot be opened: {error.strerror or error}"
    return f"{root} is there, and empty: is its disk mounted?" if empty else ""


def _compare_stamps(manifest: Manifest, rows: Rows, until: float) -> NDArray[np.int8]:
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


def _refuse(manifest: Manifest, gone: Rows, changed: Rows, total: int) -> None:
    if not len(gone) and not len(changed):
        return
    parts = [
        f"{_told(manifest, rows)} {what}"
        for rows, what in ((changed, "changed"), (gone, "cannot be read"))
        if len(rows)
    ]
    where = _where(manifest)
    raise DataError(
        f"the pictures of {manifest.source!r} are not what they were when the run began: of {total:,}, "
        f"{'; '.join(parts)}{f'; {where}' if where else ''}",
        "the same pictures, to the bit, in the same places",
        "restore or mount them; --data DIR says where they are now, if they moved; or start a new run on the pictures as "
        "they are",
    )


def _told(manifest: Manifest, rows: Rows) -> str:
    """``12 pictures (cat 8, dog 4): a.jpg, b.jpg, ...``"""
    labels, counts = np.unique(manifest.labels[rows], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    classes = ", ".join(f"{manifest.classes[labels[at]]} {counts[at]:,}" for at in order)
    more = ", ..." if len(labels) > len(order) else ""
    return f"{counted(len(rows), 'picture')} ({classes}{more}), as {some(manifest.paths.take(rows[:20]).to_pylist(), _NAMED)},"
