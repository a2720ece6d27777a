"""Scores a finished model on pictures with known classes: its own held-out ones, or others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stagewright.api.run import Run
from stagewright.augment.geometry import eval_geometry
from stagewright.bundle.bundle import Bundle, load_bundle
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import load_dataset, open_images
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.verify import images_gone, verify_images
from stagewright.engine.evaluate import Evaluation
from stagewright.engine.evaluate import evaluate as answers
from stagewright.engine.numerics import Numerics
from stagewright.errors import DataError, NotFinite
from stagewright.recipe import recipe
from stagewright.report.intervals import wilson
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device
from stagewright.system.machine import cores
from stagewright.text import nearest

_BATCH = 64


@dataclass(frozen=True)
class Share:
    """The accuracy on the images of a class or of a group."""

    name: str
    images: int
    """Number of readable images."""
    top1: float
    """Percentage of them, in [0, 100]."""
    interval: tuple[float, float]
    """Its 95 % interval (Wilson), in percent."""


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of a model on one set of images: overall, by class and by group. Shares are percentages in [0, 100]."""

    source: str
    """Which images, in words."""
    classes: tuple[str, ...]
    """Names of the model's classes, in their order."""
    labels: NDArray[np.int64]
    """(N,) true class of each image."""
    groups: list[str | None] | None
    """(N,) group of each image; None where the data set has no groups."""
    result: Evaluation
    """Scalars, and every single answer."""

    @property
    def top1(self) -> float:
        """Percentage of images whose most probable class is the right one."""
        return self.result.top1

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`top1` (Wilson), in percent."""
        correct = self._correct()
        return _interval(int(correct.sum()), len(correct))

    @property
    def top5(self) -> float | None:
        """Percentage of images whose class is among the five most probable ones; None for five classes and fewer."""
        return self.result.top5

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.result.loss

    def by_class(self) -> list[Share]:
        """Returns the accuracy on each class that has images, in the model's order."""
        names = np.array(self.classes, dtype=object)[self.labels[self._readable()]]
        return _shares(names, self._correct(), list(self.classes))

    def by_group(self) -> list[Share]:
        """Returns the accuracy on each group, by name; empty if the data set has no groups."""
        if self.groups is None:
            return []
        names = np.array([group or "(none)" for group in self.groups], dtype=object)[self._readable()]
        return _shares(names, self._correct(), sorted(set(names)))

    def to_dict(self) -> dict[str, object]:
        """Returns the results as plain data for JSON; intervals are 95 % Wilson intervals, in percent."""
        return {
            "source": self.source,
            **self.result.numbers(),
            "top1_interval": self.top1_interval,
            "classes": [asdict(one) for one in self.by_class()],
            "groups": [asdict(one) for one in self.by_group()],
        }

    def _readable(self) -> NDArray[np.bool_]:
        return self.result.predictions.readable

    def _correct(self) -> NDArray[np.bool_]:
        readable = self._readable()
        return self.result.predictions.predicted[readable] == self.labels[readable]


def evaluate(
    model: str | Path | Run | Bundle,
    data: str | Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    workers: int | None = None,
) -> EvaluationReport:
    """Evaluates a trained model on images with known classes: on all of ``data``, or on ``split`` of its run's own images.

    ``model`` is a run, the directory of a run or Bundle, or a loaded Bundle, which stays on its device. ``data`` is any form of
    DATA; without it ``model`` must be a run. Classes of ``data`` are matched by name, in any order. DataError for a class that
    the model does not have and for a split without images, CheckpointError if there is neither a run nor ``data``.
    """
    if isinstance(model, Bundle):
        bundle, place = model, model.folder
    else:
        place = user_path(model.path if isinstance(model, Run) else model)
        bundle = load_bundle(place, device=str(choose_device(device)))
    manifest, images, rows, source = _pictures(place, None if data is None else str(data), split)
    labels = _labels_by_name(manifest, bundle.classes, rows)
    view = bundle.preprocessing
    numerics = Numerics(view.mean, view.std, "fp32", True)
    threads = auto_workers(manifest) if workers is None else workers
    with closing(load_batches(images, _specs(manifest, rows, labels, bundle), workers=threads)) as batches:
        try:
            result = answers(bundle.model, bundle.model, batches, numerics)
        except NotFinite as error:
            names = manifest.paths.take(error.rows).to_pylist()
            raise NotFinite(error.rows, error.total, names) from None
    if not result.images:
        raise images_gone(manifest, [(int(row), "unreadable") for row in rows], len(rows), len(rows), source)
    groups = manifest.groups.take(rows).to_pylist() if manifest.groups is not None else None
    return EvaluationReport(source, bundle.classes, labels, groups, result)


def _pictures(run: Path, data: str | None, split: str) -> tuple[Manifest, Images, NDArray[np.int64], str]:
    if data is not None:
        dataset = load_dataset(data, recipe.Data(val=0.0, test=0.0), 0, workers=cores())
        return dataset.manifest, dataset.images, np.arange(len(dataset.manifest)), data
    manifest = Manifest.read(RunDir.existing(run).manifest)
    sizes = {name: len(manifest.rows(name)) for name in ("val", "test")}
    if not sizes.get(split):
        allowed = ", ".join(f"{name} ({count:,} pictures)" for name, count in sizes.items() if count)
        raise DataError(
            f"--split {split}: this run has no {split} pictures",
            allowed or "DATA of your own",
            "name another split, or give DATA",
        )
    images, rows = open_images(manifest), manifest.rows(split)
    verify_images(manifest, rows, workers=cores())
    return manifest, images, rows, f"{split} pictures of {run}"


def _labels_by_name(manifest: Manifest, classes: tuple[str, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    known = {name: at for at, name in enumerate(classes)}
    foreign = [manifest.classes[at] for at in np.unique(manifest.labels[rows]) if manifest.classes[at] not in known]
    if foreign:
        raise DataError(
            f"class {foreign[0]!r} is not among those the model was trained on" + nearest(foreign[0], classes),
            ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else ""),
            "rename or leave out the class",
        )
    translation = np.array([known.get(name, -1) for name in manifest.classes], dtype=np.int64)
    return translation[manifest.labels[rows]]


def _specs(
    manifest: Manifest, rows: NDArray[np.int64], labels: NDArray[np.int64], bundle: Bundle
) -> Iterator[BatchSpec]:
    view = bundle.preprocessing
    seen = recipe.Evaluation(crop=view.crop, fit=view.fit)
    for at in range(0, len(rows), _BATCH):
        chosen = rows[at : at + _BATCH]
        geometry = eval_geometry(seen, manifest.widths[chosen], manifest.heights[chosen])
        yield BatchSpec(at // _BATCH, chosen, labels[at : at + _BATCH], geometry, view.image_size, view.interpolation)


def _shares(names: NDArray[np.object_], correct: NDArray[np.bool_], order: list[str]) -> list[Share]:
    shares = []
    for name in order:
        mine = correct[names == name]
        if len(mine):
            hits = int(mine.sum())
            shares.append(Share(name, len(mine), 100 * hits / len(mine), _interval(hits, len(mine))))
    return shares


def _interval(correct: int, total: int) -> tuple[float, float]:
    low, high = wilson(correct, total)
    return 100 * low, 100 * high
