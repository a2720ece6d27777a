"""Display names of classes: files of two forms, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagewright.data.class_names import display_names
from stagewright.errors import DataError

CLASSES = ("n01", "n02", "n03")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "class,name\nn01,tench\nn02,goldfish\nn09,other\n"),
        ("a.csv", "n01,tench\nn02,goldfish\n"),
        ("a.tsv", "id\twnid\tname\n7\tn01\ttench\n8\tn02\tgoldfish\n"),
        ("a.yaml", "n01: tench\nn02: goldfish\n"),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    names, notes = display_names(str(tmp_path / name), CLASSES)
    assert names == {"n01": "tench", "n02": "goldfish"}
    assert notes[0].startswith("display names for 2 classes from") and notes[1].endswith("keep their own: n03")


def test_figures_are_names_of_folders_too(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("0: zero\n1: one\n")
    assert display_names(str(tmp_path / "a.yml"), ("0", "1"))[0] == {"0": "zero", "1": "one"}


def test_a_mapping_and_none() -> None:
    assert display_names({"n01": "tench"}, CLASSES)[0] == {"n01": "tench"}
    assert display_names(None, CLASSES) == ({}, [])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "n01: [tench]", "n01: ['tench']: input should be a valid string"),
        ("a.yaml", "n01: ''", "at least 1 character"),
        ("a.yaml", 'n01: "a\\nb"', "should match pattern"),
        ("a.yaml", "- n01", "input should be a valid dictionary"),
        ("a.yaml", "n01: a\nn01: b", "is not valid YAML"),
        ("a.yaml", "n1: tench", "names 'n1', and none of the classes; did you mean 'n01'?"),
        ("a.yaml", "n01: n02", "gives the classes 'n01' and 'n02' the name 'n02'"),
        ("a.csv", "n01,tench\nn01,goldfish\n", "gives 'n01' two names"),
        ("a.csv", "class\nn01\n", "has only the column 'class'"),
        ("none.csv", "", "there is no file"),
        ("none.yaml", "", "there is no file"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        display_names(str(tmp_path / name), CLASSES)
    assert said in error.value.given
