"""The confusion matrix and the mistakes of a run against its table of predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import confusion_matrix

from stagewright.errors import CheckpointError, DataError
from stagewright.report.answered import Mistake, confusion, mistakes
from stagewright.report.read import read_run


def test_the_matrix_is_scikit_learns(small_run: Path) -> None:
    found = confusion(read_run(small_run))
    table = pq.read_table(small_run / "evaluations" / "test.parquet")
    label, predicted = (table.column(name).to_numpy() for name in ("label", "predicted"))
    assert np.array_equal(np.asarray(found), confusion_matrix(label, predicted, labels=range(len(found.classes))))
    assert np.asarray(found, dtype=float).dtype == float and found.split == "test"
    true, other = found.classes[0], found.classes[1]
    assert found[true, other] == found.counts[0, 1]
    with pytest.raises(KeyError, match="nobody"):
        found["nobody", other]
    assert f"of {len(label)} test pictures right" in found._repr_html_()


def test_mistakes_are_the_wrong_answers_most_confident_first(small_run: Path) -> None:
    found = mistakes(read_run(small_run), 1000)
    rows = pq.read_table(small_run / "evaluations" / "test.parquet").to_pylist()
    wrong = sorted((row for row in rows if row["label"] != row["predicted"]), key=lambda row: -row["probability"])
    assert len(wrong) > 2 and len(found) == found.errors == len(wrong)
    for one, row in zip(found, wrong, strict=True):
        assert one.path.endswith(row["path"]) and Path(one.path).is_file()
        assert one.label == Path(one.path).parent.name != one.answer
        assert one.probability == pytest.approx(row["probability"])
    few = mistakes(read_run(small_run), 2)
    assert isinstance(few[0], Mistake)
    assert list(few) == list(found[:2]) and few.errors == found.errors
    html = few._repr_html_()
    assert html.count("<img") == 2 and f"2 pictures of {found.errors}" in html and "http" not in html
    with pytest.raises(DataError, match="0 mistakes"):
        mistakes(read_run(small_run), 0)


def test_images_that_are_gone_are_named_and_names_are_escaped(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    path = run / "evaluations" / "test.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("path")
    names = [f"<b>{name}" for name in table.column("path").to_pylist()]
    pq.write_table(table.set_column(at, "path", [names]), path)
    html = mistakes(read_run(run), 3)._repr_html_()
    assert "not there any more" in html and "&lt;b&gt;" in html and "<b><b>" not in html


def test_a_run_that_has_not_answered_yet(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes((small_run / "plan.json").read_bytes())
    for ask in (confusion, lambda record: mistakes(record, 5)):
        with pytest.raises(CheckpointError, match="has no answers to held-out pictures yet"):
            ask(read_run(tmp_path))
