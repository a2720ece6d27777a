"""The results of a cross-validation: the answers to all held-out images in one table, the accuracy, and a page.

They are computed from the runs' directories alone, so they can be written again at any time, with the same content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.api.evaluation_table import write_image_table
from stagewright.data.splits.fold_data import fold_name
from stagewright.errors import CheckpointError
from stagewright.measures.folds import FoldAccuracy, accuracy_of_folds
from stagewright.measures.overview import Overview, overview
from stagewright.report.answered import confusion
from stagewright.report.folds_page import FoldRow, folds_page
from stagewright.report.read import RunRecord, read_run
from stagewright.report.results import time_split
from stagewright.report.tables import Predictions
from stagewright.storage.files import write_json, write_whole

FINAL = "final"
"""Name of the directory of the run on the images of all folds."""
_CSV_CLASSES = 100
"""Largest number of classes of which the CSV has a column of probabilities each."""


def run_folder(root: Path, fold: int, num_folds: int) -> Path:
    """Returns the directory of the run of a fold, which is counted from 0."""
    return root / fold_name(fold, num_folds)


@dataclass(frozen=True, eq=False)
class Pooled:
    """The answers of all folds together."""

    record: RunRecord
    """The first run's, with the answers of all."""
    records: tuple[RunRecord, ...]
    """The runs', in the order of the folds."""
    table: pa.Table
    """One row for each held-out image, in the order of the folds."""
    classes: tuple[str, ...]
    accuracy: FoldAccuracy
    measures: Overview
    counts: tuple[int, ...]
    """Images of each fold that could be read."""
    seconds: tuple[float, ...]
    """Time of each run."""
    unreadable: int
    """Held-out images that could not be read."""
    shares: NDArray[np.float32] | None
    """(N, C) probabilities of all classes; None where they were not kept."""


def pool(root: Path, num_folds: int) -> Pooled:
    """CheckpointError if a run has no answers, or answers to images that another one has answered."""
    places = [run_folder(root, at, num_folds) for at in range(num_folds)]
    records = [read_run(place) for place in places]
    classes = tuple(str(name) for name in records[0].plan.get("dataset", {}).get("classes", ()))
    for place, record in zip(places, records, strict=True):
        found = record.predictions.get("test")
        own = tuple(str(name) for name in record.plan.get("dataset", {}).get("classes", ()))
        if found is None or found.paths is None or found.losses is None or own != classes:
            raise CheckpointError(
                f"{place} has no usable answers to its held-out pictures{f': {record.problems[0]}' if record.problems else ''}",
                "evaluations/test.parquet and plan.json as the run wrote them",
                f"remove {place}, and stagewright resume {root} trains this fold again",
            )
    answered = [record.predictions["test"] for record in records]
    joined = _joined(answered)
    if len(set(joined.paths.tolist() if joined.paths is not None else ())) < len(joined):
        raise CheckpointError(
            f"pictures in {root} are held out in more than one fold",
            "the runs of these folds",
            "begin again in a new folder",
        )
    fold_of = np.repeat(np.arange(num_folds), [len(one) for one in answered])
    answers = joined.answers(len(classes))
    assert answers is not None  # they have losses
    record = replace(
        records[0],
        summary={"name": root.resolve().name, "status": "finished"},
        log=(),
        predictions={"test": joined},
        data=None,
        fed={},
        range_test=None,
        problems=tuple(problem for one in records for problem in one.problems),
    )
    return Pooled(
        record=record,
        records=tuple(records),
        table=_table(joined, fold_of, classes),
        classes=classes,
        accuracy=accuracy_of_folds(answers, fold_of, num_folds),
        measures=overview(answers),
        counts=tuple(len(one) for one in answered),
        seconds=tuple(sum(part for _, part in time_split(one)) for one in records),
        unreadable=sum(one.unreadable for one in answered),
        shares=answers.probabilities,
    )


def _joined(answered: Sequence[Predictions]) -> Predictions:
    """Returns the answers of all folds as those of one split, in the order of the folds."""

    def whole(columns: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        known = [one for one in columns if one is not None]
        return np.concatenate(known) if len(known) == len(columns) else None

    groups = whole([one.groups for one in answered])
    if groups is None and any(one.groups is not None for one in answered):  # a fold of images without groups
        nothing = [np.full(len(one), None, object) if one.groups is None else one.groups for one in answered]
        groups = np.concatenate(nothing)
    return Predictions(
        split="folds",
        labels=np.concatenate([one.labels for one in answered]),
        predicted=np.concatenate([one.predicted for one in answered]),
        groups=groups,
        unreadable=sum(one.unreadable for one in answered),
        paths=whole([one.paths for one in answered]),
        confidence=whole([one.confidence for one in answered]),
        true_probability=whole([one.true_probability for one in answered]),
        losses=whole([one.losses for one in answered]),
        probabilities=whole([one.probabilities for one in answered]),
    )


def _table(joined: Predictions, fold_of: NDArray[np.int64], classes: Sequence[str]) -> pa.Table:
    names = pa.array(classes, pa.string())
    columns: dict[str, Any] = {
        "path": pa.array([] if joined.paths is None else joined.paths.tolist(), pa.string()),
        "fold": pa.array(fold_of + 1, pa.int64()),
        "label": names.take(pa.array(joined.labels)),
        "predicted": names.take(pa.array(joined.predicted)),
        "probability": pa.array(joined.confidence, pa.float64()),
        "true_probability": pa.array(joined.true_probability, pa.float64()),
        "correct": pa.array(joined.labels == joined.predicted),
        "loss": pa.array(None if joined.losses is None else joined.losses + 0.0, pa.float64()),
        "group": pa.array([None] * len(joined) if joined.groups is None else joined.groups.tolist(), pa.string()),
    }
    return pa.table(columns)


def write_results(root: Path, known: Mapping[str, Any]) -> None:
    """Writes ``out-of-fold.csv`` and ``.parquet``, ``result.json`` and ``report.html`` to ``root``, each completely or not at
    all, once all folds have finished. ``known`` is the content of folds.json."""
    pooled = pool(root, known["folds"])
    whole, text = pooled.table, pooled.table
    if pooled.shares is not None:
        flat = pa.array(pooled.shares.ravel())
        whole = whole.append_column("probabilities", pa.FixedSizeListArray.from_arrays(flat, len(pooled.classes)))
        for at, name in enumerate(pooled.classes if len(pooled.classes) <= _CSV_CLASSES else ()):
            text = text.append_column(f"p {name}", pa.array(pooled.shares[:, at].astype(np.float64)))
    write_image_table(whole, root / "out-of-fold.parquet")
    write_image_table(text, root / "out-of-fold.csv")
    write_json(root / "result.json", _content(pooled, known))
    rows = [
        FoldRow(
            name=f"fold {at + 1}",
            page=f"{fold_name(at, known['folds'])}/report.html",
            pictures=pooled.counts[at],
            accuracy=pooled.accuracy.by_fold[at],
            record=record,
        )
        for at, record in enumerate(pooled.records)
    ]
    page = folds_page(
        pooled.record, rows, pooled.accuracy, known, final=FINAL if (root / FINAL / "plan.json").is_file() else None
    )
    write_whole(root / "report.html", page, durable=False)


def _content(pooled: Pooled, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of result.json; accuracies are in [0, 1]."""
    accuracy = pooled.accuracy
    return {
        "format": 1,
        **{name: known[name] for name in ("data", "folds", "images", "test_images", "digest", "seed", "tiny")},
        "classes": [*pooled.classes],
        "answered": len(pooled.table),
        "unreadable": pooled.unreadable,
        "accuracy": accuracy.pooled._asdict(),
        "mean_of_folds": accuracy.mean,
        "sd_of_folds": _known(accuracy.sd),
        "corrected_t": accuracy.corrected_t._asdict(),
        "measures": pooled.measures.to_dict(),
        "confusion": confusion(pooled.record).counts.tolist() if len(pooled.classes) <= _CSV_CLASSES else None,
        "by_fold": [
            {
                "run": fold_name(at, known["folds"]),
                "pictures": pooled.counts[at],
                "accuracy": _known(accuracy.by_fold[at]),
                "seconds": round(pooled.seconds[at], 3),
            }
            for at in range(known["folds"])
        ],
    }


def _known(value: float) -> float | None:
    """Returns ``value``, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def expected_text(pooled: Pooled) -> str:
    """Returns what these folds let expect of a model that is trained like them, in words."""
    found = pooled.accuracy.pooled
    if found.value is None or found.low is None or found.high is None:
        return "unknown: none of the held-out images could be read"
    count = len(pooled.counts)
    return f"top-1 {100 * found.value:.2f} % (95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}), from {count} folds"
