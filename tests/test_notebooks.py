"""Notebooks, run in a kernel: what a cell shows while it trains, and the notebook that people are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks import ROOT, executed, notebook_of, printed, shown

LONGEST = 100
"""Characters of a line that a cell of a usual notebook shows without breaking it."""
FIRST = ROOT / "examples" / "first-model.ipynb"


def longest(text: str) -> int:
    return max((len(line) for line in text.splitlines()), default=0)


@pytest.mark.slow
def test_training_draws_in_its_places(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress and curves take two places of the output, however many evaluations there are."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = notebook_of(
        "import stagewright as sw\nwhere = sw.Execution(device='cpu', workers=0, pages=False)",
        f"run = sw.train({str(picture_folder)!r}, 'quick', image_size=32, batch_size=16, epochs=7, execution=where, out='run')",
        "print(len(run.history['step']))",
    )
    _, training, listed = executed(made, tmp_path, tmp_path / "kernel", monkeypatch).cells
    evaluations = int(printed(listed.outputs))
    assert evaluations >= 7 and len(training.outputs) <= 5
    curves = [html for html in shown(training.outputs) if "<svg" in html]
    assert len(curves) == 1 and curves[0].count("<svg") == 2, "loss and accuracy, drawn once in one place"
    marks = [group.count("<use") for group in curves[0].split('<g id="')]
    assert evaluations in marks, "the last figure has every evaluation"
    text = printed(training.outputs)
    assert "epoch" not in text and "test pictures (95 % interval" in text and longest(text) <= LONGEST
    (line,) = [html for html in shown(training.outputs) if "<svg" not in html]
    assert "epoch" in line and "<progress" not in line, "the last evaluation stays"
    assert printed(training.outputs, "stderr") == ""


@pytest.mark.long
def test_the_first_notebook_runs_and_shows_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = nbformat.read(FIRST, as_version=4)
    for cell in kept.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    ran = executed(kept, tmp_path, tmp_path / "kernel", monkeypatch)
    check_shown(ran)
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_first_notebook_is_kept_with_its_outputs() -> None:
    """They are what a person sees who only looks at it; the cells are those that the other test runs."""
    kept = nbformat.read(FIRST, as_version=4)
    check_shown(kept)
    assert FIRST.stat().st_size < 300_000
    text = FIRST.read_text()
    here = str(Path(__file__).resolve().parent.parent)
    assert not re.search(r"/home/|/root/|/tmp/|Users", text) and here not in text, (
        "no folder of the machine where it ran"
    )


def check_shown(notebook: Any) -> None:
    """Every code cell has its output: figures, tables and pictures where the text says so, and nothing on stderr."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count and printed(cell.outputs, "stderr") == "" for cell in cells)
    silent = [cell.source.splitlines()[0] for cell in cells if not printed(cell.outputs) and not shown(cell.outputs)]
    assert silent == []
    assert longest("".join(printed(cell.outputs) for cell in cells)) <= LONGEST
    assert max(longest(cell.source) for cell in notebook.cells if cell.cell_type == "code") <= LONGEST
    assert any("digit-8/copy.png" in printed(cell.outputs) for cell in cells), "the inspection finds the copy"
    html = {cell.source.split("\n")[0]: "".join(shown(cell.outputs)) for cell in cells}
    for part, mark in (
        ('run = sw.train(PHOTOS, **CHOICES, out="runs/first")', "<svg"),
        ('run.plot("loss", "accuracy")', "<svg"),
        ("run.confusion", "<table"),
        ("run.mistakes(6)", "<img"),
        ("sw.preview(PHOTOS, **CHOICES, shown=6)", "<iframe"),
        ("run", "top-1, test"),
        ("run.evaluate()", "balanced accuracy"),
    ):
        assert mark in html[part], part
