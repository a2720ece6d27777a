"""Python files of the current folder are not ours to run (attack H1)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagewright.augment.custom import load_custom
from stagewright.errors import RecipeError
from stagewright.observers.pages import Pages

TRAP = "open({marker!r}, 'a').write(__name__ + ' ')\nraise ImportError('not the real one')\n"
SMALL = ["--recipe", "quick", "--model", "cifar_resnet18", "--set", "model.options={width: 4}", "--img-size", "8"]


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with files named as libraries; returns what they leave where they are run."""
    folder, marker = tmp_path / "downloads", tmp_path / "marker"
    folder.mkdir()
    for name in ("numpy", "html", "json", "random", "csv", "typing", "matplotlib", "stagewright", "sitecustomize"):
        (folder / f"{name}.py").write_text(TRAP.format(marker=str(marker)))
    monkeypatch.chdir(folder)
    return marker


@pytest.fixture(scope="module")
def run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import stagewright as sw

    out = tmp_path_factory.mktemp("isolation") / "run"
    small = ["model.name=cifar_resnet18", "model.options={width: 4}", "image_size=8", "batch_size=8", "epochs=4st"]
    sw.train(picture_folder, "quick", overrides=small, out=out, execution=sw.Execution(quiet=True, pages=False))
    return out


def test_the_report_of_a_run_is_written_all_the_same(run: Path, trapped: Path) -> None:
    (run / "report.html").unlink(missing_ok=True)
    Pages(run).close()
    assert (run / "report.html").exists() and not trapped.exists()


def test_the_command_line_started_as_a_module(trapped: Path) -> None:
    """The package is found where it is installed; the folder is off the path before anything else is imported."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    (Path.cwd() / "stagewright.py").unlink()  # which Python itself would run in the package's place
    (Path.cwd() / "typing.py").unlink()  # and what runpy itself needs
    done = subprocess.run(
        [sys.executable, "-m", "stagewright", "recipes"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "finetune" in done.stdout, done.stderr
    assert not trapped.exists()


def test_a_function_of_ones_own_is_found_in_the_current_folder_alone_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_changes.py").write_text("import json\n\ndef change(images, keys):\n    return images\n")
    (tmp_path / "json.py").write_text("raise ImportError('not the real one')")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_custom("my_own_changes:change").__name__ == "change"
    assert sys.path == before
    sys.modules.pop("my_own_changes")
    with pytest.raises(RecipeError, match="into the current folder"):
        load_custom("no_such_module_here:change")
    assert sys.path == before
