from __future__ import annotations

import functools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.data.partition import TEST, TRAIN, VAL
from stagewright.data.sources.folder_names import (
    classes_in_file_names,
    combined_names,
    own_folder,
    part_folders,
    similar_names,
)


@pytest.mark.parametrize(
    ("names", "parts", "unlabelled", "others"),
    [
        (["train", "val", "test"], {TRAIN: ["train"], VAL: ["val"], TEST: ["test"]}, (), ()),
        (["seg_train", "seg_test", "seg_pred"], {TRAIN: ["seg_train"], TEST: ["seg_test"]}, ("seg_pred",), ()),
        (["training_set", "test_set"], {TRAIN: ["training_set"], TEST: ["test_set"]}, (), ()),
        (["train", "test1"], {TRAIN: ["train"], TEST: ["test1"]}, (), ()),
        (["Training", "Testing"], {TRAIN: ["Training"], TEST: ["Testing"]}, (), ()),
        (["TRAIN", "VALID", "dev"], {TRAIN: ["TRAIN"], VAL: ["VALID", "dev"]}, (), ()),
        (["trainImages", "testImages"], {TRAIN: ["trainImages"], TEST: ["testImages"]}, (), ()),
        (["train-jpg", "hold-out"], {TRAIN: ["train-jpg"], TEST: ["hold-out"]}, (), ()),
        (["holdout", "train"], {TEST: ["holdout"], TRAIN: ["train"]}, (), ()),
        (["cat", "dog"], {}, (), ("cat", "dog")),
        (["train", "car", "plane"], {TRAIN: ["train"]}, (), ("car", "plane")),
        (["bus_test", "car_train"], {}, (), ("bus_test", "car_train")),
        (["train_test", "test_train"], {}, (), ("train_test", "test_train")),
        (["trainee", "tester", "evaluation_"], {}, (), ("trainee", "tester", "evaluation_")),
    ],
)
def test_sibling_folders(
    names: list[str], parts: dict[int, list[str]], unlabelled: tuple[str, ...], others: tuple[str, ...]
) -> None:
    found = part_folders(names)
    assert (found.names, found.unlabelled, found.others) == (parts, unlabelled, others)


@given(st.lists(st.text(max_size=12), unique=True, max_size=8))
def test_every_folder_is_sorted_once(names: list[str]) -> None:
    found = part_folders(names)
    assert sorted(
        [*functools.reduce(operator.iadd, found.names.values(), []), *found.unlabelled, *found.others]
    ) == sorted(names)


def test_own_folders_are_known_by_their_files() -> None:
    assert own_folder(["plan.json", "recipe.yaml", "log.txt"]) == "a run"
    assert own_folder(["model.json", "weights.safetensors"]) == "a trained model"
    assert own_folder(["lr-find.json", "lr-find.csv"]) == "a learning rate search"
    assert own_folder(["plan.json", "cat.jpg"]) is None and own_folder([]) is None


def test_names_that_differ_in_case_blanks_and_dashes_alone() -> None:
    assert similar_names(["Cat", "cat", "dog"]) == [("Cat", "cat")]
    assert similar_names(["red fox", "red_fox", "Red-Fox", "redfox2"]) == [("red fox", "red_fox", "Red-Fox")]
    assert similar_names(["-", "_", "a"]) == []


@pytest.mark.parametrize(
    ("classes", "combined"),
    [
        (["rust", "rust complex", "scab", "scab rust"], ["rust complex", "scab rust"]),
        (["a", "b", "a,b"], ["a,b"]),
        (["a|b", "a", "b", "c"], ["a|b"]),
        (["fox", "red fox", "arctic fox"], []),
        (["new york", "york", "boston"], []),
        ([], []),
    ],
)
def test_cells_with_several_labels(classes: list[str], combined: list[str]) -> None:
    assert combined_names(classes) == combined


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.10.jpg"], ["cat", "dog"]),
        (["red_fox_1.png", "red_fox_2.png", "owl-3.png", "owl-4.png"], ["owl", "red_fox"]),
        (["Abyssinian (1).jpg", "Abyssinian (2).jpg", "Bengal (1).jpg", "Bengal (2).jpg"], ["Abyssinian", "Bengal"]),
        (["IMG_1.jpg", "IMG_2.jpg"], []),
        (["cat.0.jpg", "readme.txt", "dog.1.jpg", "dog.2.jpg"], []),
        ([f"x{chr(97 + at)}1.jpg" for at in range(20)], []),
    ],
)
def test_classes_in_file_names(files: list[str], classes: list[str]) -> None:
    assert classes_in_file_names(files) == classes
