"""What inputs mean, and answers as CSV, JSON and table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from stagewright.bundle.inputs import expand_inputs
from stagewright.bundle.predictions import Prediction, to_json, write_csv
from stagewright.errors import DataError, StorageError

ANSWERS = [
    Prediction("a.jpg", (("bée", 0.75), ("ant", 0.25))),
    Prediction("b,c.jpg", (), "the file is empty"),
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "A.PNG", "deep/er/c.webp", "notes.txt", ".hidden.jpg", "deep/.thumbs/d.jpg", "odd[1].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def test_folders_give_their_pictures_sorted_and_nothing_hidden(tree: Path) -> None:
    assert names(expand_inputs(["photos"])) == [
        "photos/A.PNG",
        "photos/b.jpg",
        "photos/deep/er/c.webp",
        "photos/odd[1].jpg",
    ]


def test_files_are_taken_as_they_are_and_each_once(tree: Path) -> None:
    given = ["photos/notes.txt", "photos/odd[1].jpg", Path("photos/b.jpg"), "photos/b.jpg"]
    assert names(expand_inputs(given)) == ["photos/notes.txt", "photos/odd[1].jpg", "photos/b.jpg"]


def test_globs(tree: Path) -> None:
    assert names(expand_inputs(["photos/*.jpg"])) == ["photos/b.jpg", "photos/odd[1].jpg"]
    assert names(expand_inputs(["photos/**/*.webp"])) == ["photos/deep/er/c.webp"]
    assert names(expand_inputs(["photos/de*"])) == ["photos/deep/er/c.webp"], "folders that match are folders"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos/nothing.jpg", "'photos/nothing.jpg': there is no such file or folder"),
        ("photos/*.gif", "the glob 'photos/*.gif' matches nothing"),
        ("empty", "the folder 'empty' contains no pictures"),
    ],
)
def test_inputs_that_mean_nothing(tree: Path, given: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        expand_inputs(["photos/b.jpg", given])
    assert message in error.value.given
    assert error.value.allowed and error.value.remedy


def test_csv_has_a_row_a_picture_and_room_for_errors(tmp_path: Path) -> None:
    write_csv(ANSWERS, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "class_1", "probability_1", "class_2", "probability_2", "error"],
        ["a.jpg", "bée", "0.750000", "ant", "0.250000", ""],
        ["b,c.jpg", "", "", "", "", "the file is empty"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_csv_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"out.csv cannot be written: No such file or directory"):
        write_csv(ANSWERS, tmp_path / "nowhere" / "out.csv")


def test_json_reads_back() -> None:
    assert json.loads(to_json(ANSWERS)) == [
        {
            "path": "a.jpg",
            "classes": [{"name": "bée", "probability": 0.75}, {"name": "ant", "probability": 0.25}],
            "error": None,
        },
        {"path": "b,c.jpg", "classes": [], "error": "the file is empty"},
    ]


def test_a_folder_is_searched_as_for_training(tmp_path: Path) -> None:
    """Links are followed, what storage systems leave behind is ignored, and a folder that cannot be opened is an input."""
    for name in ("own/a.png", "@eaDir/b.png", "__MACOSX/c.png", "$RECYCLE.BIN/d.png", ".hidden/e.png", "notes.txt"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).touch()
    (tmp_path / "shot").mkdir()
    (tmp_path / "shot" / "f.png").touch()
    (tmp_path / "new" / "monday").symlink_to("../shot")
    found = expand_inputs([tmp_path / "new"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["new/monday/f.png", "new/own/a.png"]
