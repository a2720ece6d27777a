"""The blocks of docs/python.md run as they stand, one after the other, on a folder of class folders."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import stagewright as sw

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"(?m)^```python\n((?s:.*?))^```$", PAGE)


def test_the_blocks_run(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(picture_folder, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["run"].finished and len(names["several"]) == 22 and names["prediction"].error is None
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "photos-split.csv" in capsys.readouterr().out


def test_every_named_argument_and_property_is_one() -> None:
    """Of the two tables: a name that is not there any more would be noticed only by a reader."""
    rows = re.findall(r"(?m)^\| (`.*?`) \|", PAGE)
    arguments = {name for row in rows if "run." not in row for name in re.findall(r"`(\w+)`", row)}
    assert arguments <= set(inspect.signature(sw.train).parameters) and len(arguments) > 12
    members = re.findall(r"`run\.(\w+)", PAGE)
    assert len(set(members)) > 4 and all(hasattr(sw.Run, name) for name in members)
    functions = re.findall(r"\bsw\.(\w+)", PAGE)
    assert len(set(functions)) > 10 and set(functions) <= set(dir(sw))
