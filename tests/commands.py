"""How tests type a command: in this process, with what it prints and its exit code."""

from __future__ import annotations

import sys

import pytest

from stagewright.cli import main


def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``stagewright WORDS``."""
    monkeypatch.setattr(sys, "argv", ["stagewright", *map(str, words)])
    code = 0
    try:
        main.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
