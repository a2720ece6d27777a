"""What the report says of the weights that were compared at the end, and of runs that compared none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagewright.report import results
from stagewright.report.read import read_run
from stagewright.report.write import write
from stagewright.rundir.directory import RunDir
from stagewright.rundir.summary import read_summary

RunWriter = Callable[..., Path]

FINALISTS = [
    {"weights": "head", "step": 300, "coefficient": 0.0, "loss": 0.25, "top1": 92.0},
    {"weights": "0.25 ema + 0.75 head", "step": 1000, "coefficient": 0.25, "loss": 0.2, "top1": 93.0},
    {"weights": "0.5 ema + 0.5 head", "step": 1000, "coefficient": 0.5, "loss": None, "top1": None},
    {"weights": "0.75 ema + 0.25 head", "step": 1000, "coefficient": 0.75, "loss": 0.1234, "top1": 95.0},
    {"weights": "ema", "step": 1000, "coefficient": 1.0, "loss": 0.15, "top1": 94.0},
]
AGAINST = {"val": {"points": 3.0, "low": 0.96, "high": 5.0, "gained": 10, "lost": 1, "images": 300}}


def with_finalists(folder: Path, **changes: Any) -> Path:
    summary = json.loads((folder / "summary.json").read_text())
    summary["chosen"] |= {"weights": "0.75 ema + 0.25 head", "step": 1000}
    summary |= {"finalists": FINALISTS, "against_head": AGAINST, **changes}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def folder(make_run: RunWriter, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_the_page_has_all_that_were_compared(folder: Path) -> None:
    page = write(with_finalists(folder)).read_text()
    assert "<b>0.75 EMA + 0.25 head</b> (chosen)" in page and page.count("(chosen)") == 1
    assert "0.1234" in page and "0.5 EMA + 0.5 head" in page and "–" in page
    assert "Against the head alone: val +3.00 points (95 % interval +0.96 to +5.00; 10 of 300 pictures gained" in page
    sentence = results.choice_sentence(read_run(folder))
    assert "The 0.75 EMA + 0.25 head weights after step 1,000" in sentence and "95.0 % of the validation" in sentence
    assert "lowest calibrated validation loss decides" in sentence


def test_a_head_that_won_is_said_to_have(folder: Path) -> None:
    chosen = {"step": 300, "weights": "head", "stage": "small", "select": "last"}
    record = read_run(with_finalists(folder, chosen=chosen))
    assert results.head_sentence(record).startswith("The head alone is chosen: what")
    assert [row.chosen for row in results.finalist_rows(record)] == [True, False, False, False, False]


def test_a_summary_of_an_earlier_version_has_none(folder: Path) -> None:
    record = read_run(folder)
    assert "finalists" not in record.summary
    assert results.finalist_rows(record) == [] and results.head_sentence(record) == ""
    assert "validation loss</th>" not in write(folder).read_text()
    assert read_summary(RunDir(folder))["status"] == "finished"


@pytest.mark.parametrize(
    "changes",
    [
        {"finalists": [{"weights": "head"}]},
        {"finalists": {"head": 1}},
        {"finalists": [{**FINALISTS[0], "coefficient": 7.0}]},
        {"against_head": {"val": {"points": "3"}}},
        {"against_head": {"../x": AGAINST["val"]}},
    ],
)
def test_what_does_not_fit_is_left_out(folder: Path, changes: dict[str, Any]) -> None:
    record = read_run(with_finalists(folder, **changes))
    assert any("a field is left out" in problem for problem in record.problems)
    assert next(iter(changes)) not in record.summary
    assert "Result" in write(folder).read_text()
