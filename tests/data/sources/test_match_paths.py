"""matching: a table's paths and the files there are, without ever taking one for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagewright.data.sources.match_paths import NO_FILE, match_files


def match(root: Path, files: list[str], *names: str) -> list[str | None]:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return match_files(str(root), names).paths


@pytest.mark.parametrize(
    ("files", "names", "found"),
    [
        (["a/1.jpg"], ["a/1.jpg"], ["a/1.jpg"]),
        (["a/1.jpg"], ["./a//1.jpg", r"a\1.jpg", " a/1.jpg "], ["a/1.jpg"] * 3),
        (["1.jpg"], ["1"], ["1.jpg"]),  # an id without extension
        (["1.png"], ["1.jpg"], ["1.png"]),  # a wrong one
        (["IMG_1.JPG"], ["img_1.jpg"], ["IMG_1.JPG"]),
        (["x/1.jpg", "y/2.jpg"], ["1.jpg", "2.jpg"], ["x/1.jpg", "y/2.jpg"]),  # another folder
        (["x/1.jpg"], ["1"], ["x/1.jpg"]),
        (["x/1.jpg", "y/1.jpg"], ["1.jpg"], [None]),  # two could be meant
        (["1.jpg", "1.png"], ["1", "1.webp", "1.png"], [None, None, "1.png"]),
        (["1.jpg", "old/1.jpg"], ["1"], ["1.jpg"]),  # the very folder goes first
        (["cat/1.jpg", "dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"]),
        (["dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"], [None, "dog/1.jpg"]),  # never a cat for a dog
        (["in/cat/1.jpg", "in/dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"], ["in/cat/1.jpg", "in/dog/1.jpg"]),
        (["cat/1.jpg", "dog/1.jpg"], ["/home/me/cat/1.jpg", "/home/me/dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"]),
        (["cat/1.jpg"], ["data/cat/1.jpg", "data/dog/1.jpg"], ["cat/1.jpg", None]),
        (["data/cat/1.jpg", "old/dog/1.jpg"], ["data/cat/1.jpg", "data/dog/1.jpg"], ["data/cat/1.jpg", None]),
        (["cat.jpg/1.jpg"], ["1"], ["cat.jpg/1.jpg"]),
        (["img.0001.jpg", "img.0002.jpg"], ["img.0001", "img.0002"], ["img.0001.jpg", "img.0002.jpg"]),
        (["cafe\u0301.jpg"], ["caf\u00e9.jpg"], ["cafe\u0301.jpg"]),
        (["1.txt"], ["1.jpg", "1"], [None, None]),  # a text is no picture
        (["a/1.jpg"], ["", "a", "."], [None, None, None]),
    ],
)
def test_matches(tmp_path: Path, files: list[str], names: list[str], found: list[str | None]) -> None:
    assert match(tmp_path, files, *names) == found


def test_absolute_paths(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "1.jpg", tmp_path / "else" / "2.jpg"
    assert match(tmp_path / "data", ["1.jpg", "../else/2.jpg"], str(inside), str(outside)) == ["1.jpg", "../else/2.jpg"]


def test_reasons_and_notes(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.jpg", "a/3.jpg", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = match_files(str(tmp_path), ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "x/2"])
    assert found.reasons[3] == NO_FILE and sorted(found.reasons) == [2, 3, 4]
    assert found.reasons[2] in ("several files match: a/3.jpg, b/3.jpg", "several files match: b/3.jpg, a/3.jpg")
    assert found.notes == [
        "1 file with another extension than in the table, e.g. 1.jpg is x/1.png",
        "2 files in another folder than in the table, e.g. 1.jpg is x/1.png",
        "1 file named without an extension in the table, e.g. x/2 is x/2.jpg",
    ]


def test_nothing_is_walked_where_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagewright.data.sources.match_paths.walk", None)
    assert match(tmp_path, ["1.jpg", "2.jpg"], "2.jpg", "1.jpg") == ["2.jpg", "1.jpg"]
