"""compare, as a person types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import typed
from compared_runs import some_right, write_run

LONG = "efficientnet_v2_s-with-a-long-name-0.001"


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    every = []
    for name, share in (("good", 0.8), (LONG, 0.75)):
        recipe = {"lr": {"peak": share}}
        every += [
            write_run(tmp_path / f"{name}-s{at}", at, some_right(share, at + 1), recipe=recipe) for at in range(3)
        ]
    return every


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_the_table_fits_and_breaks_no_number(
    six: list[Path], width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = typed(capsys, monkeypatch, "compare", *six)
    assert code == 0 and not err and max(map(len, out.splitlines())) <= width
    assert re.search(r"\d\d\.\d\d \(\d\d\.\d to \d\d\.\d\)", out) and "not told apart" in " ".join(out.split())
    assert " ".join(out.split()).startswith("Intervals of 95 % speak of training again")


def test_each_format_goes_where_it_is_told(
    six: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = typed(capsys, monkeypatch, "compare", *six, "--format", "json", "--margin", 3)
    assert code == 0 and json.loads(out)["margin"] == 3.0
    assert typed(capsys, monkeypatch, "compare", *six, "--format", "csv")[1].startswith("variant,")
    assert "| variant |" in typed(capsys, monkeypatch, "compare", *six, "--format", "md")[1]
    code, out, _ = typed(capsys, monkeypatch, "compare", *six, "--format", "html")
    assert code == 0 and Path(out.strip()) == (tmp_path / "compare.html").resolve()
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    code, out, _ = typed(capsys, monkeypatch, "compare", *six, "--format", "csv", "--out", tmp_path / "t.csv")
    assert (
        code == 0 and out.strip() == str(tmp_path / "t.csv") and (tmp_path / "t.csv").read_text().startswith("variant,")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--level", "40"], "a level of 40"),
        (["--margin", "0"], "a margin of 0"),
        (["--out", "x.txt"], "--out"),
        (["--data", "digits"], "--data"),
        (["--format", "pdf"], "pdf"),
    ],
)
def test_what_does_not_fit_is_refused(
    six: list[Path], words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = typed(capsys, monkeypatch, "compare", *six, *words)
    assert code == 2 and said in err and not out
