"""deal: folds are even, stratified and complete; small cases against all solutions, large ones against scikit-learn."""

from __future__ import annotations

import csv
from itertools import combinations_with_replacement, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stagewright.data.splits.folds import _every_class_trains, deal
from stagewright.errors import DataError
from stagewright.rng import keys

NAMES = [f"c{label}" for label in range(60)]


def content_of(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return keys(99, seed, np.arange(count))


def table(folds: NDArray[np.int16], labels: NDArray[np.int32], num_folds: int) -> NDArray[np.int64]:
    counts = np.zeros((num_folds, int(labels.max()) + 1), np.int64)
    np.add.at(counts, (folds, labels), 1)
    return counts


class_sizes = st.lists(st.integers(2, 40), min_size=1, max_size=6)


@given(class_sizes, st.integers(2, 12), st.integers(0, 2**40))
def test_sizes_and_classes_differ_by_one_picture_at_most(sizes: list[int], num_folds: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    if len(labels) < num_folds:
        with pytest.raises(DataError):
            deal(content_of(len(labels)), labels, num_folds, seed, NAMES)
        return
    folds, notes = deal(content_of(len(labels)), labels, num_folds, seed, NAMES)
    assert folds.shape == labels.shape and folds.dtype == np.int16 and 0 <= folds.min() <= folds.max() < num_folds
    counts = table(folds, labels, num_folds)
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1 and counts.sum(1).min() >= 1
    assert bool(notes) == (min(sizes) < num_folds)


@st.composite
def copied(draw: st.DrawFn) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.uint64] | None]:
    """Draws images with copies, within and across classes, with or without groups."""
    sizes = draw(class_sizes)
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    number = len(labels)
    source = np.array(draw(st.lists(st.integers(0, number - 1), min_size=number, max_size=number)))
    content = content_of(number)[np.where(np.arange(number) % draw(st.integers(1, 9)), np.arange(number), source)]
    if draw(st.booleans()):
        return content, labels, None
    return content, labels, keys(7, np.array(draw(st.lists(st.integers(0, 15), min_size=number, max_size=number))))


@settings(max_examples=150, deadline=None)
@given(copied(), st.integers(2, 5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_guarantees_hold_for_random_images(
    case: tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.uint64] | None],
    num_folds: int,
    seed: int,
    random: np.random.Generator,
) -> None:
    content, labels, groups = case
    order = list(range(len(labels)))
    random.shuffle(order)
    mixed = None if groups is None else groups[order]
    try:
        folds, notes = deal(content, labels, num_folds, seed, NAMES, groups)
    except DataError as error:
        assert error.given and error.allowed and error.remedy
        with pytest.raises(DataError):
            deal(content[order], labels[order], num_folds, seed, NAMES, mixed)
        return
    assert set(folds) == set(range(num_folds))
    for label in np.unique(labels):
        assert len(set(folds[labels == label])) > 1  # whichever fold validates, the class has images to train on
    if groups is not None:
        assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    if groups is None or not any("copies may be in different folds" in note for note in notes):
        assert all(len(set(folds[content == picture])) == 1 for picture in np.unique(content))
    again, again_notes = deal(content[order], labels[order], num_folds, seed, NAMES, mixed)
    assert (again == folds[order]).all() and again_notes == notes


@given(st.lists(st.integers(1, 4), min_size=6, max_size=30), st.integers(2, 4), st.integers(0, 99))
def test_a_class_is_uneven_by_at_most_its_largest_set_of_copies(copies: list[int], num_folds: int, seed: int) -> None:
    content = np.repeat(content_of(len(copies)), copies)
    labels = np.repeat(np.arange(len(copies), dtype=np.int32) % 2, copies)
    folds, _ = deal(content, labels, num_folds, seed, NAMES)
    for label, spread in enumerate(np.ptp(table(folds, labels, num_folds), axis=0)):
        assert spread <= max(copies[label::2])


def test_single_images_compensate_for_copies() -> None:
    content = np.concatenate([np.repeat(content_of(3, 1), [5, 4, 3]), content_of(28)])
    labels = np.zeros(40, np.int32)
    for seed in range(10):
        folds, _ = deal(content, labels, 4, seed, NAMES)
        assert np.bincount(folds).tolist() == [10, 10, 10, 10]


def test_class_counts_are_balanced_first_and_totals_second() -> None:
    content, labels = np.repeat(content_of(7), [9, 1, 2, 2, 2, 2, 1]), np.repeat(np.array([0, 1], np.int32), [10, 9])
    for seed in range(5):
        folds, _ = deal(content, labels, 2, seed, NAMES)
        counts = table(folds, labels, 2)
        assert sorted(counts[:, 1]) == [4, 5]
        assert sorted(counts.sum(1)) == [6, 13]  # the last image goes to the smaller fold
        even = content_of(10)[[0, 1, 2, 3, 4, 5, 5, 6, 7, 8]]
        folds, _ = deal(even, np.repeat(np.array([0, 1], np.int32), 5), 2, seed, NAMES)
        assert np.bincount(folds).tolist() == [5, 5]


def test_a_class_of_copies_of_others_gets_a_second_fold() -> None:
    """Such images are counted for their other class, so for some seeds both are in one fold before the repair."""
    content = content_of(8)[[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]]
    labels = np.repeat(np.array([0, 1], np.int32), [8, 2])
    for seed in range(30):
        folds, _ = deal(content, labels, 2, seed, NAMES)
        assert folds[8] != folds[9] and folds[8] == folds[0] and folds[9] == folds[1]


def distance(assignment: tuple[int, ...], units: NDArray[np.int64], num_folds: int) -> float:
    """The objective of ``grouped``, from its definition: squared deviations of class shares and of total shares."""
    counts = np.zeros((num_folds, units.shape[1]))
    np.add.at(counts, list(assignment), units)
    classes = ((counts / units.sum(0) - 1 / num_folds) ** 2).mean(1)
    return float((classes + (counts.sum(1) / units.sum() - 1 / num_folds) ** 2).sum())


@pytest.mark.parametrize("num_folds", [2, 3])
def test_few_groups_are_assigned_almost_optimally(num_folds: int) -> None:
    """Tests one in 347 of all ways to fill six groups with up to three images of each of two classes."""
    kinds = [(a, b) for a, b in product(range(4), repeat=2) if a + b]
    best, found = [], []
    for case in list(combinations_with_replacement(kinds, 6))[::347]:
        units = np.array(case, np.int64)
        if (np.count_nonzero(units, axis=0) < 2).any():
            continue
        group = np.repeat(np.arange(6), units.sum(1))
        labels = np.concatenate([np.repeat([0, 1], unit) for unit in units]).astype(np.int32)
        folds, _ = deal(content_of(len(labels)), labels, num_folds, 0, NAMES, keys(3, group))
        best.append(min(distance(way, units, num_folds) for way in product(range(num_folds), repeat=6)))
        found.append(distance(tuple(folds[group == at][0] for at in range(6)), units, num_folds))
    assert len(best) > 100
    gap = np.array(found) - np.array(best)
    assert gap.min() > -1e-12 and (gap < 1e-12).mean() > 0.97 and gap.max() < 0.02


@pytest.mark.parametrize("num_folds", [2, 3])
@pytest.mark.parametrize("num_units", [3, 4, 5])
def test_every_class_gets_a_second_fold_if_possible(num_folds: int, num_units: int) -> None:
    """Tests all ways to distribute three classes over a few units, from the worst start: all units in one fold."""
    subsets = [subset for subset in product([0, 1], repeat=3) if any(subset)]
    for case in combinations_with_replacement(subsets, num_units):
        stands = np.array(case)
        if (stands.sum(0) == 1).any() or not stands.any(0).all():
            continue

        def fine(way: tuple[int, ...] | NDArray[np.int16], stands: NDArray[np.int64] = stands) -> bool:
            return len(set(way)) == num_folds and all(
                len({fold for fold, has in zip(way, column, strict=True) if has}) > 1 for column in stands.T
            )

        possible = any(fine(way) for way in product(range(num_folds), repeat=num_units))
        pairs = np.argwhere(stands).astype(np.int64)
        args = pairs, np.ones(num_units, np.int64), keys(1, np.arange(num_units)), num_folds, "group"
        if possible:
            assert fine(_every_class_trains(np.zeros(num_units, np.int16), *args))
        else:
            with pytest.raises(DataError, match="found no assignment"):
                _every_class_trains(np.zeros(num_units, np.int16), *args)


def test_too_few_images_or_groups() -> None:
    labels = np.array([0, 0, 1, 1, 1], np.int32)

    def refused(num_folds: int, labels: NDArray[np.int32], groups: list[int] | None = None) -> DataError:
        with pytest.raises(DataError) as error:
            own = None if groups is None else keys(1, np.array(groups))
            deal(content_of(len(labels)), labels, num_folds, 0, NAMES, own)
        return error.value

    assert refused(1, labels).given == "1 fold" and refused(1, labels).allowed == "2 to 100 folds"
    assert refused(6, labels).given == "5 different pictures cannot give 6 folds"
    assert refused(6, labels).remedy == "request 5 folds or fewer"
    error = refused(3, labels, [0, 1, 0, 1, 1])
    assert error.given == "2 groups cannot give 3 folds"
    assert error.remedy == "request 2 folds or fewer, or do not use groups (--set data.group=none)"
    error = refused(2, np.array([0, 0, 0, 1], np.int32))
    assert error.given.startswith("1 class with only one different picture, so that there is nothing to train on")
    assert error.given.endswith("'c1'")
    assert "1 class with only one group" in refused(2, labels, [0, 0, 1, 2, 3]).given


def test_a_note_lists_classes_with_fewer_images_than_folds() -> None:
    labels = np.repeat(np.array([0, 1], np.int32), [20, 3])
    folds, notes = deal(content_of(23), labels, 5, 0, NAMES)
    assert notes == (
        "1 class with fewer different pictures than folds, so that some folds have no pictures of the class: c1 (3)",
    )
    assert len(set(folds[20:])) == 3


def test_groups_that_share_a_picture() -> None:
    group = np.repeat(np.arange(30), 4)
    content = content_of(120)
    content[[0, 47, 90]] = content[0]  # groups 0, 11 and 22
    labels = np.arange(120, dtype=np.int32) % 2
    for seed in range(5):
        folds, notes = deal(content, labels, 5, seed, NAMES, keys(1, group))
        assert notes == () and len(set(folds[np.isin(group, [0, 11, 22])])) == 1
    content[::4] = content[0]  # every camera has the same black image
    folds, notes = deal(content, labels, 5, 0, NAMES, keys(1, group))
    assert notes[0].startswith(
        "32 pictures have identical copies in other groups, and the copies may be in different folds"
    )
    assert all(len(set(folds[group == at])) == 1 for at in range(30)) and set(folds) == set(range(5))


def test_seed_and_number_of_folds_change_the_folds() -> None:
    labels = np.arange(300, dtype=np.int32) % 3
    dealt = [deal(content_of(300), labels, 5, seed, NAMES)[0] for seed in range(10)]
    agree = [(a == b).mean() for a in dealt for b in dealt if a is not b]
    assert 0.15 < np.mean(agree) < 0.25 and max(agree) < 0.35  # as much as chance
    fifth, tenth = dealt[0], deal(content_of(300), labels, 10, 0, NAMES)[0]
    inside = table(tenth, fifth.astype(np.int32), 10).max(1)  # of a tenth of the rows, the largest number in one fifth
    assert inside.mean() < 18  # it would be 30 if each tenth were half of a fifth
    assert dealt[0][:12].tolist() == [3, 1, 0, 3, 1, 4, 1, 1, 1, 3, 4, 2]  # must never change


def class_distance(folds: NDArray[np.int64], labels: NDArray[np.int32]) -> float:
    """Mean over folds of the total variation distance between their class shares and those of all images."""
    counts = table(folds.astype(np.int16), labels, int(folds.max()) + 1)
    whole = counts.sum(0) / counts.sum()
    return float(np.abs(counts / counts.sum(1, keepdims=True) - whole).sum(1).mean() / 2)


def test_camera_traps_against_scikit_learn(shared_data: Path) -> None:
    """3,819 rows of 8 classes at 40 real sites; the largest site has 557."""
    with (shared_data / "camera-traps-features.csv").open() as file:
        sites = np.unique([row["site"] for row in csv.DictReader(file)], return_inverse=True)[1]
    with (shared_data / "camera-traps-labels.csv").open() as file:
        labels = np.array([row[1:].index("1.0") for row in list(csv.reader(file))[1:]], np.int32)
    content = content_of(len(labels))
    ours = [deal(content, labels, 5, seed, NAMES, keys(5, sites))[0].astype(np.int64) for seed in range(5)]
    theirs = np.zeros(len(labels), np.int64)
    for fold, (_, rows) in enumerate(StratifiedGroupKFold(5).split(labels, labels, sites)):
        theirs[rows] = fold
    spreads = [np.ptp(np.bincount(folds)) / len(labels) for folds in ours]
    assert np.mean(spreads) < 0.05 < 0.09 < np.ptp(np.bincount(theirs)) / len(labels)
    assert np.mean([class_distance(folds, labels) for folds in ours]) < class_distance(theirs, labels)
    assert len({folds.tobytes() for folds in ours}) == 5
    ours, theirs = deal(content, labels, 5, 0, NAMES)[0], np.zeros(len(labels), np.int16)
    for fold, (_, rows) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)):
        theirs[rows] = fold
    assert (np.sort(table(ours, labels, 5), axis=0) == np.sort(table(theirs, labels, 5), axis=0)).all()
