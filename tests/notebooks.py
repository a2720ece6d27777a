"""Notebooks that a test runs, with a kernel of this very environment, whatever kernels a person has installed."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


def executed(notebook: Any, folder: Path, scratch: Path, monkeypatch: Any) -> Any:
    """Runs all cells in ``folder`` and returns the notebook with their outputs; ``scratch`` gets the kernel's own files."""
    spec = scratch / "jupyter" / "kernels" / "stagewright-test" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    paths = {"JUPYTER_PATH": "jupyter", "IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime"}
    for name, value in paths.items():
        monkeypatch.setenv(name, str(scratch / value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=300, kernel_name="stagewright-test", resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            cell.metadata.pop("execution", None)  # the times of each message
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Joins what was printed one after the other, as a notebook's page does."""
    joined: list[Any] = []
    for one in outputs:
        last = joined[-1] if joined else None
        if last is not None and one.output_type == last.output_type == "stream" and one.name == last.name:
            last.text += one.text
        else:
            joined.append(one)
    return joined


def notebook_of(*cells: str) -> Any:
    """Returns a notebook with these code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def printed(outputs: list[Any], stream: str = "stdout") -> str:
    """Returns what a cell printed on ``stream``."""
    return "".join(one.text for one in outputs if one.output_type == "stream" and one.name == stream)


def shown(outputs: list[Any]) -> list[str]:
    """Returns the HTML that a cell shows, in order; what is empty is left out."""
    found = (one.data.get("text/html", "") for one in outputs if "data" in one)
    return [html for html in found if "<iframe" in html or re.sub(r"<[^>]*>|\s", "", html)]
