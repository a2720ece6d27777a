"""Folders: which files belong to which class and part, and what is passed over."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from stagewright.data.account import Omission
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import UNDECIDED, Listing, list_folder
from stagewright.data.sources.local import list_source
from stagewright.data.sources.walk import walk
from stagewright.errors import DataError
from stagewright.recipe.recipes import data_settings
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
    assert listing.notes == ("left out 1 empty class folder: bird",)
    assert listing.left_out == (
        Omission("beside the class folders", 1, "readme.txt"),
        Omission("hidden or foreign", 5, ".hidden"),
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
    assert set(listing.left_out) == {
        Omission("a folder that is not train, val or test", 1, "extra/"),
        Omission("beside the class folders", 1, "train/stray.jpg"),
    }


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/1.jpg", "test/2.jpg")
    listing = list_folder(tmp_path)
    assert [part for _, _, part in rows(listing)] == [TRAIN, TRAIN]
    assert listing.left_out == (Omission("in test/ without class folders", 2, "test/1.jpg"),)


def test_train_may_be_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "car/2.jpg", "plane/3.jpg")
    assert set(list_folder(tmp_path).labels.to_pylist()) == {"train", "car", "plane"}


def test_a_tree_that_may_mean_two_things_is_refused_with_both(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "test/2.jpg", "car/3.jpg")
    with pytest.raises(DataError) as error:
        list_folder(tmp_path)
    assert (
        "can be read in two ways: train/, test/ are parts of the data set, or all 3 folders are classes, as car/"
        in str(error.value)
    )
    assert "if they are parts: put class folders into train/; if they are classes: rename them" in error.value.remedy


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("seg_train", "seg_test", "seg_pred"), "parts by their names: seg_train/ is train, seg_test/ is test"),
        (("training_set", "test_set"), "parts by their names: training_set/ is train, test_set/ is test"),
    ],
)
def test_parts_by_other_names(tmp_path: Path, names: tuple[str, ...], note: str) -> None:
    train, test, *rest = names
    fill(tmp_path, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{test}/a/3.jpg", *(f"{name}/4.jpg" for name in rest))
    listing = list_folder(tmp_path)
    assert {part for _, _, part in rows(listing)} == {TRAIN, TEST} and len(listing.paths) == 3
    assert note in listing.notes
    assert listing.left_out == tuple(
        Omission("a folder that by its name has no classes", 1, f"{name}/") for name in rest
    )


def test_parts_in_a_folder_of_their_own_name(tmp_path: Path) -> None:
    """The Intel scenes as they are unpacked."""
    fill(tmp_path, "seg_train/seg_train/sea/1.jpg", "seg_train/seg_train/forest/2.jpg", "seg_pred/seg_pred/5.jpg")
    fill(tmp_path, "seg_test/seg_test/sea/3.jpg", "seg_test/seg_test/forest/4.jpg")
    listing = list_folder(tmp_path)
    assert listing.labels.to_pylist() == ["forest", "sea", "forest", "sea"]
    assert sorted(listing.parts.tolist()) == [0, 0, 2, 2]
    assert "parts by their names: seg_train/seg_train/ is train, seg_test/seg_test/ is test" in listing.notes
    assert [(one.example, one.reason) for one in listing.left_out] == [
        ("seg_pred/", "a folder that by its name has no classes")
    ]


def test_a_class_may_be_alone_in_a_part(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "test/cat/2.jpg")
    assert set(list_folder(tmp_path).labels.to_pylist()) == {"cat"}


def test_flat_parts_whose_file_names_hold_the_classes(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *(f"train/{name}.{at}.jpg" for name in ("cat", "dog") for at in range(3)),
        "test1/1.jpg",
        "test1/2.jpg",
    )
    with pytest.raises(DataError) as error:
        list_folder(tmp_path)
    assert "the file names seem to hold the classes (cat, dog)" in error.value.remedy
    folder, pattern = shlex.split(error.value.remedy.partition("point at ")[2].replace("with --set ", ""))
    labels = list_source(folder, data_settings([pattern])).labels
    assert folder == str(tmp_path / "train") and labels.to_pylist() == ["cat"] * 3 + ["dog"] * 3


def test_what_stagewright_wrote_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg", "runs/quick-1/plan.json", "runs/quick-1/recipe.yaml")
    fill(tmp_path, "runs/quick-1/model/golden/01.png", "lr-find/lr-find.json", "lr-find/lr-find.png")
    fill(
        tmp_path,
        "cat/old/plan.json",
        "cat/old/recipe.yaml",
        "cat/old/plots/loss.png",
        "p.pack/pack.json",
        "p.pack/index.parquet",
    )
    listing = list_folder(tmp_path)
    assert [path for path, _, _ in rows(listing)] == ["cat/1.jpg", "dog/2.jpg"]
    assert {one.reason: (one.count, one.example) for one in listing.left_out} == {
        "a run of stagewright, not images": (2, "cat/old/"),
        "a learning rate search of stagewright, not images": (1, "lr-find/"),
        "a pack of stagewright, not images": (1, "p.pack/"),
    }
    for place, what in (("runs/quick-1", "a run"), ("lr-find", "a learning rate search")):
        with pytest.raises(DataError, match=f"is {what} of stagewright, not a data set"):
            list_folder(tmp_path / place)


def test_a_table_beside_one_folder_of_images(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.jpg", "images/2.jpg", "labels.csv")
    with pytest.raises(DataError) as error:
        list_folder(tmp_path)
    assert f"point at the table: {tmp_path}/labels.csv" in error.value.remedy


def test_a_table_beside_class_folders_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg", "labels.csv")
    assert "labels.csv is not read; point at it to train by that table" in list_folder(tmp_path).notes


def test_folders_within_class_folders_are_told(tmp_path: Path) -> None:
    fill(tmp_path, "plants/rose/1.jpg", "plants/tulip/2.jpg", "animals/cat/3.jpg", "animals/dog/4.jpg")
    listing = list_folder(tmp_path)
    assert set(listing.labels.to_pylist()) == {"plants", "animals"}
    (note,) = [note for note in listing.notes if note.startswith("the outer folders are the classes")]
    (tmp_path / "x").mkdir()
    command = (
        note.partition("as classes: ")[2].partition(", and point")[0].replace(f"{tmp_path}/*/*", f"{tmp_path}/[pa]*/*")
    )
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path / "x")
    inner = list_folder(tmp_path / "x" / "classes")
    assert set(inner.labels.to_pylist()) == {"rose", "tulip", "cat", "dog"}


def test_a_fan_of_links_is_walked_once(tmp_path: Path) -> None:
    fill(tmp_path, "shots/1.jpg", *(f"f{at:02d}/.x" for at in range(22)))
    for at in range(22):
        for name in ("a", "b"):
            target = tmp_path / (f"f{at + 1:02d}" if at < 21 else "shots")
            (tmp_path / f"f{at:02d}" / name).symlink_to(target)
    found = walk(str(tmp_path), "f00")
    assert found.files == ["f00/" + "/".join("a" * 22) + "/1.jpg"] and len(found.repeated) == 22


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
    assert (found.files, found.ignored) == (["a/1.jpg"], ["a/pipe.jpg"])


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
        (["val/a/1.jpg", "test/a/2.jpg"], "DATA has test/, val/ but no train/", "add the images to train on"),
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
