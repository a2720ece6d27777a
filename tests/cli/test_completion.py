"""Versions, help and completion by the tab key: they answer at once, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError("torch is imported")
sys.meta_path.insert(0, NoTorch())
from stagewright.__main__ import run
run()
"""


def answer(*words: str, folder: Path = ROOT, **env: str) -> str:
    """Returns what the command prints; importing torch ends it."""
    done = subprocess.run(
        [sys.executable, "-c", START, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "torch is imported" not in done.stderr, done.stderr
    return done.stdout


def completions(line: str, folder: Path = ROOT) -> list[str]:
    """Returns what bash is offered at the end of ``line``."""
    at = str(len(line.split(" ")) - 1)
    return answer(folder=folder, _STAGEWRIGHT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=at).split()


def test_version_names_stagewright_torch_and_python() -> None:
    words = answer("--version").replace(",", "").split()
    assert words[::2] == ["stagewright", "torch", "Python"]
    assert words[5] == ".".join(map(str, sys.version_info[:3])) and words[3][0].isdigit()


def test_recipes_and_their_fields_are_completed() -> None:
    assert completions("stagewright train --recipe ") >= ["auto", "camera-trap-swin"]
    assert completions("stagewright train --recipe fin") == ["finetune"]
    assert completions("stagewright recipes show prog") == ["progressive"]
    assert completions("stagewright plan --set optimizer.weight_d") == ["optimizer.weight_decay="]
    assert "stages.0.lr.peak=" in completions("stagewright train data --set stages.0.lr.")


def test_runs_are_completed_with_and_without_their_folder(tmp_path: Path) -> None:
    for name in ("runs/quick-1", "runs/quick-2", "runs/no-run", "other", "one"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/quick-1", "runs/quick-2", "one"):
        (tmp_path / name / "plan.json").write_text("{}")
    assert completions("stagewright resume ", tmp_path) == ["one", "runs/quick-1", "runs/quick-2"]
    assert completions("stagewright report one runs/quick-2", tmp_path) == ["runs/quick-2"]
    assert completions("stagewright evaluate runs/", tmp_path) == ["runs/quick-1", "runs/quick-2"]
    assert completions("stagewright why on", tmp_path) == ["one"]
    assert completions("stagewright predict no/such/", tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(shell: str) -> None:
    script = answer("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_STAGEWRIGHT_COMPLETE" in script and f"complete_{shell}" in script


@pytest.mark.parametrize("width", ["60", "80", "130"])
@pytest.mark.parametrize("group", [(), ("data",), ("recipes",)])
def test_the_list_of_commands_cuts_no_sentence(width: str, group: tuple[str, ...]) -> None:
    text = answer(*group, "--help", COLUMNS=width, TERMINAL_WIDTH=width)
    listed = text[text.index("Commands:") :]
    assert "..." not in listed and "…" not in listed and listed.rstrip().endswith(".")
    assert text.startswith("Usage: stagewright") and all(len(line) <= int(width) for line in text.splitlines())
