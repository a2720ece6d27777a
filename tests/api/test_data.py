"""inspect and split in Python are those of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import typed

import stagewright as sw
from stagewright.errors import DataError, RecipeError


def test_inspect_is_that_of_the_command(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(picture_folder, tmp_path / "data")
    shutil.copy(data / "across" / "00.png", data / "down" / "same.png")
    found = sw.inspect(data, overrides=["data.val=0.2"], quiet=True)
    assert found.serious and "serious finding" in found.verdict
    code, out, _ = typed(capsys, monkeypatch, "data", "inspect", data, "--set", "data.val=0.2", "--json", "-q")
    told = json.loads(out)
    assert code == 1 and {**found.to_dict(), "seconds": 0} == {**told, "seconds": 0}
    with pytest.raises(RecipeError, match="here only fields of data"):
        sw.inspect(data, overrides=["epochs=3"], quiet=True)


def test_split_writes_a_table_that_trains(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = sw.split(picture_folder, val=0.2, test=0.1, seed=4, quiet=True)
    table = Path(f"{picture_folder.name}-split.csv")
    assert [path.name for path in made.tables] == [table.name] and made.parts == ("train", "val", "test")
    assert made.pictures.sum() == 60 and made.pictures[1].sum() == 12
    code, _, err = typed(
        *(capsys, monkeypatch, "data", "split", picture_folder, "--val", 0.2, "--test", 0.1, "--seed", 4, "-q"),
        *("--out", "other.csv"),
    )
    assert code == 0, err
    assert Path("other.csv").read_bytes() == table.read_bytes()
    execution = sw.Execution(device="cpu", quiet=True)
    plan = sw.make_plan(table, "quick", execution=execution, say=lambda text: None)
    assert plan.dataset.num_val == 12
    with pytest.raises(DataError, match="exists already"):
        sw.split(picture_folder, val=0.2, quiet=True)
    folds = sw.split(picture_folder, folds=3, group_by="none", out="folds.csv", quiet=True)
    assert folds.num_folds == 3 and len(folds.tables) == 4
