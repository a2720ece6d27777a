"""Classes and groups from the names of files: every image has one, and what was read is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagewright.data.account import Omission
from stagewright.data.dataset import load_dataset
from stagewright.data.inspect.inspect import inspect
from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folders import BY_NAME, UNDECIDED
from stagewright.data.sources.local import list_source
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.recipe.recipes import data_settings


def fill(root: Path, *files: str) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def reading(label: str | None = None, group: str | None = None) -> Data:
    given = {"label": label, "group": group}
    return data_settings([f"data.{name}={pattern}" for name, pattern in given.items() if pattern])


def test_a_flat_folder(tmp_path: Path) -> None:
    source = fill(tmp_path, "cat.0.jpg", "dog.1.JPG", "cat.10.jpg", "LICENSE", "notes.txt", ".hidden.jpg", "fox.3.png")
    listing = list_source(source, reading(r"(?P<label>cat|dog|fox)\.\d+"))
    assert listing.paths.to_pylist() == ["cat.0.jpg", "cat.10.jpg", "dog.1.JPG", "fox.3.png"]
    assert listing.labels.to_pylist() == ["cat", "cat", "dog", "fox"] and (listing.parts == UNDECIDED).all()
    assert listing.notes == (
        "classes from the names: 3 classes of 1 to 2 files; e.g. cat.0.jpg is 'cat', dog.1.JPG is 'dog', fox.3.png is 'fox'",
    )
    assert Omission("no image by its name, and data.label does not match it", 2, "LICENSE") in listing.left_out


def test_three_examples_of_two_classes(tmp_path: Path) -> None:
    listing = list_source(fill(tmp_path, "a1.png", "a2.png", "b3.png"), reading("(?P<label>[ab])"))
    assert listing.notes[0].endswith("e.g. a1.png is 'a', b3.png is 'b', a2.png is 'a'")


def test_parts_are_folders(tmp_path: Path) -> None:
    source = fill(
        tmp_path, "train/a_1.jpg", "train/b_2.jpg", "valid/a_3.jpg", "test/b_4.jpg", "docs/a.pdf", "readme.md"
    )
    listing = list_source(source, reading(r"(?P<label>[ab])_\d"))
    assert dict(zip(listing.paths.to_pylist(), listing.parts.tolist(), strict=True)) == {
        "test/b_4.jpg": TEST,
        "train/a_1.jpg": TRAIN,
        "train/b_2.jpg": TRAIN,
        "valid/a_3.jpg": VAL,
    }
    assert sum(one.count for one in listing.left_out) == 2


@pytest.mark.parametrize("kind", ["label", "group"])
def test_names_that_do_not_match_are_listed(tmp_path: Path, kind: str) -> None:
    source = fill(tmp_path, *(f"a/p{at}_x.jpg" for at in range(5)), *(f"b/scan{at}.jpg" for at in range(20)))
    settings = reading(**{kind: rf"(?P<{kind}>p\d)_"})
    with pytest.raises(DataError) as error:
        list_source(source, settings)
    assert rf"data.{kind}=(?P<{kind}>p\d)_ does not match 20 of the 25 files" in error.value.given
    assert "b/scan0.jpg, " in error.value.given and error.value.given.endswith(" and 12 more")
    assert "it begins where the name of the file" in error.value.allowed


def pictures(root: Path, names: list[str]) -> str:
    for at, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name)
    return str(root)


def test_patients_in_class_folders_stay_together(tmp_path: Path) -> None:
    names = [f"{label}/p{patient:02d}_{shot}.png" for label in "ab" for patient in range(12) for shot in range(3)]
    source, settings = pictures(tmp_path, names), reading(group=r"(?P<group>p\d+)_")
    dataset = load_dataset(source, settings)
    manifest = dataset.manifest
    assert manifest.groups is not None and manifest.classes == ("a", "b")
    parts = [set(manifest.groups.take(manifest.rows(part)).to_pylist()) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 12 and all(parts)
    note = "groups from the names: 12 groups of 6 files; e.g. a/p00_0.png is 'p00', a/p06_0.png is 'p06', a/p11_0.png is 'p11'"
    assert note in dataset.notes and any("no group in two parts" in said for said in dataset.notes)
    found = inspect(source, settings)
    assert note in found.to_dict()["notes"] and "12 groups in file names" in found.facts()


def test_groups_of_a_table_from_its_paths(tmp_path: Path) -> None:
    fill(tmp_path, "p1_a.jpg", "p2_b.jpg")
    (tmp_path / "t.csv").write_text("path,label,site\np1_a.jpg,x,s\np2_b.jpg,y,s\n")
    listing = list_source(str(tmp_path / "t.csv"), reading(group=r"(?P<group>p\d)"))
    assert listing.groups is not None and listing.groups.to_pylist() == ["p1", "p2"] and listing.group_name == BY_NAME


@pytest.mark.parametrize(
    ("source", "said"),
    [("digits", "which is digits and has its classes"), ("t.csv", "a table, whose classes are in a column")],
)
def test_where_a_pattern_of_classes_has_no_place(tmp_path: Path, source: str, said: str) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "t.csv").write_text("path,label\na.jpg,x\n")
    with pytest.raises(DataError, match=said):
        list_source(source if source == "digits" else str(tmp_path / source), reading("(?P<label>.)"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        list_source(str(tmp_path), reading("(?P<label>.)"))
