"""Which images of an evaluation a model has seen in its training: the same content by hash, or near duplicates.

A run that started from the weights of another run has seen that run's training images too. What cannot be compared, because
images or a record are not there any more, is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.data.dataset import open_images
from stagewright.data.images.decode import Images
from stagewright.data.inspect.twins import near_twins, read_thumbs, same_content
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.errors import StagewrightError
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import is_closed, still_closed
from stagewright.rundir.json_fields import PlanFields
from stagewright.storage.files import read_own
from stagewright.storage.json_text import fitting, parse_object
from stagewright.system.machine import cores
from stagewright.text import counted

Rows = NDArray[np.int64]
_MOST_PARENTS = 8


@dataclass(eq=False)
class Seen:
    """What a training had seen of N images."""

    same: NDArray[np.bool_]
    """(N,): whether a training image has the same content."""
    near: NDArray[np.bool_]
    """(N,): whether a training image is a near duplicate, and none has the same content."""
    twins: NDArray[np.object_]
    """(N,): path of the first such training image, as in its run's manifest; "" if there is none."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, and what else counts as seen."""

    @property
    def any(self) -> NDArray[np.bool_]:
        """(N,): whether the image was seen in one of the two ways."""
        return self.same | self.near

    def add(self, kind: NDArray[np.bool_], twins: Rows, paths: pa.StringArray) -> None:
        """Marks in ``kind``, :attr:`same` or :attr:`near`, the images that have one of ``twins`` (N,), rows of ``paths``, or
        -1, and are not marked yet."""
        new = (twins >= 0) & ~self.any
        kind[new] = True
        self.twins[new] = paths.take(pa.array(twins[new])).to_pylist()


def find_seen(
    run: Path | None, manifest: Manifest, images: Images, rows: Rows, *, near: bool, progress: Progress
) -> Seen:
    """Returns what the training of ``run`` had seen of the ``rows`` (N,) of ``manifest``; None: a training without a record.

    Near duplicates are looked for if ``near``: the images of both sides are read for it. ``progress(done, total)`` counts them.
    """
    progress(0, 1)
    progress(1, 1)  # ends this count, also if no image is compared
    found = Seen(np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_), np.full(len(rows), "", object))
    if run is None or not RunDir(run).manifest.is_file():
        found.notes.append("what the model was trained on is not recorded beside it: seen pictures are not recognised")
        return found
    records = [(run, Manifest.read(RunDir(run).manifest))]
    for place in _parents(run):
        try:
            records.append((place, Manifest.read(RunDir(place).manifest)))
        except StagewrightError as error:
            found.notes.append(f"the training pictures of {place} are not known: {error.given}")
    hashes = manifest.hashes.take(pa.array(rows))
    for place, known in records:
        before = int(found.same.sum())
        paths, theirs = _part(known, "train")
        found.add(found.same, same_content(hashes, theirs), paths)
        if place != run and (new := int(found.same.sum()) - before):
            found.notes.append(f"{counted(new, 'picture')} seen by {place}, with whose weights the training began")
    if near:
        _add_near(found, records, manifest, images, rows, progress)
    chose = (same_content(hashes, _part(records[0][1], "val")[1]) >= 0) & ~found.any
    if chose.any():
        found.notes.append(
            f"{counted(int(chose.sum()), 'picture')} of the {int((~found.any).sum()):,} that were not trained on chose the "
            "weights, as validation pictures: a little too good"
        )
    return found


def refuse_closed(run: RunDir, manifest: Manifest, rows: Rows) -> None:
    """DataError if the ``rows`` of ``manifest`` have images of the test part of ``run`` that this leaves closed, by hash."""
    if not run.manifest.is_file() or not is_closed(run):
        return
    refuse_closed_hashes(run, manifest.hashes.take(pa.array(rows)), repr(manifest.source))


def refuse_closed_hashes(run: RunDir, hashes: pa.StringArray, source: str) -> None:
    """Refuses as :func:`refuse_closed` does, where it is known that the test part is closed, images with these ``hashes`` (N,):
    null for one that cannot be read."""
    found = int((same_content(hashes, _part(Manifest.read(run.manifest), "test")[1]) >= 0).sum())
    if found:
        what = f"{counted(found, 'picture')} of {len(hashes):,} in {source}"
        raise still_closed(run, f"{what} {'is' if found == 1 else 'are'}")


def _part(known: Manifest, part: str) -> tuple[pa.StringArray, pa.StringArray]:
    """Returns the paths and the hashes of a part."""
    rows = pa.array(known.rows(part))
    return known.paths.take(rows), known.hashes.take(rows)


def _add_near(
    found: Seen,
    records: list[tuple[Path, Manifest]],
    manifest: Manifest,
    images: Images,
    rows: Rows,
    progress: Progress,
) -> None:
    """Adds the near duplicates of the training images of ``records`` to ``found``."""
    todo = np.flatnonzero(~found.same)
    sides: list[tuple[Manifest, Images, Rows]] = []
    for _, known in records if len(todo) else ():
        try:
            sides.append((known, open_images(known), _distinct(known)))
        except StagewrightError as error:
            found.notes.append(f"near duplicates of training pictures were not looked for: {error.given}")
    if not sides:
        return
    total = len(todo) + sum(len(trained) for _, _, trained in sides)
    thumbs, read = read_thumbs(
        manifest, images, rows[todo], workers=cores(), progress=lambda done, _: progress(done, total)
    )
    before, todo, thumbs = len(todo), todo[read], thumbs[read]
    for known, trained_images, trained in sides:

        def report(done: int, _: int, before: int = before) -> None:
            progress(before + done, total)

        theirs, there = read_thumbs(known, trained_images, trained, workers=cores(), progress=report)
        before += len(trained)
        if lost := int((~there).sum()):
            what = f"{counted(lost, 'training picture')} of {len(trained):,}"
            found.notes.append(f"{what} could not be compared: gone, changed or unreadable")
        twins = np.full(len(rows), -1, np.int64)
        twins[todo] = near_twins(thumbs, theirs[there])
        found.add(found.near, twins, known.paths.take(pa.array(trained[there])))


def _distinct(known: Manifest) -> Rows:
    """Returns the rows of the training images, of identical ones the first."""
    trained = known.rows("train")
    _, first = np.unique(known.content[trained], return_index=True)
    return trained[np.sort(first)]


def _parents(run: Path) -> Iterator[Path]:
    """Yields the runs from whose weights ``run`` was started, the nearest first, as far as they are still there."""
    known = {run.resolve()}
    for _ in range(_MOST_PARENTS):
        source = _initial_weights(run)
        places = [] if source is None else [source, *source.parents[:3]]  # a run, its bundle, a file in either
        parent = next((place for place in places if RunDir(place).manifest.is_file()), None)
        if parent is None or parent.resolve() in known:
            return
        known.add(parent.resolve())
        yield parent
        run = parent


def _initial_weights(run: Path) -> Path | None:
    """Returns the file or folder of the weights that ``run`` began with; None for random weights and a library's."""
    try:
        plan, _ = fitting(parse_object(read_own(RunDir(run).plan)), PlanFields)
    except (FileNotFoundError, ValueError):
        return None
    named = plan.get("recipe", {}).get("model", {}).get("weights")
    return None if named in (None, "default", "none") else Path(str(RunDir(run).read_env().get("cwd", ".")), named)
