"""The sentences on two data sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from stagewright.api.data_difference import data_sentences, decide_the_same
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.picture_changes import picture_changes


def manifest(*rows: tuple[int, str, str, str]) -> Manifest:
    """One of pictures (content, class, part, path)."""
    classes = ("cat", "dog")
    return Manifest(
        *("", "photos", classes),
        paths=pa.array([row[3] for row in rows]),
        hashes=pa.array([f"{row[0]:032x}"[::-1] for row in rows]),
        labels=np.array([classes.index(row[1]) for row in rows], np.int32),
        splits=np.array([SPLITS.index(row[2]) for row in rows], np.int8),
        widths=np.ones(len(rows), np.int32),
        heights=np.ones(len(rows), np.int32),
    )


ONE = manifest(*((at, "cat", "train", f"{at}.png") for at in range(9)))


def said(one: Manifest, other: Manifest) -> list[str]:
    changes = picture_changes(one, other) if one.digest != other.digest else None
    return [*data_sentences(one, other, changes, "A", "B")]


def same(one: Manifest, other: Manifest) -> bool:
    return decide_the_same(one, other, picture_changes(one, other) if one.digest != other.digest else None)


def test_the_same_and_the_same_but_for_paths() -> None:
    assert said(ONE, ONE) == ["the same 9 pictures, classes and parts"] and same(ONE, ONE)
    other = replace(ONE, paths=pa.array([f"x/{at}.jpg\n" for at in range(9)]))
    assert said(ONE, other) == [
        "the same 9 pictures, classes and parts in the same order, but for their paths",
        "9 renamed: 0.png → x/0.jpg\\n, 1.png → x/1.jpg\\n, 2.png → x/2.jpg\\n, …",
    ]
    assert same(ONE, other)
    other = manifest(*((8 - at, "cat", "train", f"{at}.png") for at in range(9)))
    assert said(ONE, other)[-1] == "they stand in another order, so each update is made of other pictures"
    assert not same(ONE, other)


def test_all_changes_in_words() -> None:
    other = manifest(
        *((at, "cat", "train", f"{at}.png") for at in range(3)),
        (30, "cat", "train", "3.png"),
        (4, "dog", "train", "4.png"),
        *((at, "cat", "test", f"{at}.png") for at in range(5, 9)),
    )
    assert said(ONE, other) == [
        "A has 9 pictures, B 9; 8 are in both",
        "1 added: 3.png",
        "1 removed: 3.png",
        "of these, other content at 1 path of both: 3.png",
        "1 relabelled (cat to dog 1): 4.png",
        "4 moved (training to test 4): 5.png, 6.png, 7.png, …",
        "training: 9 and 5, 4 in both",
        "test: 0 and 4, 0 in both",
        "A was trained on 4 pictures of the test of B",
    ]
    assert not same(ONE, other)


def test_variants_classes_and_groups_count() -> None:
    pack = replace(ONE, variant="pack of 256 px")
    assert "A has the originals, B pack of 256 px" in said(ONE, pack) and not same(ONE, pack)
    more = replace(ONE, classes=("cat", "dog", "eel"))
    assert "classes only in B: eel" in said(ONE, more) and not same(ONE, more)
    grouped = replace(ONE, groups=pa.array(["a"] * 9))
    assert "9 in a group of another name" in said(ONE, grouped) and not same(ONE, grouped)
