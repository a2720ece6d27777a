"""Each kind of change alone, all of them against a count row by row, and what a closed part keeps to itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stagewright.data.picture_changes as module
from stagewright.data.manifest import SPLITS, Manifest
from stagewright.data.picture_changes import Change, Example, PictureChanges, Turn, picture_changes

Row = tuple[int, str, str, str]
"""Content, class, part, path."""
KINDS = ("added", "removed", "relabelled", "moved", "renamed", "replaced")
BASE: list[Row] = [
    *((at, "cat", "train", f"cat/{at}.png") for at in range(6)),
    *((at, "dog", "train", f"dog/{at}.png") for at in range(6, 9)),
    (9, "dog", "val", "dog/9.png"),
    (10, "cat", "test", "cat/x10.png"),
]


def manifest(
    rows: list[Row], classes: tuple[str, ...] = ("cat", "dog"), groups: Sequence[str | None] | None = None
) -> Manifest:
    rows = sorted(rows, key=lambda row: row[3])
    size = np.full(len(rows), 8, np.int32)
    return Manifest(
        *("", "photos", classes),
        paths=pa.array([row[3] for row in rows], pa.string()),
        hashes=pa.array([f"{row[0]:032x}"[::-1] for row in rows], pa.string()),
        labels=np.array([classes.index(row[1]) for row in rows], np.int32),
        splits=np.array([SPLITS.index(row[2]) for row in rows], np.int8),
        widths=size,
        heights=size,
        groups=None if groups is None else pa.array(groups, pa.string()),
    )


def changed(rows: dict[int, Row | None], come: tuple[Row, ...] = ()) -> PictureChanges:
    """The changes from BASE to it with other rows."""
    return picture_changes(manifest(BASE), manifest([*filter(None, (rows.get(row[0], row) for row in BASE)), *come]))


def counts(found: PictureChanges) -> dict[str, int]:
    return {name: count for name in KINDS if (count := getattr(found, name).count)}


def test_nothing_has_changed() -> None:
    found = picture_changes(manifest(BASE), manifest(BASE))
    assert counts(found) == {} and found.order and found.by_path_alone and found.shared == found.same == len(BASE)


def test_each_kind_alone() -> None:
    found = changed({1: None, 7: None})
    assert counts(found) == {"removed": 2} and found.shared == len(BASE) - 2 and not found.order
    assert found.removed.examples == (Example("cat/1.png", None), Example("dog/7.png", None))
    found = changed({}, ((77, "dog", "test", "dog/y.png"),))
    assert counts(found) == {"added": 1} and found.added.examples == (Example(None, "dog/y.png"),)
    found = changed({1: (1, "dog", "train", "dog/1.png"), 9: (9, "cat", "val", "dog/9.png")})
    assert counts(found) == {"relabelled": 2}
    assert set(found.relabelled.turns) == {Turn("cat", "dog", 1), Turn("dog", "cat", 1)}
    assert found.relabelled.examples == (Example("cat/1.png", "dog/1.png"), Example("dog/9.png", "dog/9.png"))
    found = changed({at: (at, "cat", "test", f"cat/{at}.png") for at in range(5)})
    assert counts(found) == {"moved": 5} and found.moved.turns == (Turn("train", "test", 5),)
    assert len(found.moved.examples) == 3 and found.same == len(BASE) - 5
    found = changed({1: (1, "cat", "train", "cat/zz.png")})
    assert counts(found) == {"renamed": 1} and found.renamed.examples == (Example("cat/1.png", "cat/zz.png"),)
    assert not found.order and not found.by_path_alone
    found = changed({1: (1, "cat", "train", "cat/1.jpg")})
    assert counts(found) == {"renamed": 1} and found.by_path_alone, "at the same place in the order, it is fed the same"
    found = changed({3: (55, "cat", "train", "cat/3.png")})
    assert counts(found) == {"added": 1, "removed": 1, "replaced": 1}
    assert found.replaced == Change(1, (Example("cat/3.png", "cat/3.png"),))


def test_relabelled_and_moved_at_once() -> None:
    found = changed({2: (2, "dog", "val", "dog/2.png")})
    assert counts(found) == {"relabelled": 1, "moved": 1} and found.shared == len(BASE) and found.same == len(BASE) - 1


def test_classes_are_known_by_name_and_not_by_number() -> None:
    found = picture_changes(manifest(BASE), manifest(BASE, ("ant", "cat", "dog")))
    assert counts(found) == {} and found.order


def test_copies_are_pictures_of_their_own() -> None:
    twice = [*BASE, (1, "cat", "train", "cat/copy.png")]
    assert counts(picture_changes(manifest(BASE), manifest(twice))) == {"added": 1}
    found = picture_changes(manifest(twice), manifest(BASE))
    assert counts(found) == {"removed": 1} and found.removed.examples == (Example("cat/copy.png", None),)
    other = [*BASE, (1, "dog", "val", "cat/copy.png")]
    assert counts(picture_changes(manifest(twice), manifest(other))) == {"relabelled": 1, "moved": 1}


def test_groups_of_other_names() -> None:
    one = manifest(BASE, groups=["a"] * len(BASE))
    other = manifest(BASE, groups=["b", None, *["a"] * (len(BASE) - 2)])
    found = picture_changes(one, other)
    assert found.regrouped == 2 and counts(found) == {} and not found.by_path_alone
    assert picture_changes(one, manifest(BASE)).regrouped == len(BASE)


def test_a_closed_test_part_is_counted_and_never_named() -> None:
    other = [
        *(row for row in BASE if row[0] not in (1, 10)),
        (10, "dog", "test", "dog/x10.png"),
        (1, "dog", "test", "dog/1.png"),
        (33, "dog", "test", "dog/secret.png"),
    ]
    one, two = manifest(BASE), manifest(other)
    opened = picture_changes(one, two)
    assert len(opened.relabelled.examples) == 2 and opened.added.examples
    for closed in ((False, True), (True, True)):
        found = picture_changes(one, two, closed)
        assert counts(found) == counts(opened) == {"added": 1, "relabelled": 2, "moved": 1}
        assert found.relabelled.examples == found.added.examples == found.moved.examples == ()
        assert found.relabelled.turns == () and found.moved.turns == opened.moved.turns
    found = picture_changes(one, two, (True, False))
    assert found.relabelled.examples == (Example("cat/1.png", "dog/1.png"),) and found.added == opened.added


def test_an_empty_manifest() -> None:
    empty, base = manifest([]), manifest(BASE)
    assert counts(picture_changes(empty, base)) == {"added": len(BASE)}
    assert counts(picture_changes(base, empty)) == {"removed": len(BASE)}
    assert counts(picture_changes(empty, empty)) == {}


row = st.tuples(st.integers(0, 5), st.sampled_from(["cat", "dog"]), st.sampled_from(SPLITS), st.integers(0, 7))
lists = st.lists(row, max_size=12, unique_by=lambda one: one[3]).map(
    lambda rows: [(*one[:3], f"p{one[3]}") for one in rows]
)


@given(lists, lists)
def test_whatever_two_manifests_are(first: list[Row], second: list[Row]) -> None:
    """Numbers that do not depend on which copy is paired with which, counted row by row; and the way back is the mirror image."""
    found, back = (picture_changes(manifest(a), manifest(b)) for a, b in ((first, second), (second, first)))
    one, other = (Counter(row[0] for row in rows) for rows in (first, second))
    assert found.added.count == (other - one).total() and found.removed.count == (one - other).total()
    assert found.shared == (one & other).total()
    exact = [Counter(row[:3] for row in rows) for rows in (first, second)]
    assert found.same == (exact[0] & exact[1]).total()
    assert found.same + found.relabelled.count + found.moved.count >= found.shared
    assert found.order == (
        [row[:3] for row in sorted(first, key=lambda r: r[3])]
        == [row[:3] for row in sorted(second, key=lambda r: r[3])]
    )
    if max([*one.values(), *other.values()], default=0) <= 1:
        pairs = [(a, b) for a in first for b in second if a[0] == b[0]]
        assert found.same == sum(a[1:3] == b[1:3] for a, b in pairs)
        assert (
            found.relabelled.count
            == sum(a[1] != b[1] for a, b in pairs)
            == sum(t.count for t in found.relabelled.turns)
        )
        assert found.moved.count == sum(a[2] != b[2] for a, b in pairs) == sum(t.count for t in found.moved.turns)
        assert found.renamed.count == sum(a[1:3] == b[1:3] and a[3] != b[3] for a, b in pairs)
    assert (found.added.count, found.relabelled.count) == (back.removed.count, back.relabelled.count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LARGEST", 1)
        assert picture_changes(manifest(first), manifest(second)) == found, "codes that are numbered again and again"


def test_copies_are_paired_in_their_order_and_within_their_part() -> None:
    one, two = (
        manifest([(1, "cat", "train", f"{name}{at:04d}.png") for at in range(size)])
        for name, size in (("p", 5000), ("q", 4000))
    )
    found = picture_changes(one, two)
    assert counts(found) == {"removed": 1000, "renamed": 4000}
    assert found.renamed.examples == tuple(Example(f"p000{at}.png", f"q000{at}.png") for at in range(3))
    assert found.removed.examples == tuple(Example(f"p400{at}.png", None) for at in range(3))
    one = manifest([(1, "cat", "train", "a"), (1, "cat", "val", "b")])
    two = manifest([(1, "dog", "val", "a"), (1, "dog", "train", "b")])
    assert counts(picture_changes(one, two)) == {"relabelled": 2}


def test_many_pictures() -> None:
    size = 200_000
    rows = np.arange(size)
    base = Manifest(
        *("", "x", ("a", "b")),
        paths=pa.array(rows).cast(pa.string()),
        hashes=pa.array(rows + 2**52).cast(pa.string()),
        labels=(rows % 2).astype(np.int32),
        splits=(rows % 3).astype(np.int8),
        widths=np.ones(size, np.int32),
        heights=np.ones(size, np.int32),
    )
    found = picture_changes(base, replace(base, splits=((rows + 1) % 3).astype(np.int8)))
    assert found.moved.count == size and sum(turn.count for turn in found.moved.turns) == size


def test_hashes_that_are_none() -> None:
    with pytest.raises(ValueError):
        picture_changes(manifest(BASE), replace(manifest(BASE), hashes=pa.array(["?" * 32] * len(BASE))))
