"""Folders: which files belong to which class and part, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import UNDECIDED, Listing, list_folder, walk
from stagewright.errors import DataError
from stagewright.text import counted, some


def fill(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(listing: Listing) -> list[tuple[str, str, int]]:
    return list(zip(listing.paths.to_pylist(), listing.labels.to_pylist(), listing.parts.tolist(), strict=True))


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "dog/b.jpg", "cat/deep/er/a.jpg", "cat/c.jpg", "readme.txt", ".hidden/x.jpg", "cat/.DS_Store")
    fill(tmp_path, "__MACOSX/cat/._c.jpg", "cat/@eaDir/c.jpg", "dog/._b.jpg")
    (tmp_path / "bird").mkdir()
    listing = list_folder(tmp_path)
    assert listing.root == str(tmp_path)
    assert rows(listing) == [
        ("cat/c.jpg", "cat", UNDECIDED),
        ("cat/deep/er/a.jpg", "cat", UNDECIDED),
        ("dog/b.jpg", "dog", UNDECIDED),
    ]
    assert listing.notes == (
        "left out 1 file beside the class folders: readme.txt",
        "hidden or foreign files and folders passed over: 5",
        "left out 1 empty class folder: bird",
    )


@pytest.mark.parametrize(
    ("val", "test"), [("val", "test"), ("valid", "Test"), ("Validation", "testing"), ("dev", None)]
)
def test_train_val_test(tmp_path: Path, val: str, test: str | None) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{val}/a/3.jpg", "train/stray.jpg", "extra/a/9.jpg")
    if test:
        fill(tmp_path, f"{test}/b/4.jpg")
    listing = list_folder(tmp_path)
    parts = {"train/a/1.jpg": TRAIN, "train/b/2.jpg": TRAIN, f"{val}/a/3.jpg": VAL}
    if test:
        parts[f"{test}/b/4.jpg"] = TEST
    assert {path: part for path, _, part in rows(listing)} == parts
    assert "left out extra/: not train, val or test" in listing.notes
    assert "left out 1 file beside the class folders: train/stray.jpg" in listing.notes


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/1.jpg", "test/2.jpg")
    listing = list_folder(tmp_path)
    assert [part for _, _, part in rows(listing)] == [TRAIN, TRAIN]
    assert listing.notes == ("left out test/: without class folders its 2 files have no classes",)


def test_train_and_test_may_be_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "car/2.jpg", "test/3.jpg")
    assert [(label, part) for _, label, part in rows(list_folder(tmp_path))] == [
        ("car", UNDECIDED),
        ("test", UNDECIDED),
        ("train", UNDECIDED),
    ]


def test_names_that_differ_in_unicode_form_are_one_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/gr\u00f6n/1.jpg", "train/a/2.jpg", "val/gro\u0308n/3.jpg")
    assert set(list_folder(tmp_path).labels.to_pylist()) == {"a", "gr\u00f6n"}


def test_links(tmp_path: Path) -> None:
    fill(tmp_path, "all/1.jpg", "all/2.jpg")
    root = fill(tmp_path / "data", "b/3.jpg")
    (root / "a").symlink_to(tmp_path / "all")
    (root / "b" / "loop").symlink_to(root)
    (root / "b" / "self").symlink_to("self")
    (root / "b" / "gone.jpg").symlink_to("nowhere")
    paths = [path for path, _, _ in rows(list_folder(root))]
    assert paths == ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/gone.jpg", "b/self"]


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9.jpg")).touch()
    listing = list_folder(tmp_path)
    assert len(listing.paths) == 2
    assert [(item.path, item.reason) for item in listing.excluded] == [
        (r"a/caf\xe9.jpg", "its name is not valid Unicode; rename it")
    ]


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    found = walk(str(tmp_path))
    assert (found.files, found.ignored) == (["a/1.jpg"], 1)


@pytest.mark.parametrize(
    ("files", "given", "remedy"),
    [
        ([], "the folder DATA is empty", "put the pictures of each class into a folder named after it"),
        (["1.jpg", "2.jpg"], "DATA holds 2 files but no class folders", "put the pictures of each class into"),
        (
            ["1.jpg", "x.csv"],
            "DATA holds 2 files but no class folders",
            "point at the table of classes instead: DATA/x.csv",
        ),
        (
            ["train/1.jpg", "x.csv"],
            "DATA/train holds 1 file but no class",
            "point at the table of classes instead: DATA/x.csv",
        ),
        (["val/a/1.jpg", "test/a/2.jpg"], "DATA has test/, val/ but no train/", "add the pictures to train on"),
        (
            ["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"],
            "DATA has two folders for one part: val/ and valid/",
            "join or",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, files: list[str], given: str, remedy: str) -> None:
    with pytest.raises(DataError) as error:
        list_folder(fill(tmp_path, *files))
    assert error.value.given.replace(str(tmp_path), "DATA").startswith(given)
    assert error.value.remedy.replace(str(tmp_path), "DATA").startswith(remedy)
    assert error.value.allowed


def test_words_for_people() -> None:
    assert [counted(1, "class"), counted(1200, "class"), counted(0, "file")] == ["1 class", "1,200 classes", "0 files"]
    assert some("abc", 2) == "a, b and 1 more"
    assert some("ab", 2) == "a, b"
