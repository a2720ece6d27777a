"""Tests that the names of objects are listed exactly as the files of a folder with these names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.data.sources.folders import Listing, list_files, list_folder
from stagewright.data.sources.local import list_tree
from stagewright.data.sources.match_paths import match_files
from stagewright.data.sources.tables import list_table
from stagewright.data.sources.tree import DiskTree, StoreTree, Tree, as_tree
from stagewright.data.sources.walk import walk
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data
from stagewright.storage.object_files import StoredObject

URL = "s3://bucket/photos"
IMAGES = ("a.jpg", "b.PNG", "c")
LAYOUTS = [
    [
        "cat/1.jpg",
        "cat/deep/2.jpg",
        "dog/3.jpg",
        "dog/.hidden",
        "@eaDir/4.jpg",
        ".git/config",
        "readme.md",
        "labels.csv",
    ],
    ["train/cat/1.jpg", "train/dog/2.jpg", "valid/cat/3.jpg", "test/x.jpg", "pred/1.jpg", "notes/n.txt", "top.jpg"],
    ["seg_train/seg_train/cat/1.jpg", "seg_train/seg_train/dog/1.jpg", "seg_test/seg_test/cat/2.jpg"],
    ["cat/a/1.jpg", "cat/b/2.jpg", "dog/a/3.jpg", "dog/b/4.jpg", "fox/5.jpg"],
    [
        "cat/1.jpg",
        "dog/2.jpg",
        "old.pack/pack.json",
        "old.pack/index.parquet",
        "dog/run/plan.json",
        "dog/run/recipe.yaml",
    ],
    ["train/1.jpg", "train/2.jpg", "val/3.jpg"],
    ["train/cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "val/dog/3.jpg"],
    ["valid/cat/1.jpg", "test/cat/2.jpg"],
    ["train/cat/1.jpg", "training/cat/1.jpg"],
    ["photos/1.jpg", "labels.csv"],
    ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg", "dog.2.jpg"],
    ["plan.json", "recipe.yaml", "cat/1.jpg"],
    ["images/train/1.jpg", "images/train/2.jpg", "masks/train/1.png", "masks/train/2.png"],
    ["gr\u00fcn/1.jpg", "gru\u0308n/2.jpg", "a b/1 2.jpg", "100%/x%20y.jpg"],
]


def fill(folder: Path, names: Sequence[str]) -> DiskTree:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return DiskTree(folder)


def stored(names: Sequence[str]) -> StoreTree:
    return StoreTree(URL, {name: StoredObject(name, 1, "e") for name in sorted(names)})


def said(listing: Listing) -> dict[str, Any]:
    """Everything that a listing says, without the place."""
    columns = {name: getattr(listing, name).to_pylist() for name in ("paths", "labels")}
    others = {name: getattr(listing, name) for name in ("excluded", "left_out", "group_name")}
    notes = [note.partition(" To have the inner folders")[0].removesuffix(".") for note in listing.notes]
    return {**columns, **others, "parts": listing.parts.tolist(), "notes": notes}


def outcome(tree: Tree, how: str, needs_train: bool) -> Any:
    """What a listing says, or its error, in which the place is ``HERE``."""
    try:
        if how == "tree":
            return said(list_tree("source", tree, Data(), needs_train))
        return said((list_folder if how == "folder" else list_files)(tree, needs_train=needs_train))
    except DataError as error:
        return str(error).replace(tree.place, "HERE")


@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
@pytest.mark.parametrize("how", ["tree", "folder", "files"])
def test_layouts(names: list[str], how: str, tmp_path: Path) -> None:
    disk = fill(tmp_path, names)
    for needs_train in (True, False):
        assert outcome(stored(names), how, needs_train) == outcome(disk, how, needs_train)


def test_the_layouts_are_of_every_kind(tmp_path: Path) -> None:
    """Some are listed, others are refused, so that both are compared."""
    found = [outcome(fill(tmp_path / str(at), names), "tree", True) for at, names in enumerate(LAYOUTS)]
    assert sum(isinstance(one, dict) for one in found) >= 5 and sum(isinstance(one, str) for one in found) >= 5
    assert found[0]["labels"] == ["cat", "cat", "dog"] and any("hidden" in one.reason for one in found[0]["left_out"])


WORDS = st.sampled_from(
    ["train", "val", "test", "cat", "dog", "cat.jpg", ".x", "x.pack", "pack.json", "index.parquet", "1"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8))
def test_any_names(names: list[str]) -> None:
    """No name is a folder and a file at once, which a disk does not allow."""
    names = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    with TemporaryDirectory() as folder:
        disk = fill(Path(folder), names)
        for how in ("tree", "files"):
            assert outcome(stored(names), how, True) == outcome(disk, how, True)


@pytest.mark.parametrize(
    "wanted",
    [
        ["cat/1.jpg", "./dog/2.jpg", "gone.jpg"],
        ["cat/1", "dog/2"],
        ["CAT/1.JPG", "2.png"],
        ["/other/machine/cat/1.jpg", "/other/machine/dog/2.jpg"],
        ["1.jpg", "~/2.jpg", "../x.jpg"],
    ],
)
def test_paths_of_a_table(wanted: list[str], tmp_path: Path) -> None:
    names = ["cat/1.jpg", "dog/2.jpg", "dog/1.jpg", ".hidden/2.jpg"]
    (tmp_path / "photos").mkdir()
    one, other = match_files(stored(names), wanted), match_files(fill(tmp_path / "photos", names), wanted)
    assert (one.paths, one.reasons, one.notes) == (other.paths, other.reasons, other.notes)


def test_the_folder_of_a_table(tmp_path: Path) -> None:
    names = ["images/cat/1.jpg", "images/dog/2.jpg", "labels.csv"]
    disk = fill(tmp_path, names)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ncat/1.jpg,cat\ndog/2.jpg,dog\n")
    for images in ("images", "./images/", "images/cat/.."):
        found = list_table(table, Data(images=images), beside=stored(names))
        assert said(found) == said(list_table(table, Data(images=images), beside=disk)) and len(found.paths) == 2
        assert found.root == f"{URL}/images"
    assert len(list_table(table, Data(images="."), beside=stored([name[7:] for name in names])).paths) == 2
    with pytest.raises(DataError, match="no folder 'pictures'"):
        list_table(table, Data(images="pictures"), beside=stored(names))


def test_marks_of_folders() -> None:
    """Programs mark folders by empty objects of their names; an object with content beside a folder of its name is a file."""
    tree = StoreTree(URL, {name: StoredObject(name, size, "") for name, size in MARKED.items()})
    assert sorted(walk(tree).files) == ["cat", "cat/1.jpg", "empty.jpg"]
    assert tree.is_folder("dog") and not tree.is_folder("gone") and tree.join("", "dog") == f"{URL}/dog"
    with pytest.raises(FileNotFoundError):
        list(tree.scan("gone"))


MARKED = {"": 0, "cat": 3, "cat/1.jpg": 5, "dog": 0, "dog/.x": 5, "empty.jpg": 0}


def test_a_folder_is_its_own_tree(tmp_path: Path) -> None:
    disk = fill(tmp_path, ["a/1.txt"])
    assert as_tree(disk) is disk and as_tree(tmp_path) == disk == as_tree(str(tmp_path))
    (tmp_path / "a" / "1.txt").write_bytes(b"begin" + bytes(100) + b"end")
    assert disk.ends("a/1.txt", 5)[:5] == b"begin" and disk.ends("a/1.txt", 5).endswith(b"end")
    assert disk.ends("gone", 5) == b"" == disk.ends("a", 5)
