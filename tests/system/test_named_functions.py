"""Functions by name: found, told of before they run, and named again where a later process can find them."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import own_parts
import pytest

from stagewright.errors import RecipeError
from stagewright.system import named_functions
from stagewright.system.named_functions import check_form, file_of, load_function, name_of, raised_at


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module and a package that leave a mark where they are run."""
    (tmp_path / "a_package").mkdir()
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    (tmp_path / "a_package" / "__init__.py").write_text(mark)
    (tmp_path / "a_package" / "inner.py").write_text(mark + "def f():\n    return 3\n")
    (tmp_path / "a_module.py").write_text(mark + "def f():\n    return 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(named_functions, "_told", set())
    for name in ("a_module", "a_package", "a_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("python:a_module:f", "a_module.py"),
        ("a_package.inner:f", "a_package/inner.py"),
        ("a_package:f", "a_package/__init__.py"),
    ],
)
def test_a_file_is_found_without_running_it(folder: Path, name: str, file: str) -> None:
    path = list(sys.path)
    assert file_of(name) == folder / file
    assert not (folder / "mark").exists() and sys.path == path and "a_package" not in sys.modules


def test_what_is_nowhere_has_no_file(folder: Path) -> None:
    assert file_of("python:absent_module:f") is None
    assert file_of("python:a_module.inner:f") is None
    assert file_of("python:absent_package.inner:f") is None
    assert file_of("python:sys:exit") is None


def test_whose_code_runs_is_said_once_and_before(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    said: list[bool] = []

    class Watching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((folder / "mark").exists())

    handler = Watching()
    named_functions.log.addHandler(handler)
    try:
        for _ in range(2):
            assert load_function("python:a_module:f", "loss", "f()")() == 2
    finally:
        named_functions.log.removeHandler(handler)
        sys.modules.pop("a_module", None)
    assert said == [False]
    assert caplog.messages == [f"loss is code: f, imported from {folder / 'a_module.py'}."]


def test_a_functions_name_finds_it_again() -> None:
    for one in (own_parts.Net, own_parts.focal):
        name = name_of(one, "model.name")
        assert name == f"python:own_parts:{one.__name__}"
        assert load_function(name, "model.name", "") is one


def within() -> Any:
    def inner(num_classes: int) -> None: ...

    return inner


def in_main(num_classes: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda num_classes: None, "is a lambda"),
        (within(), "is within.inner, which is inside a function or class"),
        (own_parts.Net.forward, "is Net.forward, which is inside"),
        (partial(own_parts.Net, width=3), "is a partial"),
        (3, "is a int"),
    ],
)
def test_what_no_other_process_could_find_is_refused(function: Any, given: str) -> None:
    with pytest.raises(RecipeError, match=given) as caught:
        name_of(function, "model.name")
    assert "top level of a module" in caught.value.allowed and "my_model.py" in caught.value.remedy


def test_the_script_that_was_started_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_main, "__module__", "__main__")
    with pytest.raises(RecipeError, match="in_main of the script that was started"):
        name_of(in_main, "loss")


def test_a_name_that_leads_to_another_function_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = own_parts.plain
    monkeypatch.setattr(own_parts, "plain", own_parts.focal)
    with pytest.raises(RecipeError, match="own_parts has another plain"):
        name_of(plain, "loss")
    monkeypatch.undo()
    monkeypatch.setattr(own_parts, "__file__", str(tmp_path / "elsewhere.py"))
    with pytest.raises(RecipeError, match="which own_parts does not lead to"):
        name_of(own_parts.plain, "loss")


@pytest.mark.parametrize(
    "value", ["python:f", "python:", "python:a b:c", "python:a:b.c", "python:a:", "a:b", "python:1a:b"]
)
def test_forms_that_are_none(value: str) -> None:
    with pytest.raises(ValueError, match="is not of the form python:module:function"):
        check_form(value)


def test_where_a_function_failed_is_its_own_line() -> None:
    with pytest.raises(RuntimeError) as caught:
        own_parts.gives_up(2)
    line = Path(own_parts.__file__).read_text().splitlines().index('    raise RuntimeError("no weights today")') + 1
    assert raised_at(caught.value, "python:own_parts:gives_up") == (
        f"RuntimeError: no weights today ({own_parts.__file__}, line {line})"
    )
