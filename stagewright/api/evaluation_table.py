"""Writes an evaluation image by image, with names instead of numbers, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stagewright.api.seen import Seen
from stagewright.engine.evaluate import Evaluation
from stagewright.errors import StorageError
from stagewright.storage.files import user_path, write_for_user
from stagewright.storage.parquet import write_table
from stagewright.text import path_cell, table_cell

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


def image_table(
    classes: Sequence[str],
    paths: pa.StringArray,
    labels: NDArray[np.int64],
    groups: Sequence[str | None] | None,
    result: Evaluation,
    seen: Seen,
) -> pa.Table:
    """Returns one row for each image of an evaluation, in its order; arguments as in
    :class:`stagewright.api.evaluate.EvaluationReport`.

    The columns: path (relative to the data set), label and predicted (names), probability and true_probability (of these two
    classes, 0 to 1), correct, loss (cross-entropy), rank (of the label, from 1), seen ("", "same" or "near"), twin (path of the
    training image that is the same or near), group (null without groups), readable. An unreadable image has no answer.
    """
    answers = result.predictions
    lost = ~answers.readable
    names = pa.array(classes, pa.string())
    ways = np.where(seen.same, "same", np.where(seen.near, "near", ""))
    return pa.table(
        {
            "path": paths,
            "label": names.take(pa.array(labels)),
            "predicted": names.take(pa.array(answers.predicted, mask=lost)),
            "probability": pa.array(answers.probability, pa.float32(), mask=lost),
            "true_probability": pa.array(answers.true_probability, pa.float32(), mask=lost),
            "correct": pa.array(answers.predicted == labels, pa.bool_(), mask=lost),
            "loss": pa.array(answers.losses, pa.float64(), mask=lost),
            "rank": pa.array(answers.ranks + 1, pa.int64(), mask=lost),
            "seen": pa.array(ways.tolist(), pa.string()),
            "twin": pa.array(seen.twins.tolist(), pa.string()),
            "group": pa.array(groups if groups is not None else [None] * len(labels), pa.string()),
            "readable": pa.array(answers.readable),
        }
    )


def write_image_table(table: pa.Table, path: str | Path) -> Path:
    """Writes ``table``, of :func:`image_table`, to ``path``, completely or not at all, and returns the path; StorageError for
    other endings than .csv and .parquet, and if it cannot be written.

    In CSV, names and paths are cells of :mod:`stagewright.text`, of which a spreadsheet takes none for a formula.
    """
    target = check_table_path(path)
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
