"""The list of runs: rows of finished, unfinished and damaged runs, foreign folders, sorting and filters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stagewright as sw
from stagewright.errors import CheckpointError, RecipeError
from stagewright.report.results import Score
from stagewright.report.run_choice import FIELDS, filtered_runs, sorted_runs
from stagewright.report.runs import RunRow, Runs, runs


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """A finished run of three epochs, that no test may change."""
    small = [
        "model.options={width: 4}",
        "image_size=16",
        "batch_size=16",
        "epochs=3ep",
        "data.val=0.2",
        "data.test=0.2",
    ]
    quiet = sw.Execution(device="cpu", pages=False, quiet=True)
    out = tmp_path_factory.mktemp("listed") / "real"
    return sw.train(picture_folder, "quick", overrides=small, out=out, execution=quiet, say=lambda text: None).path


@pytest.fixture
def folder(tmp_path: Path, real_run: Path) -> Path:
    """A folder with a finished run, a stopped one below, a damaged one, and foreign folders."""
    root = tmp_path / "runs"
    shutil.copytree(real_run, root / "done")
    stopped = root / "study" / "deep" / "stopped"
    shutil.copytree(real_run, stopped)
    summary = json.loads((stopped / "summary.json").read_text())
    summary |= {"status": "stopped", "step": 1, "top1": {"val": None, "test": None}, "chosen": None}
    (stopped / "summary.json").write_text(json.dumps(summary))
    lines = (stopped / "metrics.csv").read_text().splitlines()
    (stopped / "metrics.csv").write_text("\n".join(lines[:2]) + "\n")
    damaged = root / "damaged"
    damaged.mkdir()
    (damaged / "plan.json").write_text("{")
    (root / "photos" / "cats").mkdir(parents=True)
    (root / "other tool").mkdir()
    (root / "other tool" / "summary.json").write_text('{"loss": 3}')
    (root / ".hidden").mkdir()
    (root / "file.txt").write_text("")
    return root


def test_every_run_is_a_row_and_the_rest_is_counted(folder: Path, real_run: Path) -> None:
    found = runs(folder)
    rows = {row.name: row for row in found}
    assert set(rows) == {"done", "study/deep/stopped", "damaged"} and found.skipped == 2
    done, summary = rows["done"], json.loads((real_run / "summary.json").read_text())
    plan = json.loads((real_run / "plan.json").read_text())
    assert (done.status, done.done, done.model, done.recipe) == ("finished", 1.0, summary["model"], summary["recipe"])
    assert done.score is not None and done.split == "test" and done.score.total == plan["dataset"]["num_test"]
    assert done.score.percent == pytest.approx(summary["top1"]["test"]) and done.parameters == summary["parameters"]
    assert done.seconds == pytest.approx(summary["wall_seconds"], abs=0.05) and done.created
    assert done.image_size == plan["stages"][-1]["image_size"]
    stopped = rows["study/deep/stopped"]
    assert stopped.status == "stopped" and stopped.split == "val" and stopped.done is not None and 0 < stopped.done < 1
    assert rows["damaged"].status == "damaged" and "plan.json cannot be read" in rows["damaged"].problem
    assert json.loads(json.dumps(found.to_dicts()))[0]["path"]


def test_a_run_itself_is_a_list_of_one(real_run: Path) -> None:
    found = runs(real_run)
    assert len(found) == 1 and found[0].name == real_run.name and list(found[:1]) == [found[0]]


def test_no_such_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert len(runs(tmp_path / "runs")) == 0
    with pytest.raises(CheckpointError, match="did you mean 'runs'"):
        runs(tmp_path / "rusn")


@pytest.mark.parametrize("name", ["plan.json", "summary.json", "env.json", "metrics.csv"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b'{"stages": [{"first_step": -1}], "status": 7, "dataset": 3}',
        b"[" * 5000,
        b"null,1\n2\n",
    ],
)
def test_no_damage_ends_the_list(folder: Path, name: str, content: bytes) -> None:
    (folder / "done" / name).write_bytes(content)
    found = runs(folder)
    assert len(found) == 3 and all(row.to_dict() for row in found)


def test_places_that_cannot_be_opened_are_no_crash(folder: Path) -> None:
    (folder / "done" / "plan.json").unlink()
    (folder / "done" / "plan.json").mkdir()
    os.symlink(folder, folder / "study" / "loop")
    os.symlink(folder / "nowhere", folder / "dangling")
    names = [row.name for row in runs(folder)]
    assert "done" in names and "damaged" in names


def row(name: str, score: tuple[int, int] | None, **facts: object) -> RunRow:
    given = {"status": "finished", "data": "", "model": "resnet18", "image_size": None, "seconds": None, "created": ""}
    rest = {"done": 1.0, "recipe": "quick", "parameters": None, "seed": 0, "split": "test"}
    return RunRow(Path(name), name, score=Score(*score) if score else None, **(given | rest | facts))  # pyright: ignore


LISTED = Runs(
    (
        row("b", (5, 10), model="ResNet50", created="2026-01-02", image_size=224),
        row("A", (9, 10), seconds=5.0, data="photos/cats"),
        row("c", None, seconds=1.0, status="stopped", created="2026-01-03"),
    ),
    skipped=4,
)


@pytest.mark.parametrize(
    ("field", "reverse", "names"),
    [
        *(("name", False, "Abc"), ("name", True, "cbA"), ("score", False, "Abc"), ("score", True, "bAc")),
        *(("time", False, "cAb"), ("when", False, "cbA"), ("size", False, "bAc")),
    ],
)
def test_rows_without_a_value_come_last(field: str, reverse: bool, names: str) -> None:
    found = sorted_runs(LISTED, field, reverse=reverse)
    assert "".join(one.name for one in found) == names and found.skipped == 4


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        *(
            (["stop"], "c"),
            (["CATS"], "A"),
            (["model=resnet*"], "bAc"),
            (["model=resnet1?"], "Ac"),
            (["score>50"], "A"),
        ),
        *((["score>=50"], "bA"), (["score<100", "status=finished"], "bA"), (["size=224"], "b"), (["time<=1"], "c")),
        *((["data="], "bc"), ([], "bAc"), (["resnet", "photos"], "A")),
    ],
)
def test_filters(conditions: list[str], names: str) -> None:
    assert "".join(one.name for one in filtered_runs(LISTED, conditions)) == names


def test_wrong_fields_and_numbers_are_named() -> None:
    with pytest.raises(RecipeError, match="'scoer' is not a field of the list; did you mean 'score'") as error:
        sorted_runs(LISTED, "scoer")
    assert error.value.allowed == ", ".join(FIELDS)
    with pytest.raises(RecipeError, match="'colour' is not a field"):
        filtered_runs(LISTED, ["colour=red"])
    with pytest.raises(RecipeError, match="'high' is not a number"):
        filtered_runs(LISTED, ["score>high"])


def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        f"import sys, stagewright as sw\nassert len(sw.runs({str(folder)!r})) == 3\n"
        "from stagewright.api.diff import diff\n"
        f"diff({str(folder / 'done')!r}, {str(folder / 'done')!r})\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sw.runs is runs
