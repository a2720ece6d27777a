"""The history of a run is what its events say; a frame where pandas is installed, else arrays."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagewright.report.history import history
from stagewright.report.read import read_run


@pytest.fixture
def without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)


def test_columns_are_those_of_the_table_of_evaluations(small_run: Path, without_pandas: None) -> None:
    found: Any = history(read_run(small_run))
    with (small_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert isinstance(found, dict) and len(rows) >= 2
    assert found["step"].tolist() == [int(row["step"]) for row in rows]
    assert len({len(column) for column in found.values()}) == 1
    kinds = {name.removesuffix("_top1") for name in found if name.endswith("_top1")} - {"train", "val"}
    better = [found[f"{kind}_top1"][at] for at, kind in enumerate(found["weights"])]
    assert kinds >= {"raw"} and np.array_equal(found["val_top1"], better) and found["best"].any()
    with (small_run / "steps.csv").open(newline="") as file:
        rates = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file)}
    assert found["lr"].tolist() == [rates[step] for step in found["step"].tolist()]


def test_before_the_first_evaluation_there_are_columns_and_no_rows(
    small_run: Path, without_pandas: None, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_bytes((small_run / "plan.json").read_bytes())
    found: Any = history(read_run(tmp_path))
    assert {len(column) for column in found.values()} == {0} and "val_loss" in found


def test_with_pandas_it_is_a_frame(small_run: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found = history(read_run(small_run))
    assert isinstance(found, pandas.DataFrame) and list(found)[:3] == ["step", "epoch", "stage"]
