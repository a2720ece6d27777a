"""Scores a finished model on pictures with known classes: its own held-out ones, or others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.api.evaluation_data import ClassMap, load_labelled, match_classes, rows_of
from stagewright.api.run import Run
from stagewright.augment.geometry import eval_geometry
from stagewright.bundle.bundle import Bundle, load_bundle
from stagewright.data.account import Account, Omission
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import open_images
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.data.sources.verify import images_gone, verify_images
from stagewright.engine.evaluate import Evaluation, Extras
from stagewright.engine.evaluate import evaluate as answers
from stagewright.engine.numerics import Numerics
from stagewright.errors import DataError, NotFinite
from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.intervals import UNDEFINED, Estimate, wilson
from stagewright.measures.metrics import keeps_probabilities
from stagewright.measures.operating import OperatingPoint, PointMeasures, at_point
from stagewright.measures.overview import OF_CLASSES, Overview, overview
from stagewright.recipe import recipe
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path
from stagewright.storage.parquet import pc
from stagewright.system.device import choose_device
from stagewright.system.machine import cores
from stagewright.text import counted, some

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
    precision: Estimate = UNDEFINED
    """Of a class: share of the images answered with it that are of it, in [0, 1]."""
    f1: Estimate = UNDEFINED
    """Of a class, in [0, 1]."""
    auc: Estimate = UNDEFINED
    """Of a class: area under the ROC curve of the class against the rest, in [0, 1]."""
    average_precision: Estimate = UNDEFINED
    """Of a class: area under the precision-recall curve, in [0, 1]."""


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
    account: Account
    """How many images were evaluated, what was left out and what could not be read."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: how DATA was read, and what was found."""
    operating: OperatingPoint = field(default_factory=OperatingPoint)
    """The operating point that is stored in the model; top-1 and all measures but :attr:`at_point` are without it."""

    @property
    def top1(self) -> float:
        """Percentage of images whose most probable class is the right one."""
        return self.result.top1

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`top1` (Wilson), in percent; over groups where the data set has them."""
        found = self.measures.means["accuracy"]
        return (0.0, 100.0) if found.low is None or found.high is None else (100 * found.low, 100 * found.high)

    @cached_property
    def measures(self) -> Overview:
        """Precision, recall, F1, areas under curves, log loss and calibration, with 95 % intervals."""
        return overview(self._answers)

    @cached_property
    def _answers(self) -> Answers:
        return self.result.answers(group_numbers(self.groups))

    @property
    def top5(self) -> float | None:
        """Percentage of images whose class is among the five most probable ones; None for five classes and fewer."""
        return self.result.top5

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.result.loss

    @cached_property
    def at_point(self) -> PointMeasures | None:
        """What the operating point comes to; None if there is none, or too many classes for their probabilities."""
        return at_point(self._answers, self.classes, self.operating) if self.operating else None

    def by_class(self) -> list[Share]:
        """Returns the accuracy on each class that has images, in the model's order."""
        names = np.array(self.classes, dtype=object)[self.labels[self._readable()]]
        found, measured = _shares(names, self._correct(), list(self.classes)), self.measures.classes
        places = {name: at for at, name in enumerate(self.classes)}
        kinds = [kind for kind in OF_CLASSES if kind != "recall"]
        return [replace(one, **{kind: measured[kind][places[one.name]] for kind in kinds}) for one in found]

    def by_group(self) -> list[Share]:
        """Returns the accuracy on each group, by name; empty if the data set has no groups."""
        if self.groups is None:
            return []
        names = np.array([group or "(none)" for group in self.groups], dtype=object)[self._readable()]
        return _shares(names, self._correct(), sorted(set(names)))

    def to_dict(self) -> dict[str, object]:
        """Returns the results as plain data for JSON, with 95 % intervals. top1 and its intervals are in percent, ``measures``
        and those of classes in [0, 1], log loss in nats."""
        return {
            "source": self.source,
            **self.result.numbers(),
            "unreadable": self.account.num_unreadable,
            "account": self.account.to_dict(),
            "notes": list(self.notes),
            "top1_interval": self.top1_interval,
            "measures": self.measures.to_dict(),
            **self._point(),
            "classes": [_plain(one) for one in self.by_class()],
            "groups": [_plain(one) for one in self.by_group()],
        }

    def _point(self) -> dict[str, object]:
        found = self.at_point
        if found is None:
            return {}
        classes = {
            name: {"precision": precision._asdict(), "recall": recall._asdict()}
            for name, (precision, recall) in found.classes.items()
        }
        measured = {"answered": found.answered._asdict(), "accuracy": found.accuracy._asdict(), "classes": classes}
        return {"operating_point": {**asdict(self.operating), **measured}}

    def _readable(self) -> NDArray[np.bool_]:
        return self.result.predictions.readable

    def _correct(self) -> NDArray[np.bool_]:
        readable = self._readable()
        return self.result.predictions.predicted[readable] == self.labels[readable]


def evaluate(
    model: str | Path | Run | Bundle,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    overrides: Sequence[str] = (),
    class_map: ClassMap | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> EvaluationReport:
    """Evaluates a trained model on images with known classes: on ``data``, or on the test images of its run.

    ``model`` is a run, the directory of a run or Bundle, or a loaded Bundle, which stays on its device. ``data`` is any form of
    DATA, as a whole or only its ``split`` (train, val, test); without it ``model`` must be a run. A table is read as that of the
    training was, unless ``overrides`` (``data.label=species``) say otherwise. Classes are matched by name, in any order;
    ``class_map`` gives the model's class of others, or None to leave their images out. ``progress(done, total)`` counts the
    images, first those that are read and then, from 0 again, those that are evaluated.

    DataError for classes that the model does not have and for a split without images, CheckpointError if there is neither a run
    nor ``data``.
    """
    if isinstance(model, Bundle):
        bundle, place = model, model.folder
    else:
        place = user_path(model.path if isinstance(model, Run) else model)
        bundle = load_bundle(place, device=str(choose_device(device)))
    if data is None:
        if overrides or class_map:
            given = [*(f"--set {text}" for text in overrides), *(f"class {name!r}" for name in class_map or ())]
            raise DataError(
                f"{', '.join(given)} without DATA: the run's own pictures have the classes of the model",
                "these settings together with DATA",
                "give DATA, or leave them out",
            )
        chosen = _own_images(place, split or "test", bundle, progress)
    else:
        chosen = _images_of(bundle, str(data), split, overrides, class_map or {}, progress)
    progress(len(chosen.rows), len(chosen.rows))  # ends the first count, also if no image had to be read
    manifest, rows, labels = chosen.manifest, chosen.rows, chosen.labels
    view = bundle.preprocessing
    numerics = Numerics(view.mean, view.std, "fp32", True)
    threads = auto_workers(manifest) if workers is None else workers
    with closing(load_batches(chosen.images, _specs(manifest, rows, labels, bundle), workers=threads)) as batches:
        try:
            progress(0, len(rows))
            result = answers(
                bundle.model,
                bundle.network.present(),
                batches,
                numerics,
                extras=Extras(probabilities=keeps_probabilities(len(rows), len(bundle.classes))),
                progress=lambda done: progress(done, len(rows)),
            )
        except NotFinite as error:
            names = manifest.paths.take(error.rows).to_pylist()
            raise NotFinite(error.rows, error.total, names) from None
    if not result.images:
        raise images_gone(manifest, [(int(row), "unreadable") for row in rows], len(rows), len(rows), chosen.source)
    groups = manifest.groups.take(rows).to_pylist() if manifest.groups is not None else None
    account = _with_lost(chosen.account, manifest, rows[~result.predictions.readable])
    point = bundle.spec.operating
    return EvaluationReport(chosen.source, bundle.classes, labels, groups, result, account, chosen.notes, point)


def _with_lost(account: Account, manifest: Manifest, lost: NDArray[np.int64]) -> Account:
    """Returns ``account`` after an evaluation that could not read the rows ``lost``."""
    if not len(lost):
        return account
    omission = Omission("it cannot be read any more", len(lost), manifest.paths[int(lost[0])].as_py())
    return Account(account.read - len(lost), account.left_out, (*account.unreadable, omission))


@dataclass(frozen=True)
class _Chosen:
    """The images to evaluate."""

    manifest: Manifest
    images: Images
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The model's class of each row."""
    source: str
    account: Account
    notes: tuple[str, ...] = ()


def _own_images(run: Path, split: str, bundle: Bundle, progress: Progress) -> _Chosen:
    manifest = Manifest.read(RunDir.existing(run).manifest)
    rows = rows_of(manifest, split, "this run has")
    verify_images(manifest, rows, workers=cores(), progress=progress)
    matched = match_classes(manifest, rows, bundle.classes, {}, str(run))
    return _Chosen(
        manifest, open_images(manifest), rows, matched.labels, f"{split} pictures of {run}", Account(len(rows))
    )


def _images_of(
    bundle: Bundle,
    data: str,
    split: str | None,
    overrides: Sequence[str],
    class_map: ClassMap,
    progress: Progress,
) -> _Chosen:
    dataset, notes = load_labelled(bundle, data, overrides, progress)
    manifest = dataset.manifest
    rows = rows_of(manifest, split, f"{data!r} has")
    matched = match_classes(manifest, rows, bundle.classes, class_map, data)
    if matched.absent:
        notes.append(f"no picture of {counted(len(matched.absent), 'class')} of the model: {some(matched.absent)}")
    if known := _trained_on(bundle.folder.parent, manifest, matched.rows):
        notes.append(
            f"{known:,} of these {len(matched.rows):,} pictures are among those that the model was trained on, so the accuracy "
            "is too high for new pictures"
        )
    dropped = [Omission("of a class that was dropped", count, name) for name, count in matched.dropped.items()]
    if others := len(manifest) - len(rows):
        dropped.append(Omission(f"not in {split}", others, ""))
    account = Account(len(matched.rows), (*dataset.account.left_out, *dropped), dataset.account.unreadable)
    source = data if split is None else f"{split} pictures of {data}"
    return _Chosen(manifest, dataset.images, matched.rows, matched.labels, source, account, tuple(notes))


def _trained_on(run: Path, manifest: Manifest, rows: NDArray[np.int64]) -> int:
    """Returns how many of ``rows`` have the content of a training image of ``run``; 0 if that is no run."""
    file = RunDir(run).manifest
    if not file.is_file():
        return 0
    own = Manifest.read(file)
    trained = own.hashes.take(pa.array(own.rows("train")))
    return int(pc.sum(pc.is_in(manifest.hashes.take(pa.array(rows)), trained)).as_py() or 0)


def _specs(
    manifest: Manifest, rows: NDArray[np.int64], labels: NDArray[np.int64], bundle: Bundle
) -> Iterator[BatchSpec]:
    view = bundle.preprocessing
    seen = recipe.Evaluation(crop=view.crop, fit=view.fit)
    for at in range(0, len(rows), _BATCH):
        chosen = rows[at : at + _BATCH]
        geometry = eval_geometry(seen, manifest.widths[chosen], manifest.heights[chosen])
        yield BatchSpec(at // _BATCH, chosen, labels[at : at + _BATCH], geometry, view.image_size, view.interpolation)


def _plain(one: Share) -> dict[str, object]:
    content: dict[str, object] = {"name": one.name, "images": one.images, "top1": one.top1, "interval": one.interval}
    measured = {kind: getattr(one, kind) for kind in OF_CLASSES if kind != "recall"}
    return content | {kind: found._asdict() for kind, found in measured.items() if found.value is not None}


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
