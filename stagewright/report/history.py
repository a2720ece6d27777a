"""The evaluations of a run as columns, for Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagewright.report.read import RunRecord


class History(Protocol):
    """A ``pandas.DataFrame`` where pandas is installed, else a dict of arrays: both give a column by its name, and their names
    when iterated over."""

    def __getitem__(self, name: str, /) -> ArrayLike:
        """Returns the column ``name``, one value for each evaluation."""
        ...

    def __iter__(self) -> Iterator[str]: ...


def history(record: RunRecord) -> History:
    """Returns one row for each evaluation, in order.

    Columns: ``step`` (finished updates), ``epoch``, ``stage`` (name), ``lr`` of the last update, ``train_loss``, ``train_top1``,
    ``val_loss`` and ``val_top1`` of the better ``weights``, ``best`` (whether they were the best so far), ``train_seconds``; then
    ``raw_loss``, ``raw_top1`` and the same of each other kind of weights. top1 is in percent; NaN is not known.
    """
    return as_frame(_columns(record))


def as_frame(columns: Mapping[str, NDArray[np.generic]]) -> History:
    """Returns ``columns`` of equal length as a ``pandas.DataFrame`` where pandas is installed, else as a dict."""
    try:
        from pandas import DataFrame  # type: ignore[import-not-found,unused-ignore]  # an extra, not needed otherwise
    except ImportError:
        return cast(History, dict(columns))
    return cast(History, DataFrame(dict(columns)))


def _columns(record: RunRecord) -> dict[str, NDArray[np.generic]]:
    events = record.evaluations
    better = [event.results.get(event.chosen) for event in events]
    kinds = dict.fromkeys(kind for event in events for kind in event.results)
    columns: dict[str, NDArray[np.generic]] = {
        "step": np.array([event.step for event in events], np.int64),
        "epoch": _floats([event.epoch for event in events]),
        "stage": np.array([event.stage_name for event in events], dtype=object),
        "lr": _rates(record, [event.step for event in events]),
        "train_loss": _floats([event.train_loss for event in events]),
        "train_top1": _floats([event.train_top1 for event in events]),
        "val_loss": _floats([None if one is None else one.loss for one in better]),
        "val_top1": _floats([None if one is None else one.top1 for one in better]),
        "weights": np.array([event.chosen for event in events], dtype=object),
        "best": np.array([event.best for event in events], np.bool_),
        "train_seconds": _floats([event.train_seconds for event in events]),
    }
    for kind in kinds:
        found = [event.results.get(kind) for event in events]
        columns[f"{kind}_loss"] = _floats([None if one is None else one.loss for one in found])
        columns[f"{kind}_top1"] = _floats([None if one is None else one.top1 for one in found])
    return columns


def _rates(record: RunRecord, steps: list[int]) -> NDArray[np.float64]:
    """Returns the learning rate of the last update before each of ``steps``; NaN where there was none."""
    rates = np.concatenate([[np.nan], record.steps["lr"]])
    return rates[np.searchsorted(record.steps["step"], steps, side="right")]


def _floats(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)
