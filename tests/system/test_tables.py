"""Tables on terminals of any width: columns are divided into parts, and numbers never."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from stagewright.system.tables import FittingTable
from stagewright.system.terminal import Terminal


def shown(table: FittingTable, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    Terminal(out).print(table)
    return out.getvalue().splitlines()


def wide() -> FittingTable:
    table = FittingTable(Text("Title"))
    table.add_column("name")
    for number in range(8):
        table.add_column(f"number {number}", justify="right", no_wrap=True)
    for name in ("cat", "a-very-long-name-of-a-class-of-animals-and-things", "two words"):
        table.add_row(name, *(f"{number}1,234.56" for number in range(8)))
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130])
def test_no_number_is_cut_or_broken(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(wide(), width, monkeypatch)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines) and "…" not in text
    assert all(text.count(f"{number}1,234.56") == 3 for number in range(8)), text
    assert text.count("number 7") == 1 and text.count("Title") == 1
    parts = sum(line.split()[:1] == ["name"] for line in lines)
    assert (parts > 1) == (width < 130), text


def test_long_names_give_way_before_the_table_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FittingTable()
    table.add_column("name")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_row("a-very-long-name-of-a-class-of-animals-and-things", "1,234")
    lines = shown(table, 40, monkeypatch)
    assert sum("1,234" in line for line in lines) == 1 and all(len(line) <= 40 for line in lines)
    joined = "".join(line.replace("1,234", "").strip() for line in lines)
    assert "a-very-long-name-of-a-class-of-animals-and-things" in joined
