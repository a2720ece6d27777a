"""A Run in Python: it stands for its directory, evaluates itself, and shows itself in a notebook."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import stagewright as sw
from stagewright.errors import CheckpointError


@pytest.fixture
def run(small_run: Path) -> sw.Run:
    return sw.Run(small_run)


def test_it_stands_for_its_directory(run: sw.Run, small_run: Path) -> None:
    assert os.fspath(run) == str(small_run) and Path(run) == small_run
    assert sw.runs(run)[0].status == "finished" and run.finished and sw.load_bundle(run).classes == run.model.classes


def test_it_evaluates_itself(run: sw.Run, picture_folder: Path) -> None:
    own = run.evaluate(device="cpu", workers=0)
    assert own.top1 == pytest.approx(run.summary["top1"]["test"])
    assert own.result.images == np.asarray(run.confusion).sum()
    assert np.trace(run.confusion.counts) == round(own.top1 / 100 * own.result.images)
    others = run.evaluate(picture_folder, near=False, device="cpu", workers=0)
    assert others.to_dict() == sw.evaluate(run, picture_folder, near=False, device="cpu", workers=0).to_dict()
    assert len(repr(others)) < 200  # a notebook keeps it beside the HTML
    html = others._repr_html_()
    assert f"top-1 {others.top1:.2f} %" in html and "balanced accuracy" in html and ">slanted<" in html


def test_its_model_is_loaded_once_and_predicts(run: sw.Run) -> None:
    assert run.model is run.model
    mistake = run.mistakes(1)[0]
    (found,) = run.model.predict(mistake.path)
    assert found.answer == mistake.answer and found.answer_probability == pytest.approx(mistake.probability, abs=1e-4)
    assert f"<b>{found.answer}" in found._repr_html_()


def test_it_shows_itself(run: sw.Run) -> None:
    assert "top-1, test" in run._repr_html_()
    assert len(repr(run.plot())) < 500
    assert run.plot()._repr_html_().count("<svg") == 2 and run.plot("confusion")[0].name == "confusion"
    assert next(iter(run.history)) == "step"


def test_a_hostile_name_of_a_class_is_only_text(run: sw.Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "<img src=x onerror=alert(1)>")
    plan = copied / "plan.json"
    plan.write_text(plan.read_text().replace('"slanted"', '"<script>alert(1)</script>"'))
    hostile = sw.Run(copied)
    for html in (hostile._repr_html_(), hostile.confusion._repr_html_(), hostile.plot("confusion")._repr_html_()):
        assert "<script" not in html and "<img src=x" not in html


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the directory of a run"):
        sw.Run(tmp_path).history  # noqa: B018
