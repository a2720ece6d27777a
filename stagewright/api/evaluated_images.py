"""Which images an evaluation is of: those of the run itself, or of DATA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.api.classifier import Classifier
from stagewright.api.evaluation_data import ClassMap, load_labelled, match_classes, rows_of
from stagewright.api.seen import refuse_closed
from stagewright.data.account import Account, Omission
from stagewright.data.dataset import open_images
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.data.sources.verify import verify_images
from stagewright.rundir.directory import RunDir
from stagewright.rundir.held_test import readable_manifest, still_closed
from stagewright.system.machine import cores
from stagewright.text import counted, some


@dataclass(frozen=True)
class Chosen:
    """The images to evaluate."""

    manifest: Manifest
    images: Images
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The model's class of each row."""
    source: str
    account: Account
    notes: tuple[str, ...] = ()


def run_images(run: Path, split: str, classifier: Classifier, progress: Progress) -> Chosen:
    """Returns the images of ``split`` of the run itself, verified; DataError if there are none, or the run leaves them closed."""
    own = RunDir.existing(run)
    manifest = readable_manifest(own)
    if split == "test" and manifest.num_closed:
        raise still_closed(own)
    rows = rows_of(manifest, split, "this run has")
    verify_images(manifest, rows, workers=cores(), progress=progress)
    matched = match_classes(manifest, rows, classifier.classes, {}, str(run))
    return Chosen(
        manifest, open_images(manifest), rows, matched.labels, f"{split} pictures of {run}", Account(len(rows))
    )


def given_images(
    classifier: Classifier,
    data: str,
    split: str | None,
    overrides: Sequence[str],
    class_map: ClassMap,
    progress: Progress,
) -> Chosen:
    """Returns the images of DATA ``data``, or of its ``split``; DataError as for
    :func:`stagewright.api.evaluate.evaluate`."""
    dataset, notes = load_labelled(classifier.bundle, data, overrides, progress)
    manifest = dataset.manifest
    rows = rows_of(manifest, split, f"{data!r} has")
    if classifier.run is not None:
        refuse_closed(RunDir(classifier.run), manifest, rows)
    known = {**classifier.named(manifest.classes), **class_map}
    matched = match_classes(manifest, rows, classifier.classes, known, data)
    if matched.absent:
        notes.append(f"no picture of {counted(len(matched.absent), 'class')} of the model: {some(matched.absent)}")
    dropped = [Omission("of a class that was dropped", count, name) for name, count in matched.dropped.items()]
    if others := len(manifest) - len(rows):
        dropped.append(Omission(f"not in {split}", others, ""))
    account = Account(len(matched.rows), (*dataset.account.left_out, *dropped), dataset.account.unreadable)
    source = data if split is None else f"{split} pictures of {data}"
    return Chosen(manifest, dataset.images, matched.rows, matched.labels, source, account, tuple(notes))
