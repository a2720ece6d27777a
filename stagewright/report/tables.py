"""Reads the tables of a run for the report: numbers by step, predictions, and facts about the data set.

Whatever is damaged is left out, and a sentence on it is appended to ``problems``. A file that exists but cannot be read now
raises Unreadable.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from stagewright.measures.answers import Answers, group_numbers
from stagewright.measures.calibration import losses_of
from stagewright.storage.files import read_own, read_parsed
from stagewright.storage.json_text import parse_object
from stagewright.storage.parquet import parse_table

Columns = dict[str, NDArray[np.float64]]

SPLITS = ("train", "val", "test")
_PREDICTION_COLUMNS = (
    *(
        "path",
        "label",
        "predicted",
        "group",
        "readable",
        "probability",
        "true_probability",
        "loss",
        "rank",
        "probabilities",
    ),
)
"""Columns of the predictions that the report uses."""
_Numbers = NDArray[np.float64] | None
_MOST_STEPS = 1e15
_MOST_CLASSES = 10**6


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of the chosen weights for the N readable images of one split, in the manifest's order."""

    split: str
    labels: NDArray[np.int32]
    """(N,) true class of each image."""
    predicted: NDArray[np.int32]
    """(N,) predicted class of each image."""
    groups: NDArray[np.object_] | None
    """(N,) group names, with None for an image without a group; None if the data set has no groups."""
    unreadable: int
    """Number of images of the split that could not be read; they are not among the N."""
    paths: NDArray[np.object_] | None = None
    """(N,) path of each image, as in the manifest; None if the file has none or not of all images."""
    confidence: NDArray[np.float64] | None = None
    """(N,) probability of the predicted class, in [0, 1]; None in a table without it."""
    true_probability: NDArray[np.float64] | None = None
    """(N,) probability of the true class, in [0, 1]; None as for ``confidence``."""
    losses: NDArray[np.float64] | None = None
    """(N,) cross-entropy in nats; None as for ``confidence``."""
    probabilities: NDArray[np.float32] | None = None
    """(N, C) probabilities of all classes, in [0, 1]; None where the table has none."""
    ranks: NDArray[np.int64] | None = None
    """(N,) place of the true class among all, from 1; None in a table without it."""

    @property
    def correct(self) -> int:
        return int(np.count_nonzero(self.labels == self.predicted))

    def __len__(self) -> int:
        return len(self.labels)

    def answers(self, num_classes: int) -> Answers | None:
        """Returns the predictions for :mod:`stagewright.measures`; None where they have no probability or no loss."""
        if self.confidence is None or self.losses is None:
            return None
        fits = self.probabilities is not None and self.probabilities.shape[1] == num_classes
        return Answers(
            labels=self.labels.astype(np.int64),
            predicted=self.predicted.astype(np.int64),
            num_classes=num_classes,
            losses=self.losses,
            confidence=self.confidence,
            probabilities=self.probabilities if fits else None,
            groups=group_numbers(self.groups),
        )


@dataclass(frozen=True, eq=False)
class DataSummary:
    """Facts about the data set, from the manifest."""

    source: str
    counts: NDArray[np.int64]
    """(3, classes): number of images of each split and class."""
    groups: tuple[frozenset[str], frozenset[str], frozenset[str]] | None
    """Names of the groups in each split; None if the data set has no groups."""
    excluded: tuple[tuple[str, str], ...]
    """(path, reason) of files that were excluded when the data set was scanned, from excluded.csv."""


def read_numbers(path: Path, columns: tuple[str, ...], problems: list[str]) -> Columns:
    """Returns ``columns`` of a CSV file as float64 (S,), with increasing steps; a missing column is NaN.

    An incomplete last line is ignored: the run may be writing it. Damaged lines are left out.
    """
    empty = {name: np.empty(0) for name in columns}
    try:
        content = read_own(path)
    except FileNotFoundError:
        return empty
    content = content[: content.rfind(b"\n") + 1]
    header = content[: content.find(b"\n")].decode("utf-8", "replace").strip().split(",")
    if "step" not in header or len(set(header)) < len(header):
        if content:
            problems.append(f"{path.name} is left out: line 1 does not name its columns")
        return empty
    present = [name for name in columns if name in header]
    found = _parsed(content, present)
    if found is None:
        found, damaged = _parsed_by_line(content, header, present)
        if damaged:
            count = f"{len(damaged):,} damaged lines are" if len(damaged) > 1 else "1 damaged line is"
            problems.append(f"{path.name}: {count} left out, the first is line {damaged[0]:,}")
    missing = np.full(len(found["step"]), np.nan)
    # Lines whose step is not larger than an earlier one remain from an incomplete write; a resume removes them from the file.
    highest = np.maximum.accumulate(np.concatenate([[-np.inf], found["step"]]))
    rising = found["step"] > highest[:-1]
    return {name: found.get(name, missing)[rising] for name in columns}


def _parsed(content: bytes, names: list[str]) -> Columns | None:
    """Returns the columns ``names``, or None if a line is damaged."""
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.float64()), include_columns=names, strings_can_be_null=True
    )
    try:
        table = pacsv.read_csv(io.BytesIO(content), convert_options=convert)
    except pa.ArrowException:
        return None
    found = {name: table.column(name).to_numpy().astype(np.float64) for name in names}
    return found if _are_steps(found["step"]).all() else None


def _parsed_by_line(content: bytes, header: list[str], names: list[str]) -> tuple[Columns, list[int]]:
    """Returns the columns ``names`` of all whole lines, and the numbers of the damaged ones, from 1."""
    rows: list[list[float]] = []
    damaged: list[int] = []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n")[1:-1], start=2):
        cells = line.rstrip("\r").split(",")
        try:
            values = dict(zip(header, cells, strict=True))
            row = [float(values[name]) if values[name] else math.nan for name in names]
        except ValueError:
            damaged.append(number)
            continue
        if _are_steps(np.array([row[names.index("step")]])).all():
            rows.append(row)
        else:
            damaged.append(number)
    matrix = np.array(rows, np.float64).reshape(len(rows), len(names))
    return {name: matrix[:, at] for at, name in enumerate(names)}, damaged


def _are_steps(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return (values >= 0) & (values <= _MOST_STEPS) & (values == np.floor(values))


def read_predictions(folder: Path, problems: list[str]) -> Iterator[tuple[str, Predictions]]:
    """Yields the predictions in ``val.parquet`` and ``test.parquet`` with the name of their split."""
    for split in ("val", "test"):
        path = folder / f"{split}.parquet"
        table = _table(path, _PREDICTION_COLUMNS, problems)
        if table is None:
            continue
        try:
            readable = np.ones(len(table), dtype=bool)
            if "readable" in table.column_names:
                readable = _whole(table, "readable", pa.bool_())
            answered = table.filter(pa.array(readable))  # the others have the class -1
            labels, predicted = _classes(answered, "label"), _classes(answered, "predicted")
            groups = _group_names(table)
            shares, ranks = _shares(table, readable), _ranks(table, readable)
        except (ValueError, pa.ArrowException) as error:
            problems.append(_left_out(path, error))
            continue
        if groups is not None:
            groups = groups[readable]
        unreadable = int(np.count_nonzero(~readable))
        yield (
            split,
            Predictions(*(split, labels, predicted, groups, unreadable, _paths(table, readable)), *shares, ranks),
        )


def _paths(table: pa.Table, readable: NDArray[np.bool_]) -> NDArray[np.object_] | None:
    if "path" not in table.column_names or not pa.types.is_string(table.schema.field("path").type):
        return None
    column = table.column("path")
    return None if column.null_count else np.array(column.to_pylist(), dtype=object)[readable]


def _shares(
    table: pa.Table, readable: NDArray[np.bool_]
) -> tuple[_Numbers, _Numbers, _Numbers, NDArray[np.float32] | None]:
    """Returns for the readable images the probabilities of the predicted and of the true class, the loss, and the probabilities
    of all classes, each None where the table does not have it; ValueError for values that cannot be such."""
    names = table.column_names
    confidence = _numbers(table, "probability", readable, 1.0) if "probability" in names else None
    true = _numbers(table, "true_probability", readable, 1.0) if "true_probability" in names else None
    losses = None
    if "loss" in names:
        losses = _numbers(table, "loss", readable, math.inf)
    elif true is not None:  # runs of earlier versions
        losses = losses_of(true)
    if "probabilities" not in names:
        return confidence, true, losses, None
    column = table.column("probabilities").combine_chunks()
    if not pa.types.is_fixed_size_list(column.type) or column.type.value_type != pa.float32():
        raise ValueError(f"probabilities has values of type {column.type}, not lists of float32 of one length")
    if column.null_count or column.flatten().null_count:
        raise ValueError("probabilities has empty cells")
    shares = column.flatten().to_numpy().reshape(len(table), column.type.list_size)[readable]
    if not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ValueError("probabilities has values outside of 0 to 1")
    return confidence, true, losses, shares


def _ranks(table: pa.Table, readable: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    if "rank" not in table.column_names:
        return None
    column = table.column("rank").filter(pa.array(readable))
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError("rank has cells that are no numbers")
    ranks = column.cast(pa.int64()).to_numpy()
    if len(ranks) and not 1 <= ranks.min() <= ranks.max() <= _MOST_CLASSES:
        raise ValueError(f"rank has values below 1 or above {_MOST_CLASSES:,}")
    return ranks


def _numbers(table: pa.Table, name: str, readable: NDArray[np.bool_], most: float) -> NDArray[np.float64]:
    """Returns a column of numbers from 0 to ``most`` of the readable images."""
    if not pa.types.is_floating(table.schema.field(name).type):
        raise ValueError(f"{name} has values of type {table.schema.field(name).type}")
    values = _whole(table, name, pa.float64())[readable]
    if not bool(((values >= 0) & (values <= most) & np.isfinite(values)).all()):
        raise ValueError(f"{name} has values outside of 0 to {most:g}")
    return values


def read_data_summary(path: Path, problems: list[str]) -> DataSummary | None:
    """Returns what the manifest in ``path`` says of the data set, and the list of excluded files next to it."""
    table = _table(path, ("label", "split", "group"), problems)
    if table is None:
        return None
    try:
        head = parse_object((table.schema.metadata or {}).get(b"stagewright.manifest", b"{}"))
        labels, splits = _classes(table, "label").astype(np.int64), _splits(table)
        groups = _group_names(table)
    except (ValueError, pa.ArrowException) as error:
        problems.append(_left_out(path, error))
        return None
    num_classes = int(labels.max(initial=-1)) + 1
    counts = np.bincount(splits * num_classes + labels, minlength=3 * num_classes).reshape(3, num_classes)
    named = None
    if groups is not None:
        first, second, third = (frozenset(name for name in groups[splits == at] if name is not None) for at in range(3))
        named = (first, second, third)
    source = head.get("source")
    return DataSummary(source if isinstance(source, str) else "", counts, named, _excluded(path.parent, problems))


def _table(path: Path, columns: tuple[str, ...], problems: list[str]) -> pa.Table | None:
    """Returns the table with those of ``columns`` that the file has, or None if it is missing or damaged."""
    try:
        table = read_parsed(path, parse_table)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {_first_line(error)}")
        return None
    names = table.column_names
    return table.select([name for name in columns if names.count(name) == 1])


def _classes(table: pa.Table, name: str) -> NDArray[np.int32]:
    """Returns a column of class numbers; ValueError for any other values."""
    values = _whole(table, name, pa.int64())
    if len(values) and not 0 <= values.min() <= values.max() < _MOST_CLASSES:
        raise ValueError(f"{name} has values below 0 or above {_MOST_CLASSES:,}")
    return values.astype(np.int32)


def _splits(table: pa.Table) -> NDArray[np.int64]:
    """Returns the column split as indices into :data:`SPLITS`."""
    if "split" in table.column_names and pa.types.is_integer(table.schema.field("split").type):
        values = _whole(table, "split", pa.int64())
    else:
        words = _whole(table, "split", pa.string()).tolist()
        values = np.array([SPLITS.index(word) if word in SPLITS else -1 for word in words], np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < len(SPLITS):
        raise ValueError(f"split has values other than {', '.join(SPLITS)}")
    return values


def _whole(table: pa.Table, name: str, kind: pa.DataType) -> NDArray:
    """Returns a column without empty cells as ``kind``."""
    if name not in table.column_names:
        raise ValueError(f"it has no column {name}")
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{name} has {column.null_count:,} empty cells")
    same = pa.types.is_boolean if kind == pa.bool_() else pa.types.is_integer if kind == pa.int64() else None
    if same is not None and not same(column.type):
        raise ValueError(f"{name} has values of type {column.type}")
    return column.cast(kind).to_numpy()


def _group_names(table: pa.Table) -> NDArray[np.object_] | None:
    """Returns the groups, with None for images without one; None if no image has a group."""
    if "group" not in table.column_names or table.column("group").null_count == len(table):
        return None
    return np.array(table.column("group").cast(pa.string()).to_pylist(), dtype=object)


def _excluded(folder: Path, problems: list[str]) -> tuple[tuple[str, str], ...]:
    """Returns (path, reason) of the files that were excluded when the data set was scanned."""
    path = folder / "excluded.csv"
    try:
        text = read_own(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    except csv.Error as error:
        problems.append(_left_out(path, error))
        return ()
    return tuple((row.get("path") or "", row.get("reason") or "") for row in rows)


def _left_out(path: Path, error: Exception) -> str:
    return f"{path.name} is left out: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
