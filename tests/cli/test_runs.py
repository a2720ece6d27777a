"""runs, why and report of several runs, as a person types them; evaluate's file of answers."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import typed

import stagewright as sw
from stagewright.data.manifest import Manifest

SMALL = ["model.options={width: 4}", "image_size=16", "batch_size=16", "data.val=0.2", "data.test=0.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """A folder ``runs`` with two runs of different length, one with a long name, and a folder of something else."""
    root = tmp_path_factory.mktemp("typed") / "runs"
    quiet = sw.Execution(device="cpu", pages=False, quiet=True)
    for name, epochs in (("short", 2), ("a-very-long-name-of-a-run-that-nobody-should-have-given", 3)):
        overrides = [*SMALL, f"epochs={epochs}ep"]
        sw.train(picture_folder, "quick", overrides=overrides, out=root / name, execution=quiet, say=lambda text: None)
    (root / "notes").mkdir()
    return root


@pytest.mark.parametrize("width", [60, 80, 130])
def test_the_list_fits_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, width: int
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = typed(capsys, monkeypatch, "runs")
    assert code == 0 and max(map(len, out.splitlines())) <= width and "…" not in out
    squeezed = "".join(line.split("  ")[0].strip() for line in out.splitlines())
    assert "nobody-should-have-given" in "".join(squeezed.split()) or width == 60
    assert (
        out.count("finished") == 2 and "model cifar_resnet18" in out.splitlines()[0] and "px 16" in out.splitlines()[0]
    )
    assert "1 folder without a run left out" in out


def test_sorted_filtered_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    _, out, _ = typed(capsys, monkeypatch, "runs", folder, "--sort", "name", "--reverse", "--json")
    content = json.loads(out)
    assert [row["name"][:5] for row in content["runs"]] == ["short", "a-ver"] and content["skipped"] == 1
    assert content["runs"][0]["images"] == 12 and len(content["runs"][0]["top1_interval"]) == 2
    _, out, _ = typed(capsys, monkeypatch, "runs", folder, "--filter", "name=short")
    assert "1 of 2 runs" in out and "a-very" not in out
    _, out, _ = typed(capsys, monkeypatch, "runs", folder, "--filter", "status=failed")
    assert "no run is like this; 0 of 2 runs" in out
    _, out, _ = typed(capsys, monkeypatch, "runs", tmp_path)
    assert out.startswith("no runs in")


def test_a_damaged_run_is_shown_with_its_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "short", tmp_path / "ok")
    (tmp_path / "bad\x1b[31m").mkdir()
    (tmp_path / "bad\x1b[31m" / "plan.json").write_text("{")
    code, out, _ = typed(capsys, monkeypatch, "runs", tmp_path)
    assert code == 0 and "damaged" in out and "plan.json cannot be read" in out and "\x1b" not in out


@pytest.mark.parametrize("command", ["why", "diff"])
def test_why_for_people_and_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    two = [folder / "short", next(folder.glob("a-very*"))]
    code, out, _ = typed(capsys, monkeypatch, command, *two)
    assert code == 1 and max(map(len, out.splitlines())) <= 80
    assert "A  short" in out and "They differ in recipe." in out and "epochs" in out and "2ep" in out and "3ep" in out
    assert "the same: data, initial weights, computing, hardware, versions" in out
    assert "data: the same 60 pictures" in out and "B - A on the same 12 pictures" in out
    assert "models: not equal to the bit; answers to the bit:" in out
    code, out, _ = typed(capsys, monkeypatch, command, *two, "--json")
    content = json.loads(out)
    assert code == 1 and {field["name"] for field in content["recipe"]} >= {"epochs", "(updates)"}
    assert content["areas"] == ["recipe"] and not content["equal"]


def test_why_of_equal_runs_ends_with_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder / "short", tmp_path / "copy")
    plan = json.loads((copy / "plan.json").read_text())
    plan["recipe"]["checkpoints"] = {"every": "1ep", "keep": 9}
    (copy / "plan.json").write_text(json.dumps(plan))
    code, out, _ = typed(capsys, monkeypatch, "why", folder / "short", copy)
    assert code == 0 and "Equal in all that decides the result." in out and "the same:" not in out
    assert "models: equal to the bit; answers to the bit: validation equal, test equal" in out
    assert "without effect on the result: checkpoints" in out
    code, out, _ = typed(capsys, monkeypatch, "why", folder / "short", copy, "--json")
    assert code == 0 and json.loads(out)["verdict"] == "equal in all that decides the result"
    (copy / "weights.json").unlink()
    code, out, _ = typed(capsys, monkeypatch, "why", folder / "short", copy)
    assert code == 1 and "Equal in all that both have recorded; not known: initial weights." in out


@pytest.mark.parametrize("width", [60, 80, 100])
def test_changed_pictures_are_told_within_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    copy = shutil.copytree(folder / "short", tmp_path / "copy")
    manifest = Manifest.read(copy / "manifest.parquet")
    other = manifest.taken(np.arange(3, 60))
    paths = [f"a-folder-with-a-name/{path}" for path in other.paths.to_pylist()]
    replace(other, labels=other.labels[::-1].copy(), paths=pa.array(paths)).write(copy / "manifest.parquet")
    code, out, _ = typed(capsys, monkeypatch, "why", folder / "short", copy)
    lines = out.splitlines()
    assert code == 1 and max(map(len, lines)) <= width and "They differ in data." in out
    start = lines.index("data:") + 1
    told = " ".join(line.strip() for line in lines[start:] if line.startswith("  "))
    assert "3 removed: across/00.png, across/01.png, across/02.png" in told and "relabelled (across to slanted" in told


def test_report_of_several_is_one_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    two = [shutil.copytree(run, tmp_path / run.name[:5]) for run in sorted(folder.iterdir()) if run.name != "notes"]
    code, out, _ = typed(capsys, monkeypatch, "report", *two)
    assert code == 0 and Path(out.strip()) == tmp_path / "comparison.html" and not (two[0] / "report.html").exists()
    _, out, _ = typed(capsys, monkeypatch, "report", *two, "--each")
    assert out.split() == [str(run / "report.html") for run in two]


def test_evaluate_writes_each_answer(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    picture_folder: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    for at, (name, theirs) in enumerate((("across", "Across"), ("down", "up,down"), ("slanted", "noise"))):
        (data / theirs).mkdir(parents=True)
        shutil.copy(picture_folder / name / f"0{at}.png", data / theirs / "x.png")
    (tmp_path / "map.csv").write_text('"up,down",down\n')
    words = ("evaluate", folder / "short", data, "--map", "Across=across,noise=slanted", "--map", tmp_path / "map.csv")
    code, out, err = typed(capsys, monkeypatch, *words, "--out", tmp_path / "a.csv")
    assert code == 0, err
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {path: row["label"] for path, row in rows.items()} == {
        **{"Across/x.png": "across", "up,down/x.png": "down", "noise/x.png": "slanted"},
    }
    assert f"Answers  {tmp_path / 'a.csv'}" in out and "calibration error" in out
