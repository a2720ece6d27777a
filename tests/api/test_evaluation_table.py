"""The table of answers: names, values, what is missing, and cells that a spreadsheet does not take for formulas."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagewright.api.evaluate import EvaluationReport
from stagewright.api.evaluation_table import check_table_path
from stagewright.api.seen import Seen
from stagewright.data.account import Account
from stagewright.engine.evaluate import Evaluation, Predictions
from stagewright.errors import StorageError


def report() -> EvaluationReport:
    answers = Predictions(
        predicted=np.array([1, 1, -1]),
        probability=np.array([0.75, 0.5, 0.1], np.float32),
        true_probability=np.array([0.25, 0.5, 0.1], np.float32),
        readable=np.array([True, True, False]),
        labels=np.array([0, 1, 0]),
        losses=np.array([1.5, 0.5, 9.0]),
        ranks=np.array([1, 0, 7]),
    )
    seen = Seen(np.array([0, 1, 0], bool), np.array([0, 0, 1], bool), np.array(["", "t/b.png", "t/c.png"], object))
    return EvaluationReport(
        source="x",
        classes=("=SUM(A1)", "köter, groß"),
        labels=np.array([0, 1, 0]),
        groups=["+g", None, "h"],
        result=Evaluation(1.0, 50.0, None, 2, 1, answers),
        account=Account(2),
        paths=pa.array(["=a.png", "b\n.png", "c.png"]),
        seen=seen,
        shown=("=SUM(A1)", "köter, groß"),
    )


def test_rows_have_names_and_what_is_missing_is_null() -> None:
    first, second, lost = report().table().to_pylist()
    assert first == {
        **{"path": "=a.png", "label": "=SUM(A1)", "predicted": "köter, groß", "probability": 0.75},
        **{"true_probability": 0.25, "correct": False, "loss": 1.5, "rank": 2, "seen": "", "twin": ""},
        **{"group": "+g", "readable": True},
    }
    assert (second["correct"], second["rank"], second["seen"], second["twin"], second["group"]) == (
        *(True, 1, "same", "t/b.png", None),
    )
    answers = ("predicted", "probability", "true_probability", "correct", "loss", "rank")
    assert all(lost[name] is None for name in answers) and lost["seen"] == "near" and not lost["readable"]


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    written = report().write(tmp_path / "a.parquet")
    assert pq.read_table(written).equals(report().table())
    with report().write(tmp_path / "a.CSV").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["./=a.png", "b\n.png", "c.png"]
    assert rows[0]["label"] == "'=SUM(A1)" and rows[0]["predicted"] == "köter, groß" and rows[0]["group"] == "'+g"
    assert (rows[0]["loss"], rows[0]["correct"], rows[2]["correct"], rows[2]["predicted"]) == ("1.5", "false", "", "")


def test_a_wrong_place_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"ends in \.csv or \.parquet"):
        check_table_path(tmp_path / "a.xlsx")
    with pytest.raises(StorageError, match="there is no folder"):
        check_table_path(tmp_path / "no" / "a.csv")
