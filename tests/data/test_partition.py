"""partition: shares, strata and groups, as properties of random data; the order of the rows does not matter."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stagewright.data.partition import TEST, TRAIN, VAL, grouped, stratified
from stagewright.errors import DataError
from stagewright.rng import keys

Case = tuple[NDArray[np.uint64], NDArray[np.int32]]


def content_of(count: int, salt: int = 0) -> NDArray[np.uint64]:
    return keys(salt, np.arange(count))


@st.composite
def pictures(draw: st.DrawFn, copies: bool = True) -> Case:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    content = content_of(len(labels), draw(st.integers(0, 5)))
    if copies and draw(st.booleans()):
        content = content[draw(st.lists(st.integers(0, len(labels) - 1), min_size=len(labels), max_size=len(labels)))]
    return content, labels


shares = st.sampled_from([(0.15, 0.15), (0.2, 0.0), (0.0, 0.3), (0.4, 0.5), (0.01, 0.01), (0.0, 0.0)])


@given(pictures(), shares, st.integers(0, 2**40))
def test_guarantees_hold_for_random_images(case: Case, share: tuple[float, float], seed: int) -> None:
    content, labels = case
    parts = stratified(content, labels, *share, seed)
    assert parts.dtype == np.int8 and parts.shape == labels.shape
    assert set(np.unique(labels[parts == TRAIN])) == set(np.unique(labels))
    for picture in np.unique(content):
        assert len(set(parts[content == picture])) == 1
    for part, requested in ((VAL, share[0]), (TEST, share[1])):
        assert requested > 0 or not (parts == part).any()


@given(pictures(), shares, st.integers(0, 99), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(
    case: Case, share: tuple[float, float], seed: int, random: np.random.Generator
) -> None:
    content, labels = case
    order = list(range(len(labels)))
    random.shuffle(order)
    parts = stratified(content, labels, *share, seed)
    assert (stratified(content[order], labels[order], *share, seed) == parts[order]).all()
    groups = keys(3, labels % 4, np.arange(len(labels)) % 3)
    try:
        expected, notes = grouped(content, labels, groups, *share, seed)
    except DataError:
        with pytest.raises(DataError):
            grouped(content[order], labels[order], groups[order], *share, seed)
    else:
        again, again_notes = grouped(content[order], labels[order], groups[order], *share, seed)
        assert (again == expected[order]).all() and again_notes == notes


@given(pictures(copies=False), st.sampled_from([(0.15, 0.15), (0.2, 0.0), (0.25, 0.5)]), st.integers(0, 99))
def test_shares_are_exact_to_one_image(case: Case, share: tuple[float, float], seed: int) -> None:
    content, labels = case
    parts = stratified(content, labels, *share, seed)
    sizes = np.bincount(labels)
    for part, requested in ((VAL, share[0]), (TEST, share[1])):
        counts = np.bincount(labels[parts == part], minlength=len(sizes))
        assert (np.abs(counts - requested * sizes) <= 1).all()
        enough = sizes >= 3
        assert (counts[enough] >= (requested > 0)).all()
        if (sizes * min(value for value in share if value) >= 1).all() and (sizes >= 10).all():
            assert abs(counts.sum() - requested * sizes.sum()) <= 0.5


def test_small_classes() -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), [1, 2, 3, 7])
    parts = stratified(content_of(13), labels, 0.15, 0.15, 0)
    counts = [np.bincount(parts[labels == label], minlength=3).tolist() for label in range(4)]
    assert counts == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [5, 1, 1]]


def test_a_class_whose_images_all_have_copies_in_another_class_has_training_images() -> None:
    labels = np.array([0] * 6 + [1] * 2, np.int32)
    content = content_of(6)[[0, 1, 2, 3, 4, 5, 2, 3]]
    for seed in range(30):
        parts = stratified(content, labels, 0.3, 0.3, seed)
        assert (parts[labels == 1] == TRAIN).any()


def test_seeds_differ_and_the_split_of_a_seed_never_changes() -> None:
    labels = np.arange(200, dtype=np.int32) % 4
    content = content_of(200)
    splits = [stratified(content, labels, 0.2, 0.2, seed) for seed in range(20)]
    assert len({parts.tobytes() for parts in splits}) == 20
    overlaps = [(a == VAL)[b == VAL].mean() for a in splits for b in splits if a is not b]
    assert 0.1 < np.mean(overlaps) < 0.3  # as much as chance
    assert np.flatnonzero(splits[0] == VAL)[:8].tolist() == [14, 15, 20, 23, 28, 35, 37, 39]
    assert np.flatnonzero(splits[0] == TEST)[:8].tolist() == [3, 4, 7, 8, 12, 36, 42, 51]


def test_more_pictures_move_few_of_the_others() -> None:
    """The draw of an image depends on this image only: 5 % more images must not change the parts of all others."""
    labels = np.arange(420, dtype=np.int32) % 2
    content = content_of(420)
    before = stratified(content[:400], labels[:400], 0.2, 0.2, 1)
    after = stratified(content, labels, 0.2, 0.2, 1)[:400]
    assert (before != after).mean() < 0.06


@st.composite
def groups_of_pictures(draw: st.DrawFn) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.uint64]]:
    sizes = draw(st.lists(st.integers(1, 20), min_size=3, max_size=30))
    group = np.repeat(np.arange(len(sizes)), sizes)
    num_classes = draw(st.integers(2, 4))
    labels = np.array(
        draw(st.lists(st.integers(0, num_classes - 1), min_size=len(group), max_size=len(group))), np.int32
    )
    return content_of(len(group), draw(st.integers(0, 5))), labels, keys(7, group)


@settings(max_examples=60, deadline=None)
@given(groups_of_pictures(), st.integers(0, 99))
def test_groups_are_never_divided(
    case: tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.uint64]], seed: int
) -> None:
    content, labels, groups = case
    try:
        parts, notes = grouped(content, labels, groups, 0.15, 0.15, seed)
    except DataError as error:
        assert "groups" in error.given and error.remedy
        return
    assert notes == ()
    for group in np.unique(groups):
        assert len(set(parts[groups == group])) == 1
    assert set(np.unique(labels[parts == TRAIN])) == set(np.unique(labels))
    assert set(parts) == {TRAIN, VAL, TEST}
    if len(set(labels)) == 2 and len(set(groups)) >= 10:
        largest = np.unique(groups, return_counts=True)[1].max() / len(groups)
        for part in (VAL, TEST):
            assert abs((parts == part).mean() - 0.15) <= largest


def test_many_groups_are_as_good_as_none() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 6000).astype(np.int32)
    groups = keys(1, random.integers(0, 1500, 6000))
    parts, _ = grouped(content_of(6000), labels, groups, 0.15, 0.15, 0)
    for part in (VAL, TEST):
        share = np.bincount(labels[parts == part], minlength=10) / np.bincount(labels)
        assert np.abs(share - 0.15).max() < 0.01
    assert not np.array_equal(parts, grouped(content_of(6000), labels, groups, 0.15, 0.15, 1)[0])


def test_camera_traps(shared_data: Path) -> None:
    """40 real sites of 1 to 557 images: the figures in the docstring of ``grouped``, with a margin for other seeds."""
    with (shared_data / "camera-traps-features.csv").open() as file:
        sites = [row["site"] for row in csv.DictReader(file)]
    with (shared_data / "camera-traps-labels.csv").open() as file:
        table = list(csv.reader(file))[1:]
    labels = np.array([row[1:].index("1.0") for row in table], np.int32)
    names = sorted(set(sites))
    groups = keys(5, np.array([names.index(site) for site in sites]))
    whole = np.bincount(labels) / len(labels)
    splits = set()
    for seed in range(5):
        parts, notes = grouped(content_of(len(labels)), labels, groups, 0.15, 0.15, seed)
        splits.add(parts.tobytes())
        assert notes == ()
        for part in (VAL, TEST):
            rows = parts == part
            assert abs(rows.mean() - 0.15) < 0.04
            assert np.abs(np.bincount(labels[rows], minlength=8) / rows.sum() - whole).sum() / 2 < 0.15
            assert set(labels[rows]) == set(range(8))
    assert len(splits) == 5


def test_groups_that_share_a_picture_stay_together() -> None:
    group = np.repeat(np.arange(30), 4)
    content = content_of(120)
    content[[0, 47, 90]] = content[0]  # groups 0, 11 and 22
    content[[46, 119]] = content[46]  # group 29 is joined through group 11
    labels = np.arange(120, dtype=np.int32) % 2
    for seed in range(10):
        parts, notes = grouped(content, labels, keys(1, group), 0.2, 0.2, seed)
        assert notes == ()
        assert len(set(parts[np.isin(group, [0, 11, 22, 29])])) == 1


def test_groups_that_all_share_an_image_are_split_with_a_note() -> None:
    group = np.repeat(np.arange(30), 4)
    content = content_of(120)
    content[::4] = content[0]  # every camera has the same black image
    labels = np.arange(120, dtype=np.int32) % 2
    parts, notes = grouped(content, labels, keys(1, group), 0.2, 0.2, 0)
    assert set(parts) == {TRAIN, VAL, TEST}
    assert notes[0].startswith(
        "30 pictures have identical copies in other groups, and the copies may be in different parts"
    )
    assert all(len(set(parts[group == at])) == 1 for at in range(30))


def test_too_few_groups() -> None:
    labels = np.array([0, 1, 0, 1], np.int32)
    with pytest.raises(DataError) as error:
        grouped(content_of(4), labels, keys(1, np.array([0, 0, 1, 1])), 0.15, 0.15, 0)
    assert error.value.given == "2 groups cannot give 3 parts (train, val, test)"
    assert error.value.allowed == "at least one group for each part; a group is never divided between parts"
    assert error.value.remedy == "request fewer parts (--set data.test=0), or do not use groups (--set data.group=none)"
    parts, _ = grouped(content_of(4), labels, keys(1, np.array([0, 0, 1, 1])), 0.3, 0.0, 0)
    assert sorted(parts.tolist()) == [TRAIN, TRAIN, VAL, VAL]


def test_classes_of_one_group_each() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    with pytest.raises(DataError) as error:
        grouped(content_of(30), labels, keys(1, labels), 0.15, 0.15, 0)
    assert (
        error.value.given == "no group is left for val and test: train needs all groups to have pictures of every class"
    )
    assert "data.group=none" in error.value.remedy


def test_a_class_of_one_group_trains() -> None:
    group = np.repeat(np.arange(20), 5)
    labels = (np.arange(100) % 2).astype(np.int32)
    labels[group == 7] = 2
    for seed in range(10):
        # With these shares, the deviations alone would put a class of one group into val.
        parts, _ = grouped(content_of(100), labels, keys(1, group), 0.45, 0.45, seed)
        assert (parts[group == 7] == TRAIN).all()
