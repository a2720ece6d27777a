"""Every block of docs/extend.md and of its notes is a file that works as it stands, and every part has a test of its own."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewright.system import named_functions

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "extend.md").read_text()
NOTES = (DOCS / "notes" / "extend.md").read_text()
FILES = dict(re.findall(r"(?m)^```(?:python|yaml)\n# (\S+)\n((?s:.*?))^```$", PAGE + NOTES))
TESTS = [name for name in FILES if name.startswith("test_")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files in the current folder, importable as for pytest there."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(named_functions, "_told", set())
    modules = [name.removesuffix(".py") for name in FILES]
    for name in modules:
        assert name not in sys.modules
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", TESTS)
def test_the_blocks_do_what_they_say(folder: Path, name: str) -> None:
    module = importlib.import_module(name.removesuffix(".py"))
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_every_section_has_a_test_and_every_block_a_name() -> None:
    sections = re.split(r"(?m)^## ", PAGE)[1:]
    wanted = ("model", "augmentation", "loss", "optimizer", "schedule", "observer", "data source", "recipe")
    assert [re.sub(r"^An? ", "", section.partition("\n")[0]) for section in sections] == list(wanted)
    for section in sections:
        assert re.search(r"(?m)^# test_\w+\.py$", section), section.partition("\n")[0]
        assert "*Given:*" in section and "*Returns:*" in section
    assert len(FILES) == len(re.findall(r"(?m)^```\w+$", PAGE + NOTES)), "each block begins with its file's name"
