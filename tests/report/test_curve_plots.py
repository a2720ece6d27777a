"""Curves in the figures: the same line with fewer points; which classes have a name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagewright.measures.curves import Curve
from stagewright.report import curve_plots, theme
from stagewright.report.curve_plots import NAMED, precision_points, roc_points, thinned
from stagewright.report.gallery import Gallery
from stagewright.report.html import page
from stagewright.report.read import read_run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def with_probabilities(run: Path, change: str = "") -> None:
    """Adds the probabilities of all classes to the tables of a written run."""
    for split in ("val", "test"):
        path = run / "evaluations" / f"{split}.parquet"
        table = pq.read_table(path)
        random = np.random.default_rng(0)
        logits = random.normal(size=(len(table), 10))
        logits[np.arange(len(table)), table["predicted"].to_numpy()] += 3
        shares = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        if change == "above 1":
            shares[5, 3] = 1.5
        if change == "not a number":
            shares[5, 3] = np.nan
        values = pa.array(shares.ravel().astype(np.float64) if change == "double" else shares.ravel())
        column = pa.FixedSizeListArray.from_arrays(values, 10)
        if change == "text":
            column = pa.array(["0.5"] * len(table))
        pq.write_table(table.append_column("probabilities", column), path)


def test_a_thinned_line_keeps_its_ends_and_its_course() -> None:
    random = np.random.default_rng(0)
    positive = random.random(5000) < 0.3
    curve = Curve.of(positive, (positive + random.normal(size=5000)).astype(np.float32))
    for points in (roc_points, precision_points):
        x, y = points(curve)
        few_x, few_y = thinned(x, y)
        assert len(few_x) <= 201 and (few_x[0], few_y[0], few_x[-1], few_y[-1]) == (x[0], y[0], x[-1], y[-1])
        if points is roc_points:
            assert np.abs(np.interp(x, few_x, few_y) - y).max() < 0.02
    assert roc_points(curve)[1][-1] == 1 and thinned(np.arange(3.0), np.arange(3.0))[0].tolist() == [0, 1, 2]


def test_the_worst_classes_have_a_name(run: Path) -> None:
    with_probabilities(run)
    record = read_run(run)
    with theme.themed():
        drawings = {drawing.name: drawing for drawing in curve_plots.draw(record)}
    assert list(drawings) == ["roc", "precision-recall"]
    areas = [one.value or 0.0 for one in record.measures["test"].classes["auc"]]
    worst = [record.classes[at] for at in np.argsort(areas)[: NAMED - 1]]
    words = re.findall(r"<text[^>]*>([^<]*)<", drawings["roc"].svg)
    legend = [word for word in words if re.search(r" 0\.\d{3}$", word) and "mean" not in word]
    assert [word.rsplit(" ", 1)[0] for word in legend] == worst
    assert any("5 classes with larger areas" in word for word in words)


def test_the_page_has_the_measures(run: Path) -> None:
    with_probabilities(run)
    record = read_run(run)
    text = page(record, [], Gallery(record))
    means = record.measures["test"].means
    for name in ("balanced_accuracy", "macro_f1", "macro_auc", "log_loss"):
        one = means[name]
        assert f"{one.value:.4f}" in text and f"{one.low:.4f} to {one.high:.4f}" in text
    f1 = record.measures["test"].classes["f1"][3]
    assert f1.value is not None and f1.low is not None and f1.high is not None
    assert f"{100 * f1.value:.1f} <small>{100 * f1.low:.1f} to {100 * f1.high:.1f}</small>" in text


def test_without_probabilities_there_are_no_curves(run: Path) -> None:
    record = read_run(run)
    assert list(curve_plots.draw(record)) == [] and record.measures["test"].means["macro_auc"].value is None
    assert record.measures["test"].means["macro_f1"].value is not None  # an older run has those


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("above 1", "probabilities has values outside of 0 to 1"),
        ("not a number", "probabilities has values outside of 0 to 1"),
        ("double", "not lists of float32"),
        ("text", "not lists of float32"),
    ],
)
def test_probabilities_that_are_none_are_left_out(run: Path, change: str, said: str) -> None:
    with_probabilities(run, change)
    record = read_run(run)
    assert record.predictions == {} and sum(said in problem for problem in record.problems) == 2
