"""Scores a finished model on pictures with known classes: its own held-out ones, or others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from stagewright.augment.geometry import eval_geometry
from stagewright.bundle.bundle import Bundle, load_bundle
from stagewright.data.batches.batch import BatchSpec
from stagewright.data.batches.loader import load_batches
from stagewright.data.batches.workers import auto_workers
from stagewright.data.dataset import load_dataset, open_images
from stagewright.data.images.decode import Images
from stagewright.data.manifest import Manifest
from stagewright.data.sources.verify import images_gone, verify_images
from stagewright.engine.evaluate import Evaluation, evaluate
from stagewright.engine.numerics import Numerics
from stagewright.errors import DataError, NotFinite, nearest
from stagewright.recipe import recipe
from stagewright.report.intervals import wilson
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import user_path
from stagewright.system.device import choose_device
from stagewright.system.machine import cores

_BATCH = 64
_LISTED = 30


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of a model on one set of pictures, overall, by class and by group; shares in percent."""

    source: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: list[str | None] | None
    result: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain data for JSON; intervals are 95 % Wilson intervals, in percent."""
        numbers = self.result.numbers()
        correct = self._correct()
        return {
            "source": self.source,
            **numbers,
            "top1_interval": _interval(int(correct.sum()), len(correct)),
            "classes": [
                dict(zip(("name", "images", "top1", "interval"), row, strict=True)) for row in self._by_class()
            ],
            "groups": [dict(zip(("name", "images", "top1", "interval"), row, strict=True)) for row in self._by_group()],
        }

    def print(self) -> None:
        """Prints the figures as tables."""
        console = Console()
        result, correct = self.result, self._correct()
        low, high = _interval(int(correct.sum()), len(correct))
        top5 = f", top-5 {result.top5:.2f} %" if result.top5 is not None else ""
        console.print(
            f"{self.source}: top-1 {result.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}){top5}, "
            f"loss {result.loss:.4f}, {result.images:,} pictures"
            + (f", {result.unreadable:,} unreadable" if result.unreadable else ""),
            highlight=False,
        )
        for title, rows in (("class", self._by_class()), ("group", self._by_group())):
            if rows:
                console.print(_table(title, rows))

    def _readable(self) -> NDArray[np.bool_]:
        return self.result.predictions.readable

    def _correct(self) -> NDArray[np.bool_]:
        readable = self._readable()
        return self.result.predictions.predicted[readable] == self.labels[readable]

    def _by_class(self) -> list[tuple[str, int, float, tuple[float, float]]]:
        names = np.array(self.classes, dtype=object)[self.labels[self._readable()]]
        return _shares(names, self._correct(), list(self.classes))

    def _by_group(self) -> list[tuple[str, int, float, tuple[float, float]]]:
        if self.groups is None:
            return []
        names = np.array([group or "(none)" for group in self.groups], dtype=object)[self._readable()]
        return _shares(names, self._correct(), sorted(set(names)))


def evaluate_bundle(
    run: Path, data: str | None = None, *, split: str = "test", device: str = "auto", workers: int | None = None
) -> EvaluationReport:
    """Evaluates the model of ``run`` (its directory or Bundle) on ``split`` of its own images, or on all of ``data``.

    Classes of ``data`` are matched by name, in any order; DataError for a class that the model does not have.
    """
    bundle = load_bundle(run, device=str(choose_device(device)))
    manifest, images, rows, source = _pictures(user_path(run), data, split)
    labels = _labels_by_name(manifest, bundle.classes, rows)
    view = bundle.preprocessing
    numerics = Numerics(view.mean, view.std, "fp32", True)
    threads = auto_workers(manifest) if workers is None else workers
    with closing(load_batches(images, _specs(manifest, rows, labels, bundle), workers=threads)) as batches:
        try:
            result = evaluate(bundle.model, bundle.model, batches, numerics)
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


def _shares(
    names: NDArray[np.object_], correct: NDArray[np.bool_], order: list[str]
) -> list[tuple[str, int, float, tuple[float, float]]]:
    rows = []
    for name in order:
        mine = correct[names == name]
        if len(mine):
            hits = int(mine.sum())
            rows.append((name, len(mine), 100 * hits / len(mine), _interval(hits, len(mine))))
    return rows


def _interval(correct: int, total: int) -> tuple[float, float]:
    low, high = wilson(correct, total)
    return 100 * low, 100 * high


def _table(title: str, rows: list[tuple[str, int, float, tuple[float, float]]]) -> Table:
    """Returns a table of at most 30 rows: if there are more, those with the lowest accuracy."""
    if len(rows) > _LISTED:
        rows, title = sorted(rows, key=lambda row: row[2])[:_LISTED], f"{title} (the {_LISTED} worst of {len(rows)})"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in ("pictures", "top-1 %", "95 % interval"):
        table.add_column(name, justify="right")
    for name, count, top1, (low, high) in rows:
        table.add_row(name, f"{count:,}", f"{top1:.1f}", f"{low:.1f} to {high:.1f}")
    return table
