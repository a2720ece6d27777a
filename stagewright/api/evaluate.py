"""Scores a model on pictures with known classes: its own held-out ones, or others.

Images that the model has seen in its training are recognised and scored apart: the headline is of the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from stagewright.api.class_map import read_class_map
from stagewright.api.classifier import Classifier
from stagewright.api.evaluated_images import Chosen, given_images, run_images
from stagewright.api.evaluation_data import ClassMap
from stagewright.api.evaluation_html import evaluation_html
from stagewright.api.evaluation_table import image_table, write_image_table
from stagewright.api.load_bundle import load_bundle
from stagewright.api.seen import Seen, find_seen
from stagewright.bundle.bundle import Bundle
from stagewright.data.account import Account, Omission
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.workers import auto_workers
from stagewright.data.manifest import Manifest
from stagewright.data.sources.scan import Progress
from stagewright.data.sources.verify import images_gone
from stagewright.engine.evaluate import Evaluation, Extras
from stagewright.engine.evaluate import evaluate as answers
from stagewright.errors import DataError, NotFinite
from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.intervals import UNDEFINED, Estimate, wilson
from stagewright.measures.metrics import keeps_probabilities
from stagewright.measures.operating import OperatingPoint, PointMeasures, at_point
from stagewright.measures.overview import OF_CLASSES, Overview, overview
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device


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


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """Accuracy of a model on one set of images: overall, by class and by group. Shares are percentages in [0, 100].

    Where the training has seen some of the images and not others, all numbers but :attr:`result` and :attr:`seen_score` are of
    the others: :attr:`scored` says so.
    """

    source: str
    """Which images, in words."""
    classes: tuple[str, ...]
    """Names of the model's classes, in their order."""
    labels: NDArray[np.int64]
    """(N,) true class of each image."""
    groups: list[str | None] | None
    """(N,) group of each image; None where the data set has no groups."""
    result: Evaluation
    """Scalars of all images, seen ones too, and every single answer."""
    account: Account
    """How many images were evaluated, what was left out and what could not be read."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: how DATA was read, and what was found."""
    operating: OperatingPoint = field(default_factory=OperatingPoint)
    """The operating point that is stored in the model; top-1 and all measures but :attr:`at_point` are without it."""
    paths: pa.StringArray = field(kw_only=True)
    """(N,) path of each image, relative to the data set."""
    seen: Seen = field(kw_only=True)
    """Which images the training has seen."""
    shown: tuple[str, ...] = field(kw_only=True)
    """The classes by the names that people see, in the same order."""

    @cached_property
    def scored(self) -> Literal["all", "unseen", "seen"]:
        """Of which images the headline is: ``all`` if none was seen, ``unseen``, or ``seen`` if all were."""
        seen = self.seen.any[self._readable]
        return "all" if not seen.any() else "seen" if seen.all() else "unseen"

    @cached_property
    def headline(self) -> Evaluation:
        """The result on the images that were not seen in the training; on all if all or none of them were."""
        return self.result if self.scored != "unseen" else self.result.of(~self.seen.any)

    @cached_property
    def seen_score(self) -> Share | None:
        """The accuracy on the images that the training has seen; None if it has seen none."""
        mine = self._correct[self.seen.any & self._readable]
        return _share("seen in training", mine) if len(mine) else None

    @property
    def top1(self) -> float:
        """Percentage of images whose most probable class is the right one."""
        return self.headline.top1

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
        return self.result.answers(group_numbers(self.groups), self._counted)

    @property
    def top5(self) -> float | None:
        """Percentage of images whose class is among the five most probable ones; None for five classes and fewer."""
        return self.headline.top5

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.headline.loss

    @cached_property
    def at_point(self) -> PointMeasures | None:
        """What the operating point comes to; None if there is none, or too many classes for their probabilities."""
        return at_point(self._answers, self.classes, self.operating) if self.operating else None

    def by_class(self) -> list[Share]:
        """Returns the accuracy on each class that has images, in the model's order."""
        names = np.array(self.shown, dtype=object)[self.labels[self._counted]]
        found, measured = _shares(names, self._correct[self._counted], self.shown), self.measures.classes
        places = {name: at for at, name in enumerate(self.shown)}
        kinds = [kind for kind in OF_CLASSES if kind != "recall"]
        return [replace(one, **{kind: measured[kind][places[one.name]] for kind in kinds}) for one in found]

    def by_group(self) -> list[Share]:
        """Returns the accuracy on each group, by name; empty without groups."""
        if self.groups is None:
            return []
        names = np.array([group or "(none)" for group in self.groups], dtype=object)[self._counted]
        return _shares(names, self._correct[self._counted], sorted(set(names)))

    def table(self) -> pa.Table:
        """Returns every answer, with names of classes (:func:`stagewright.api.evaluation_table.image_table`)."""
        return image_table(self.shown, self.paths, self.labels, self.groups, self.result, self.seen)

    def write(self, path: str | Path) -> Path:
        """Writes :meth:`table` to a .csv or .parquet file and returns its path; StorageError if that is not possible."""
        return write_image_table(self.table(), path)

    def to_dict(self) -> dict[str, object]:
        """Returns the results as plain data for JSON, with 95 % intervals. top1 and its intervals are in percent, ``measures``
        and those of classes in [0, 1], log loss in nats."""
        seen = self.seen_score
        return {
            "source": self.source,
            "scored": self.scored,
            **self.headline.numbers(),
            "unreadable": self.account.num_unreadable,
            "account": self.account.to_dict(),
            "notes": list(self.notes),
            "top1_interval": self.top1_interval,
            "measures": self.measures.to_dict(),
            "seen": None
            if seen is None
            else {**_plain(seen), "same": int(self.seen.same.sum()), "near": int(self.seen.near.sum())},
            "all": self.result.numbers(),
            **self._point(),
            "classes": [_plain(one) for one in self.by_class()],
            "groups": [_plain(one) for one in self.by_group()],
        }

    def __repr__(self) -> str:
        return f"<EvaluationReport of {self.source}: top-1 {self.top1:.2f} % of {self.headline.images}>"

    def _repr_html_(self) -> str:
        return evaluation_html(self.to_dict())

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

    @property
    def _readable(self) -> NDArray[np.bool_]:
        return self.result.predictions.readable

    @cached_property
    def _counted(self) -> NDArray[np.bool_]:
        """(N,): the readable images of the headline."""
        return self._readable & ~self.seen.any if self.scored == "unseen" else self._readable

    @property
    def _correct(self) -> NDArray[np.bool_]:
        return self.result.predictions.predicted == self.labels


def evaluate(
    model: str | os.PathLike[str] | Bundle | Classifier,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    overrides: Sequence[str] = (),
    class_map: ClassMap | str | Path | None = None,
    near: bool = True,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> EvaluationReport:
    """Evaluates a trained model on images with known classes: on ``data``, or on the test images of its run.

    ``model`` is a Run, the directory of a run or Bundle, a loaded Bundle, or published weights
    (:func:`stagewright.api.classifier.load_published`); the latter two stay on their device. Of a run that has not finished, it
    is its checkpoint (:func:`stagewright.api.load_bundle.load_bundle`). ``data`` is any form of DATA, as a whole or only its
    ``split`` (train, val, test); without it ``model`` must be a run. A table is read as that of the training was, unless
    ``overrides`` (``data.label=species``) say otherwise. Classes are matched by name, in any order; ``class_map`` gives the
    model's class of others, or None to leave their images out, or is a file of such pairs.

    Images that the run has trained on are recognised by hash and, with ``near``, as near duplicates, for which the training
    images are read; they are scored apart. ``progress(done, total)`` counts the images of three activities, each from 0: of
    reading, of comparing with the training, and of evaluating.

    DataError for classes that the model does not have, for a split without images, and for test images of the run while it
    leaves them closed (``train --hold-test``), also where ``data`` has them; CheckpointError if there is neither a run nor
    ``data``.
    """
    if isinstance(class_map, str | Path):
        class_map = read_class_map([class_map])
    classifier, place = _classifier(model, device)
    if data is None:
        if overrides or class_map or place is None:
            given = [*(f"--set {text}" for text in overrides), *(f"class {name!r}" for name in class_map or ())]
            raise DataError(
                f"{', '.join(given) or 'published weights'} without DATA",
                "these together with DATA; the run's own pictures have the classes of the model",
                "give DATA, or leave them out" if given else "give DATA, such as a folder of class folders",
            )
        chosen = run_images(place, split or "test", classifier, progress)
    else:
        chosen = given_images(classifier, str(data), split, overrides, class_map or {}, progress)
    manifest, rows, labels = chosen.manifest, chosen.rows, chosen.labels
    progress(len(rows), len(rows))  # ends the first count, also if no image had to be read
    seen = find_seen(classifier.run, manifest, chosen.images, rows, near=near, progress=progress)
    # The run's own images get the numbers of its summary, which are of float32.
    network = classifier.network.exact() if data is None else classifier.network.present()
    result = _answered(classifier, network, chosen, auto_workers(manifest) if workers is None else workers, progress)
    if not result.images:
        raise images_gone(manifest, [(int(row), "unreadable") for row in rows], len(rows), len(rows), chosen.source)
    return EvaluationReport(
        source=chosen.source,
        classes=classifier.classes,
        shown=classifier.shown,
        paths=manifest.paths.take(pa.array(rows)),
        labels=labels,
        groups=manifest.group_names(rows),
        result=result,
        seen=seen,
        operating=OperatingPoint() if classifier.bundle is None else classifier.bundle.spec.operating,
        account=_with_lost(chosen.account, manifest, rows[~result.predictions.readable]),
        notes=(*classifier.notes, *chosen.notes, *seen.notes),
    )


def _classifier(model: str | os.PathLike[str] | Bundle | Classifier, device: str) -> tuple[Classifier, Path | None]:
    """Returns what is evaluated, and the place that was given for it; None for published weights."""
    if isinstance(model, Classifier):
        return model, None
    if isinstance(model, Bundle):
        return Classifier.of_bundle(model), model.folder
    place = user_path(model)
    return Classifier.of_bundle(load_bundle(place, device=str(choose_device(device)))), place


def _answered(
    classifier: Classifier, network: nn.Module, chosen: Chosen, threads: int, progress: Progress
) -> Evaluation:
    manifest, rows = chosen.manifest, chosen.rows
    specs = classifier.specs(manifest, rows, chosen.labels)
    with closing(load_batches(classifier.seeing(chosen.images), specs, workers=threads)) as batches:
        try:
            progress(0, len(rows))
            return answers(
                classifier.model,
                network,
                batches,
                classifier.numerics,
                extras=Extras(probabilities=keeps_probabilities(len(rows), len(classifier.classes))),
                progress=lambda done: progress(done, len(rows)),
            )
        except NotFinite as error:
            names = manifest.paths.take(error.rows).to_pylist()
            raise NotFinite(error.rows, error.total, names) from None


def _with_lost(account: Account, manifest: Manifest, lost: NDArray[np.int64]) -> Account:
    """Returns ``account`` after an evaluation that could not read the rows ``lost``."""
    if not len(lost):
        return account
    omission = Omission("it cannot be read any more", len(lost), manifest.paths[int(lost[0])].as_py())
    return Account(account.read - len(lost), account.left_out, (*account.unreadable, omission))


def _plain(one: Share) -> dict[str, object]:
    content: dict[str, object] = {"name": one.name, "images": one.images, "top1": one.top1, "interval": one.interval}
    measured = {kind: getattr(one, kind) for kind in OF_CLASSES if kind != "recall"}
    return content | {kind: found._asdict() for kind, found in measured.items() if found.value is not None}


def _shares(names: NDArray[np.object_], correct: NDArray[np.bool_], order: Sequence[str]) -> list[Share]:
    by_name = ((name, correct[names == name]) for name in order)
    return [_share(name, mine) for name, mine in by_name if len(mine)]


def _share(name: str, correct: NDArray[np.bool_]) -> Share:
    hits, total = int(correct.sum()), len(correct)
    low, high = wilson(hits, total)
    return Share(name, total, 100 * hits / total, (100 * low, 100 * high))
