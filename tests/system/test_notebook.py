"""What is shown in a notebook: escaped, in the page's own colours, and one line that replaces itself."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stagewright.system import notebook

HOSTILE = "<script>alert('x')</script>\x1b[2J\n&"


class Kernel:
    """Stands for a notebook's display: keeps what was shown, as (kind of call, content)."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, dict[str, str]]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Kernel:
        assert raw and display_id
        self.shown.append(("new", content))
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(("again", content))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A notebook around the test, with the two places where IPython is met."""
    kernel, module, display = Kernel(), ModuleType("IPython"), ModuleType("IPython.display")
    shell: Any = SimpleNamespace(kernel=kernel)
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = kernel.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return kernel


def test_a_terminal_is_no_notebook(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebook.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())  # ipython in a terminal
    assert not notebook.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not notebook.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_notebook()


def test_the_line_replaces_itself_and_vanishes(kernel: Kernel) -> None:
    line = notebook.NotebookLine()
    line.close()
    line.show(3, 10, f"loss 1 {HOSTILE}", "")
    line.show(4, 0, "loss 2", "epoch 1")
    line.close()
    line.close()
    assert [kind for kind, _ in kernel.shown] == ["new", "again", "again"]
    assert kernel.shown[1][1]["text/plain"] == "4/0\nloss 2\nepoch 1"
    first, last = kernel.shown[0][1]["text/html"], kernel.shown[-1][1]["text/html"]
    assert '<progress value="3" max="10"' in first and "<script" not in first and last == ""


def test_it_may_leave_a_line_and_then_begins_anew(kernel: Kernel) -> None:
    line = notebook.NotebookLine()
    line.show(3, 10, "loss 1")
    line.close(f"epoch 3 {HOSTILE}")
    line.show(1, 10, "again")
    assert [kind for kind, _ in kernel.shown] == ["new", "again", "new"]
    left = kernel.shown[1][1]["text/html"]
    assert "epoch 3" in left and "<progress" not in left and "<script" not in left


def test_a_cell_breaks_lines_between_words(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "short\n\n" + "many words " * 30
    lines = notebook.cell_text(text).split("\n")
    assert lines[:2] == ["short", ""] and " ".join(lines[2:]) == text[7:].strip()
    assert max(map(len, lines)) <= notebook.CELL_WIDTH
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert notebook.cell_text(text) == text


def test_texts_are_escaped() -> None:
    table = notebook.table((HOSTILE, "n"), [(HOSTILE, HOSTILE)])
    tile = notebook.tile('" onerror="alert(1)', HOSTILE, HOSTILE)
    for html in (table, tile, notebook.heading(HOSTILE, HOSTILE)):
        assert "<script" not in html and "\x1b" not in html and "&lt;script&gt;" in html
    assert 'src="&quot; onerror=' in tile
    assert "<thead" in table and "<thead" not in notebook.table((), [("a",)])


def test_a_row_of_another_length_is_shown_and_the_page_may_be_dark() -> None:
    html = notebook.table(("a", "b"), [("1", "2")])
    assert "color:inherit" in html and "#fff" not in html and "background:white" not in html
