"""What inputs mean, and answers as CSV, JSON and table."""

from __future__ import annotations

import csv
import json
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from stagewright.bundle.inputs import Inputs, expand_inputs
from stagewright.bundle.predictions import CsvWriter, JsonWriter, Prediction
from stagewright.data.account import Account, Omission
from stagewright.errors import DataError, StorageError
from stagewright.storage.lines import LineWriter

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


def names_of(found: Inputs) -> list[str]:
    return [str(path) for path in found.paths]


def test_folders_give_their_pictures_sorted_and_nothing_hidden(tree: Path) -> None:
    assert names_of(expand_inputs(["photos"])) == [
        "photos/A.PNG",
        "photos/b.jpg",
        "photos/deep/er/c.webp",
        "photos/odd[1].jpg",
    ]


def test_files_are_taken_as_they_are_and_each_once(tree: Path) -> None:
    given = ["photos/notes.txt", "photos/odd[1].jpg", Path("photos/b.jpg"), "photos/b.jpg"]
    assert names_of(expand_inputs(given)) == ["photos/notes.txt", "photos/odd[1].jpg", "photos/b.jpg"]


def test_globs(tree: Path) -> None:
    assert names_of(expand_inputs(["photos/*.jpg"])) == ["photos/b.jpg", "photos/odd[1].jpg"]
    assert names_of(expand_inputs(["photos/**/*.webp"])) == ["photos/deep/er/c.webp"]
    assert names_of(expand_inputs(["photos/de*"])) == ["photos/deep/er/c.webp"], "folders that match are folders"


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


def write_csv(path: str | Path, answers: Sequence[Prediction] = ANSWERS) -> None:
    with LineWriter(path) as lines:
        writer = CsvWriter(lines, 2)
        for answer in answers:
            writer.write(answer)


def test_csv_has_a_row_a_picture_and_room_for_errors(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("of an earlier time\n" * 99)
    write_csv(tmp_path / "out.csv")
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
        write_csv(tmp_path / "nowhere" / "out.csv")


def test_a_row_is_there_once_it_is_written_and_whole_where_the_disk_is_full(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    with LineWriter(file) as lines:
        writer = CsvWriter(lines, 2)
        writer.write(ANSWERS[0])
        size = file.stat().st_size
        assert file.read_bytes().count(b"\n") == 2
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4, before[1]))  # room for a part of the next row
        try:
            with pytest.raises(StorageError, match="File too large"):
                writer.write(ANSWERS[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
    assert file.stat().st_size == size


@pytest.mark.parametrize("answers", [[], ANSWERS[:1], ANSWERS])
def test_json_reads_back_with_the_account(answers: list[Prediction], tmp_path: Path) -> None:
    account = Account(1, (Omission("hidden or foreign", 2, ".x"),), (Omission("the file is empty", 1, "b,c.jpg"),))
    with LineWriter(tmp_path / "out.json") as lines:
        writer = JsonWriter(lines)
        for answer in answers:
            writer.write(answer)
        writer.close(account)
    both = [
        {
            "path": "a.jpg",
            "answer": "bée",
            "classes": [{"name": "bée", "probability": 0.75}, {"name": "ant", "probability": 0.25}],
            "error": None,
        },
        {"path": "b,c.jpg", "answer": None, "classes": [], "error": "the file is empty"},
    ]
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "predictions": both[: len(answers)],
        "account": {
            "read": 1,
            "left_out": [{"reason": "hidden or foreign", "count": 2, "example": ".x"}],
            "unreadable": [{"reason": "the file is empty", "count": 1, "example": "b,c.jpg"}],
        },
    }


def test_a_folder_is_searched_as_for_training(tmp_path: Path) -> None:
    """Links are followed, what storage systems leave behind is ignored, and a folder that cannot be opened is an input."""
    for name in ("own/a.png", "@eaDir/b.png", "__MACOSX/c.png", "$RECYCLE.BIN/d.png", ".hidden/e.png", "notes.txt"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).touch()
    (tmp_path / "shot").mkdir()
    (tmp_path / "shot" / "f.png").touch()
    (tmp_path / "new" / "monday").symlink_to("../shot")
    found = expand_inputs([tmp_path / "new"])
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["new/monday/f.png", "new/own/a.png"]
    assert {one.reason: one.count for one in found.left_out} == {"hidden or foreign": 4, "not a picture, .txt": 1}


def test_pictures_of_a_folder_need_no_extension_and_what_is_none_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "scraped"
    folder.mkdir()
    for name in ("0a1b2c", "photo.jpg_large"):
        Image.new("RGB", (9, 9), "red").save(folder / name, "PNG")
    (folder / "notes.txt").write_text("of the trip")
    (folder / "clip.mp4").write_bytes(b"\0" * 100)
    (folder / "list").write_text("a, b")
    found = expand_inputs([folder])
    assert [path.name for path in found.paths] == ["0a1b2c", "photo.jpg_large"]
    assert {one.reason: (one.count, one.example) for one in found.left_out} == {
        "not a picture, .mp4": (1, "clip.mp4"),
        "not a picture, .txt": (1, "notes.txt"),
        "not a picture, without extension": (1, "list"),
    }
    for path in found.paths:
        path.unlink()
    with pytest.raises(DataError, match=r"contains no pictures; left out: 1 not a picture, .mp4"):
        expand_inputs([folder])
