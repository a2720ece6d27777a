"""A run in a notebook: its table, and its figures by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stagewright.errors import RecipeError
from stagewright.report.card import plots, run_html
from stagewright.report.drawing import Drawing
from stagewright.report.read import read_run


def test_the_table_says_what_the_run_is(small_run: Path) -> None:
    record = read_run(small_run)
    html = run_html(record)
    for words in (f"{record.name}: finished", "top-1, test", "quick", record.summary["model"]):
        assert words in html
    assert f"{record.summary['top1']['test']:.1f} %" in html and "<script" not in html


def test_figures_are_found_by_name(small_run: Path, tmp_path: Path) -> None:
    record = read_run(small_run)
    found = plots(record, ("loss", "lr_step", "confusion"))
    assert [found[at].name for at in range(len(found))] == ["loss_step", "lr_step", "confusion"]
    found[0].save(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == found[0].png
    with pytest.raises(RecipeError, match=r"plot 'los'(?s:.*)loss, accuracy"):
        plots(record, ("los",))


def test_two_figures_of_one_name_share_no_identifier() -> None:
    """Clip paths of one output of a notebook would otherwise cut what another shows."""
    one, other = (
        Drawing(
            "loss",
            "Loss",
            b"",
            f'<svg><clipPath id="loss-p1"><rect width="{width}"/></clipPath>'
            '<g clip-path="url(#loss-p1)"/><use xlink:href="#loss-p1"/></svg>',
        )
        for width in (1, 2)
    )
    ids = [re.findall(r'(?:id="|#)(loss-[\w-]+)', drawing._repr_html_()) for drawing in (one, other)]
    assert [len(set(found)) for found in ids] == [1, 1] and len(ids[0]) == 3 and ids[0] != ids[1]
