"""load_dataset: what a person points at, and what they are told."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stagewright.data.account import Omission
from stagewright.data.dataset import Dataset, load_dataset, open_images
from stagewright.data.images.decode import FileImages
from stagewright.data.manifest import Manifest
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


def draw(file: Path, value: int) -> Path:
    """A picture of its own for each value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def fill(root: Path, **counts: int) -> Path:
    for at, (name, count) in enumerate(counts.items()):
        for picture in range(count):
            draw(root / name.replace("__", "/") / f"{picture}.png", 1000 * at + picture)
    return root


def load(root: Path, seed: int = 0, **settings: Any) -> Dataset:
    return load_dataset(str(root), Data(**settings, split_seed=seed))


def refused(source: Path | str, **settings: Any) -> DataError:
    with pytest.raises(DataError) as error:
        load_dataset(str(source), Data(**settings))
    assert error.value.given and error.value.allowed and error.value.remedy
    return error.value


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    info = dataset.manifest.info()
    return info.num_train, info.num_val, info.num_test


def test_class_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, dog=20, cat=40)
    dataset = load(root)
    manifest = dataset.manifest
    assert sizes(dataset) == (42, 9, 9)
    assert manifest.classes == ("cat", "dog") and manifest.source == str(root) and manifest.root == str(root)
    assert Counter(manifest.labels[manifest.rows("val")].tolist()) == {0: 6, 1: 3}
    assert set(manifest.widths) == {5} and set(manifest.heights) == {4}
    assert dataset.notes == (
        "60 pictures in 2 classes (cat 40, dog 20)",
        "split made by stagewright (stratified by class, seed 0): train 70 % (42), val 15 % (9), test 15 % (9)",
    )
    row = int(manifest.rows("test")[0])
    with Image.open(root / manifest.paths[row].as_py()) as image:
        assert np.array_equal(np.asarray(dataset.images.load(row)), np.asarray(image))


def test_the_same_again_from_elsewhere_and_with_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "data", dog=20, cat=40)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    first = load(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    again = load_dataset("copy/", Data())
    assert again.manifest.root == str(tmp_path / "copy")
    assert again.manifest.digest == first.manifest.digest
    assert load(tmp_path / "data", seed=1).manifest.digest != first.manifest.digest


def test_train_val_test_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, train__a=6, train__b=5, valid__a=3, test__b=4)
    dataset = load(root)
    assert sizes(dataset) == (11, 3, 4)
    assert dataset.notes[1:] == (
        "split as given by DATA: train 61 % (11), val 17 % (3), test 22 % (4)",
        "val has no picture of 1 class: b",
        "test has no picture of 1 class: a",
    )
    part = {
        name: {path.split("/")[0] for path in dataset.manifest.paths.take(dataset.manifest.rows(name)).to_pylist()}
        for name in ("train", "val", "test")
    }
    assert part == {"train": {"train"}, "val": {"valid"}, "test": {"test"}}


def test_train_and_val_alone_test_nothing(tmp_path: Path) -> None:
    assert sizes(load(fill(tmp_path, train__a=6, train__b=5, val__a=3, val__b=2))) == (11, 5, 0)


def test_validation_is_split_off_where_there_is_none(tmp_path: Path) -> None:
    dataset = load(fill(tmp_path, train__a=20, train__b=20, test__a=5, test__b=5))
    assert sizes(dataset) == (34, 6, 10)
    tests = dataset.manifest.paths.take(dataset.manifest.rows("test")).to_pylist()
    assert all(path.startswith("test/") for path in tests)
    assert "split made by stagewright (test as given by DATA, stratified by class, seed 0)" in dataset.notes[-1]
    assert sizes(load(fill(tmp_path / "more", train__a=20, train__b=20))) == (28, 6, 6)


def test_shares_are_settings(tmp_path: Path) -> None:
    root = fill(tmp_path, a=50, b=50)
    assert sizes(load(root, val=0.3, test=0.0)) == (70, 30, 0)
    assert sizes(load(root, val=0.0, test=0.0)) == (100, 0, 0)
    error = refused(root, val=0.5, test=0.5)
    assert error.given == "data.val 0.5 and data.test 0.5 leave nothing to train on"


def test_copies_stay_together_and_are_told(tmp_path: Path) -> None:
    root = fill(tmp_path, a=30, b=30)
    for at in range(10):
        shutil.copy(root / "a" / "3.png", root / "a" / f"copy{at}.png")
    shutil.copy(root / "a" / "4.png", root / "b" / "wrong.png")
    dataset = load(root)
    for seed in range(5):
        manifest = load(root, seed=seed).manifest
        paths = manifest.paths.to_pylist()
        assert len({manifest.splits[row] for row, path in enumerate(paths) if path == "a/3.png" or "copy" in path}) == 1
    assert dataset.notes[-2:] == (
        "identical copies of other pictures: 11",
        "1 identical picture in several classes, e.g. in a and b",
    )


def test_leaks_of_a_given_split_are_told(tmp_path: Path) -> None:
    root = fill(tmp_path, train__a=5, train__b=5, val__a=3, val__b=3)
    shutil.copy(root / "train" / "a" / "1.png", root / "val" / "a" / "again.png")
    assert load(root).notes[-1] == "1 identical picture both in val and in train, so results look too good"


def test_bad_files(tmp_path: Path) -> None:
    root = fill(tmp_path, a=12, b=12)
    (root / "a" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (root / "b" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "b" / "list.txt").write_text("x")
    (root / "b" / "README").write_text("x")
    (root / "c").mkdir()
    (root / "c" / "only.png").write_bytes(b"")
    dataset = load(root)
    assert len(dataset.manifest) == 24 and dataset.manifest.classes == ("a", "b")
    reasons = {item.path: item.reason for item in dataset.excluded}
    assert reasons["c/only.png"] == "the file is empty"
    assert sorted(reasons) == ["a/cut.jpg", "b/README", "b/Thumbs.db", "b/list.txt", "c/only.png"]
    kinds = {"without extension": "b/README", ".db": "b/Thumbs.db", ".txt": "b/list.txt"}
    assert dataset.account.read == 24 and dataset.account.num_left_out == 3
    assert set(dataset.account.left_out) == {
        Omission(f"not a picture, {kind}", 1, path) for kind, path in kinds.items()
    }
    assert dataset.account.unreadable == (
        Omission(reasons["a/cut.jpg"], 1, "a/cut.jpg"),
        Omission("the file is empty", 1, "c/only.png"),
    )
    assert "left out 3: not a picture, without extension 1 (b/README); not a picture, .db 1 (b/Thumbs.db); " in "".join(
        dataset.notes
    )
    assert (
        f"excluded 2 pictures that cannot be read: a/cut.jpg ({reasons['a/cut.jpg']}), c/only.png (the file is empty)"
        in dataset.notes
    )
    assert "left out 1 class without a readable picture: c" in dataset.notes
    error = refused(root, bad_images="fail")
    assert error.given.startswith("2 pictures cannot be read: a/cut.jpg (")
    assert error.allowed == "pictures that Pillow reads, since data.bad_images is fail"
    assert error.remedy == "repair or remove them, or leave them out: --set data.bad_images=exclude"
    for name in ("a/cut.jpg", "c/only.png"):
        (root / name).unlink()
    assert len(load(root, bad_images="fail").manifest) == 24  # files that are no pictures fail nothing


def test_awkward_images(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "awkward-images.zip") as archive:
        archive.extractall(tmp_path)
    dataset = load(tmp_path / "awkward-images")
    files = {str(path.relative_to(tmp_path / "awkward-images")) for path in tmp_path.rglob("*.*") if path.is_file()}
    assert len(files) == 78
    assert set(dataset.manifest.paths.to_pylist()) | {item.path for item in dataset.excluded} == files
    assert len(dataset.manifest) + len(dataset.excluded) == 78
    for row in range(len(dataset.manifest)):
        assert dataset.images.load(row).size == (dataset.manifest.widths[row], dataset.manifest.heights[row])
    upright = [row for row, path in enumerate(dataset.manifest.paths.to_pylist()) if "Portrait" in path]
    assert all(dataset.manifest.heights[row] > dataset.manifest.widths[row] for row in upright) and len(upright) == 3


def write_table(root: Path, rows: list[list[str]], name: str = "t.csv") -> Path:
    with (root / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / name


def test_groups_of_a_table_never_straddle(shared_data: Path, tmp_path: Path) -> None:
    """Camera traps: 1,273 rows of the real table with made pictures, classes one-hot, sites found."""
    with (
        (shared_data / "camera-traps-features.csv").open() as features,
        (shared_data / "camera-traps-labels.csv").open() as labels,
    ):
        joined = [[*a, *b[1:]] for a, b in zip(csv.reader(features), csv.reader(labels), strict=True)]
    table = [joined[0], *joined[1::3]]
    (tmp_path / "train_features").mkdir()
    for at, row in enumerate(table[1:]):
        (tmp_path / row[1]).write_bytes(b"P5 1 2 255\n" + bytes(divmod(at, 256)))
    dataset = load(write_table(tmp_path, table, "traps.csv"))
    manifest = dataset.manifest
    assert manifest.groups is not None and len(manifest) == 1273
    parts_of: dict[str, set[int]] = {}
    for group, part in zip(manifest.groups.to_pylist(), manifest.splits.tolist(), strict=True):
        parts_of.setdefault(group, set()).add(part)
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert f"groups from column 'site': {len(parts_of)}" in dataset.notes
    assert any("no site in two parts, stratified by class as far as that allows" in note for note in dataset.notes)
    assert any(note.startswith("val has ") and "since groups stay together" in note for note in dataset.notes)
    shuffled = [table[0], *np.random.default_rng(0).permutation(np.array(table[1:], object)).tolist()]
    assert load(write_table(tmp_path, shuffled, "other.csv")).manifest.digest == manifest.digest
    assert load(tmp_path / "traps.csv", group="none").manifest.groups is None
    assert load(tmp_path / "traps.csv", seed=1).manifest.digest != manifest.digest


def test_groups_that_say_nothing(tmp_path: Path) -> None:
    fill(tmp_path, a=6, b=6)
    rows = [["path", "label", "site"], *([f"{name}/{at}.png", name, "s"] for name in "ab" for at in range(6))]
    dataset = load(write_table(tmp_path, rows))
    assert dataset.manifest.groups is None
    assert "column 'site' has the same value in all rows and is not used for groups" in dataset.notes
    assert refused(tmp_path / "t.csv", group="site").given == "1 group cannot give 3 parts (train, val, test)"


def test_pictures_without_a_group(tmp_path: Path) -> None:
    fill(tmp_path, a=12, b=12)
    rows = [
        ["path", "label", "site"],
        *([f"{name}/{at}.png", name, str(at % 4) if at > 3 else ""] for name in "ab" for at in range(12)),
    ]
    dataset = load(write_table(tmp_path, rows), val=0.05, test=0.05)  # less than a group of four
    assert dataset.manifest.groups is not None and dataset.manifest.groups.null_count == 8
    assert "8 pictures without a value in column 'site': each is treated as its own group" in dataset.notes
    alone = dataset.manifest.groups.is_null().to_numpy(zero_copy_only=False)
    assert len(set(dataset.manifest.splits[alone])) > 1


def test_a_given_split_that_tears_groups_apart(tmp_path: Path) -> None:
    fill(tmp_path, a=6, b=6)
    parts = ["train", "train", "train", "train", "val", "val"]
    rows = [["path", "label", "site", "split"]]
    rows += [[f"{name}/{at}.png", name, "st"[at % 2], parts[at]] for name in "ab" for at in range(6)]
    table = write_table(tmp_path, rows)
    note = (
        "the split given by DATA divides 2 groups of column 'site' between parts (s, t), "
        "so results may be too good for new groups"
    )
    assert note in load(table).notes
    error = refused(table, group="site")
    assert error.given == "the split given by DATA divides 2 groups of column 'site' between parts: s, t"
    assert "--set data.split=none" in error.remedy
    assert sizes(load(table, group="none")) == (8, 4, 0)


def test_single_pictures_train(tmp_path: Path) -> None:
    dataset = load(fill(tmp_path, a=10, b=10, rare=1))
    assert dataset.notes[-1] == "classes with a single picture, which is used for training: rare"
    manifest = dataset.manifest
    assert manifest.splits[manifest.labels == 2].tolist() == [0]


def test_open_images(tmp_path: Path) -> None:
    dataset = load(fill(tmp_path / "data", a=5, b=5))
    dataset.manifest.write(tmp_path / "manifest.parquet")
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    assert np.array_equal(np.asarray(open_images(manifest).load(3)), np.asarray(dataset.images.load(3)))
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError) as error:
        open_images(manifest)
    assert error.value.given == f"the pictures of '{tmp_path}/data' were in {tmp_path}/data, which does not exist now"
    assert error.value.remedy.startswith("mount it or move it back")


def test_digits(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("digits", Data())
    assert sizes(dataset) == (1257, 270, 270)
    assert dataset.notes[0].startswith("1,797 pictures in 10 classes (0 178, 1 182,")
    assert dataset.manifest.source == "digits" and dataset.excluded == ()
    assert open_images(dataset.manifest).load(0).size == (8, 8)
    monkeypatch.setenv("STAGEWRIGHT_CACHE", str(tmp_path))  # a run that is resumed on another machine
    images = open_images(dataset.manifest)
    assert isinstance(images, FileImages) and Path(images.root).is_relative_to(tmp_path)
    assert np.array_equal(np.asarray(images.load(5)), np.asarray(dataset.images.load(5)))


@pytest.mark.parametrize(
    ("source", "given", "remedy"),
    [
        ("https://host/x.zip", "'https://host/x.zip' is no address of an object store", "download it"),
        ("digit", "there is no 'digit'; did you mean 'digits'?", "check the path; digits needs no files"),
        ("photo", "there is no 'photo'; did you mean 'photos'?", "check the path"),
        ("nowhere/at/all", "there is no 'nowhere/at/all'", "check the path"),
        ("photos/a.txt", "'photos/a.txt' is neither a folder nor a table", "point at the folder that contains it"),
    ],
)
def test_what_is_no_data(source: str, given: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    error = refused(source)
    assert error.given.startswith(given)
    assert error.allowed.startswith("a folder of class folders; a folder with train/, val/ and test/; a .csv")
    assert error.remedy.startswith(remedy)


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    error = refused(fill(tmp_path / "one", cat=5))
    assert error.given == f"all 5 readable pictures of '{tmp_path}/one' have the same class, 'cat'"
    assert (error.allowed, error.remedy) == ("two classes or more", "add pictures of another class")
    error = refused(fill(tmp_path / "nested", photos__cat=3, photos__dog=3))
    assert error.remedy == f"if the folders in it are the classes, point at {tmp_path}/nested/photos"
    error = refused(fill(tmp_path / "each", a=1, b=1, c=1))
    assert error.given == f"each of the 3 pictures of '{tmp_path}/each' has a different class, e.g. a, b, c"
    assert error.remedy == "check the folders, or name another column: --set data.label=NAME"
    for name in ("bad/a/1.png", "bad/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    error = refused(tmp_path / "bad")
    assert error.given.startswith(
        f"none of the 2 files of '{tmp_path}/bad' can be read as a picture: a/1.png (the file is empty)"
    )
    assert error.remedy.startswith("open one of them with another program")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    assert refused(tmp_path / "hollow").given == f"there are no pictures in '{tmp_path}/hollow'"
    os.close(os.open(os.fsencode(tmp_path / "hollow" / "a") + b"/caf\xe9.png", os.O_CREAT | os.O_WRONLY))
    assert refused(tmp_path / "hollow").given.endswith(
        "; left out 1: its name is not valid Unicode; rename it 1 (a/caf\\xe9.png)"
    )


def test_classes_that_train_has_not(tmp_path: Path) -> None:
    error = refused(fill(tmp_path, train__a=4, train__b=4, val__a=2, val__bb=2))
    assert error.given == "val has 1 class without a picture in train: 'bb'"
    assert error.allowed == "the classes of train: a, b"
    assert error.remedy == "add pictures of them to train, remove them, or correct their names"


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    dataset = load(fill(tmp_path, **{f"c{at:02d}": 2 + at % 3 for at in range(14)}))
    assert dataset.notes[0] == "41 pictures in 14 classes (from 2 of c00 to 4 of c02)"


def test_progress_is_told(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_dataset(str(fill(tmp_path, a=5, b=5)), Data(), workers=1, progress=lambda *done: calls.append(done))
    assert calls[0] == (0, 10) and calls[-1] == (10, 10)
