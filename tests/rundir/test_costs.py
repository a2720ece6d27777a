"""costs.json: what is written is read again; what is damaged is left out with a sentence, and never an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.rundir.claim import held
from stagewright.rundir.costs import CostsFields, read_costs, write_costs
from stagewright.rundir.directory import RunDir

MEASURED: dict[str, Any] = {
    "measured_at": "2026-03-14T15:09:26+00:00",
    "device": "CPU, 2 threads",
    "threads": 2,
    "torch": "2.15.0",
    "precision": "fp32",
    "eval_precision": "bf16",
    "rounds": 3,
    "is_disturbed": False,
    "others_cores": 0.0,
    "parameters": 11_173_962,
    "image_size": 32,
    "macs": 555_422_720,
    "train_images_per_second": 312.5,
    "epoch_seconds": 160.0,
    "train_gb": 1.25,
    "latency_ms": 14.2,
    "images_per_second": 410.0,
}


def read(folder: Path, content: bytes) -> tuple[CostsFields | None, list[str]]:
    problems: list[str] = []
    (folder / "costs.json").write_bytes(content)
    return read_costs(RunDir(folder), problems.append), problems


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    costs = CostsFields(**MEASURED, macs_problem=None, training_problem="the pictures are gone")
    assert read_costs(RunDir(tmp_path)) is None
    write_costs(RunDir(tmp_path), costs)
    problems: list[str] = []
    assert read_costs(RunDir(tmp_path), problems.append) == costs and problems == []
    assert json.loads((tmp_path / "costs.json").read_text())["inference_problem"] is None


@pytest.mark.parametrize("name", MEASURED)
def test_a_damaged_field_is_left_out_and_the_others_remain(tmp_path: Path, name: str) -> None:
    found, problems = read(tmp_path, json.dumps({**MEASURED, name: ["<b>"]}).encode())
    assert found is not None and found.model_dump(exclude_none=True) == {
        field: value for field, value in MEASURED.items() if field != name
    }
    assert len(problems) == 1 and problems[0].startswith(f"costs.json: a field is left out: {name} is ['<b>']: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1.0, 1e300])
def test_times_are_positive_and_finite(tmp_path: Path, value: float) -> None:
    found, problems = read(tmp_path, json.dumps({**MEASURED, "latency_ms": value}).encode())
    assert found is not None and found.latency_ms is None and found.macs == 555_422_720 and len(problems) == 1


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"macs": 1, "macs": 2}', b"\xff"])
def test_a_damaged_file_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    found, problems = read(tmp_path, content)
    assert found is None and len(problems) == 1 and problems[0].startswith("costs.json cannot be read: ")


def test_a_file_that_cannot_be_read_now_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "costs.json").mkdir()
    problems: list[str] = []
    assert read_costs(RunDir(tmp_path), problems.append) is None and read_costs(RunDir(tmp_path)) is None
    assert len(problems) == 1 and "costs.json cannot be read" in problems[0] and "\n" not in problems[0]


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """A run of a stranger must not have a file outside of it written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text("{}")
    (tmp_path / "run" / "costs.json").symlink_to(tmp_path / "mine")
    with pytest.raises(Exception, match=r"costs\.json is a link to"), held(tmp_path / "run"):
        pass
