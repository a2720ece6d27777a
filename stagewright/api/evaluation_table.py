"""Writes an evaluation image by image, with names instead of numbers, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stagewright.errors import StorageError
from stagewright.storage.files import user_path, write_for_user
from stagewright.storage.parquet import write_table
from stagewright.text import path_cell, table_cell

if TYPE_CHECKING:
    from stagewright.api.evaluate import EvaluationReport

_FORMS = (".csv", ".parquet")


def check_table_path(path: str | Path) -> Path:
    """Returns ``path``; StorageError if a table cannot be written there. To be called before the work."""
    target = user_path(path)
    if target.suffix.lower() not in _FORMS:
        raise StorageError(
            f"--out {path}", "a file that ends in .csv or .parquet", "write for example --out answers.csv"
        )
    if not target.parent.is_dir():
        raise StorageError(f"--out {path}: there is no folder {target.parent}", "an existing folder", "create it first")
    return target


def image_table(report: EvaluationReport) -> pa.Table:
    """Returns one row for each image of ``report``, in its order.

    The columns: path (relative to the data set), label and predicted (names), probability and true_probability (of these two
    classes, 0 to 1), correct, loss (cross-entropy), rank (of the label, from 1), seen ("", "same" or "near"), twin (path of the
    training image that is the same or near), group (null without groups), readable. An unreadable image has no answer.
    """
    answers = report.result.predictions
    ok = answers.readable
    names = pa.array(report.classes, pa.string())
    lost = ~ok
    predicted = names.take(pa.array(answers.predicted, mask=lost))
    correct = answers.predicted == report.labels
    seen = np.where(report.seen.same, "same", np.where(report.seen.near, "near", ""))
    groups = report.groups if report.groups is not None else [None] * len(ok)
    return pa.table(
        {
            "path": report.paths,
            "label": names.take(pa.array(report.labels)),
            "predicted": predicted,
            "probability": pa.array(answers.probability, pa.float32(), mask=lost),
            "true_probability": pa.array(answers.true_probability, pa.float32(), mask=lost),
            "correct": pa.array(correct, pa.bool_(), mask=lost),
            "loss": pa.array(answers.losses, pa.float64(), mask=lost),
            "rank": pa.array(answers.ranks + 1, pa.int64(), mask=lost),
            "seen": pa.array(seen.tolist(), pa.string()),
            "twin": pa.array(report.seen.twins.tolist(), pa.string()),
            "group": pa.array(groups, pa.string()),
            "readable": pa.array(ok),
        }
    )


def write_image_table(report: EvaluationReport, path: str | Path) -> Path:
    """Writes :func:`image_table` to ``path``, completely or not at all, and returns the path; StorageError for other endings
    than .csv and .parquet, and if it cannot be written.

    In CSV, names and paths are cells of :mod:`stagewright.text`, of which a spreadsheet takes none for a formula.
    """
    target, table = check_table_path(path), image_table(report)
    if target.suffix.lower() == ".parquet":
        write_table(table, target)
        return target
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    columns = [_cells(name, table.column(name).to_pylist()) for name in table.column_names]
    writer.writerows(zip(*columns, strict=True))
    write_for_user(target, text.getvalue().encode("utf-8", "surrogateescape"))
    return target


def _cells(name: str, values: list[object]) -> list[str]:
    def cell(value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:.6g}"
        return path_cell(str(value)) if name in ("path", "twin") else table_cell(str(value))

    return [cell(value) for value in values]
