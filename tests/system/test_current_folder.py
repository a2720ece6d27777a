"""Files in the current folder are data: no command and no process of ours runs them, and none fails because of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_events import make_event

from stagewright.api.train import train
from stagewright.augment.custom import load_custom
from stagewright.errors import RecipeError
from stagewright.observers.report_pages import Pages
from stagewright.recipe.recipes import load
from stagewright.system import children
from stagewright.training.session import Execution

TRAPS = (
    "html",
    "json",
    "numpy",
    "random",
    "csv",
    "typing",
    "yaml",
    "rich",
    "typer",
    "stagewright",
    "socket",
    "selectors",
)


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds Python files that leave a mark where they are run; returns the mark."""
    folder, mark = tmp_path / "downloads", tmp_path / "mark"
    folder.mkdir()
    for name in (*TRAPS, "__future__", "multiprocessing"):
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise ImportError('trap')\n"
        )
    monkeypatch.chdir(folder)
    monkeypatch.delenv(children.SAFE, raising=False)
    return mark


def ran(mark: Path) -> str:
    return mark.read_text() if mark.exists() else ""


def test_the_report_is_written_and_nothing_here_is_run(
    trapped: Path, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load("quick", ["model.options={width: 4}", "image_size=8", "epochs=2st", "eval.every=2st", "batch_size=8"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as at a prompt
    run = train(picture_folder, recipe, out=tmp_path / "run", execution=Execution(quiet=True), say=lambda text: None)
    assert (run.path / "report.html").is_file()
    assert ran(trapped) == ""


def test_python_dash_m_runs_nothing_here(trapped: Path) -> None:
    Path("stagewright.py").unlink()  # which -m itself would take for the package
    done = subprocess.run([sys.executable, "-m", "stagewright", "recipes"], capture_output=True, text=True)
    assert done.returncode == 0 and "quick" in done.stdout, done.stderr
    assert ran(trapped) == ""


def test_processes_of_multiprocessing_run_nothing_here(trapped: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from stagewright.system.children import safe_path_for_children\n"
        "def look():\n"
        "    import stagewright\n"
        "if __name__ == '__main__':\n"
        "    before = list(sys.path)\n"
        "    process = multiprocessing.get_context('forkserver').Process(target=look)\n"
        "    with safe_path_for_children():\n"
        "        process.start()\n"
        "    process.join()\n"
        "    assert sys.path == before\n"
        "    sys.exit(process.exitcode)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ran(trapped) == ""


def test_a_module_that_is_asked_for_is_found_here_and_finds_no_other(trapped: Path) -> None:
    Path("own_operations.py").write_text("import fractions, json\ndef darken(images, keys):\n    return images // 2\n")
    path = list(sys.path)
    assert load_custom("own_operations:darken")(8, None) == 4
    assert sys.path == path and ran(trapped) == ""
    del sys.modules["own_operations"]
    with pytest.raises(RecipeError, match=f"No module named 'absent_operations'.*{os.getcwd()}"):
        load_custom("absent_operations:darken")
    assert sys.path == path


def test_a_page_that_fails_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = Pages(tmp_path, min_seconds=0.0)  # no run lies there
    pages.see(make_event("evaluated"))
    assert pages._process is not None
    pages._process.wait()
    pages.see(make_event("evaluated"))
    pages.close()
    assert len(caplog.records) == 1 and "ended with 2" in caplog.text and "stagewright report" in caplog.text
    assert (tmp_path / "log.txt").read_text().count("ended with 2") == 1
