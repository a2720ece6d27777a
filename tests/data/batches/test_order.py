from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright import rng
from stagewright.data.batches.order import (
    batch_places,
    class_shares,
    class_slots,
    sampled_classes,
    sampled_places,
    subset,
)
from stagewright.plan.plan import subset_size

CLASS_COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)
FRACTIONS = st.floats(0.001, 1.0)
SAMPLINGS = st.sampled_from(["square_root", "balanced"])


def labels_of(counts: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[rng.permutation(7, len(labels))]


def test_batches_tile_the_stream_of_permutations_for_every_small_shape() -> None:
    for n in range(1, 10):
        for batch_size in range(1, 24):
            batches = [batch_places(3, n, 5, batch_size, step) for step in range(6)]
            places, passes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
            for position in range(6 * batch_size):
                assert passes[position] == 5 + position // n
            for start in range(0, len(places) - n + 1, n):
                assert sorted(places[start : start + n]) == list(range(n))


def test_a_batch_is_the_permutation_keyed_by_its_pass() -> None:
    places, passes = batch_places(11, 10, 2, 4, 7)  # positions 28..31: the end of pass 4, the beginning of pass 5
    fourth, fifth = (rng.permutation(rng.key(11, rng.Stream.ORDER, p), 10) for p in (4, 5))
    assert places.tolist() == [fourth[8], fourth[9], fifth[0], fifth[1]]
    assert passes.tolist() == [4, 4, 5, 5]
    assert places.dtype == passes.dtype == np.int64


def test_two_seeds_or_passes_never_share_an_order() -> None:
    orders = {tuple(batch_places(seed, 30, first, 30, 0)[0].tolist()) for seed in range(40) for first in range(40)}
    assert len(orders) == 40 * 40


def test_a_stage_goes_on_where_the_passes_of_the_one_before_ended() -> None:
    in_one_stage = batch_places(0, 6, 0, 6, 3)[0]
    in_a_later_stage = batch_places(0, 6, 3, 6, 0)[0]
    assert in_one_stage.tolist() == in_a_later_stage.tolist()


def test_first_places_stay_what_they_were() -> None:
    assert batch_places(0, 100, 0, 8, 0)[0].tolist() == GOLDEN_SEED_0
    assert batch_places(1, 100, 0, 8, 0)[0].tolist() == GOLDEN_SEED_1


def test_a_pass_is_sorted_once_and_cannot_be_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: list[int] = []
    original = rng.permutation
    monkeypatch.setattr(rng, "permutation", lambda at, n: sorts.append(n) or original(at, n))
    before = [batch_places(987, 64, 0, 8, step)[0] for step in range(16)]
    expected = [places.copy() for places in before]
    for places in before:
        places[:] = 0
    after = [batch_places(987, 64, 0, 8, step)[0] for step in range(16)]
    assert sorts == [64, 64]
    assert np.array_equal(after, expected)


@pytest.mark.parametrize(
    ("n", "first_pass", "batch_size", "step"), [(0, 0, 1, 0), (1, -1, 1, 0), (1, 0, 0, 0), (1, 0, 1, -1)]
)
def test_impossible_shapes_are_refused(n: int, first_pass: int, batch_size: int, step: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        batch_places(0, n, first_pass, batch_size, step)


@settings(deadline=None)
@given(CLASS_COUNTS, FRACTIONS, st.integers(0, 5))
def test_a_subset_has_the_size_of_the_plan_and_every_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(counts)
    places = subset(seed, labels, fraction)
    assert len(places) == subset_size(len(labels), sum(count > 0 for count in counts), fraction)
    assert places.dtype == np.int64 and np.all(np.diff(places) > 0)
    assert set(labels[places]) == set(labels)


@settings(deadline=None)
@given(CLASS_COUNTS, FRACTIONS)
def test_a_subset_is_stratified(counts: list[int], fraction: float) -> None:
    labels = labels_of(counts)
    sizes = np.array([count for count in counts if count])
    kept = np.array([k for k in np.bincount(labels[subset(0, labels, fraction)], minlength=len(counts)) if k])
    # There is one share t that every class keeps, to within one image (and at least one image).
    assert np.max((kept - 1) / sizes) <= np.min((kept + 1) / sizes)


@settings(deadline=None)
@given(CLASS_COUNTS, FRACTIONS, FRACTIONS)
def test_subsets_are_nested(counts: list[int], one: float, other: float) -> None:
    labels = labels_of(counts)
    small, large = subset(4, labels, min(one, other)), subset(4, labels, max(one, other))
    assert set(small) <= set(large)


def test_a_large_class_does_not_pay_for_the_rounding_of_many_small_ones() -> None:
    labels = labels_of([3] * 200 + [1000])
    kept = np.bincount(labels[subset(0, labels, 0.55)])
    assert abs(kept[-1] - 550) < 15


def test_fraction_one_keeps_all_and_seeds_differ() -> None:
    labels = labels_of([20, 30, 50])
    assert subset(0, labels, 1.0).tolist() == list(range(100))
    assert len({tuple(subset(seed, labels, 0.5)) for seed in range(50)}) == 50


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="allowed: above 0, up to 1"):
        subset(0, np.zeros(4, dtype=np.int64), fraction)


Pass = tuple[np.ndarray, np.ndarray]


def sampled_pass(seed: int, labels: np.ndarray, sampling: str, index: int) -> Pass:
    """Returns the places and views of a whole pass, taken in batches of 7."""
    classes, n = sampled_classes(labels, sampling), len(labels)
    batches = [sampled_places(seed, classes, index, 7, step) for step in range(-(-n // 7))]
    places, passes, views = (np.concatenate(parts)[:n] for parts in zip(*batches, strict=True))
    assert (passes == index).all()
    return places, views


@settings(deadline=None)
@given(CLASS_COUNTS, SAMPLINGS, st.integers(1, 3))
def test_slots_are_the_shares_by_largest_remainder_and_never_none(counts: list[int], sampling: str, times: int) -> None:
    size = times * sum(counts)
    slots, present = class_slots(counts, sampling, size), np.array(counts) > 0
    assert slots.sum() == size and (slots[present] >= 1).all() and (slots[~present] == 0).all()
    # The remaining slots are divided among the classes above one slot, to within one slot.
    more = slots > 1
    if more.any():
        shares = class_shares(counts, sampling)[more]
        ideal = slots[more].sum() * shares / shares.sum()
        assert (np.abs(slots[more] - ideal) < 1 + 1e-9).all()


def test_slots_by_hand() -> None:
    assert class_slots([90, 9, 1], "natural", 100).tolist() == [90, 9, 1]
    assert class_slots([90, 9, 1], "natural", 200).tolist() == [180, 18, 2]
    assert class_slots([90, 9, 1], "balanced", 100).tolist() == [34, 33, 33]
    assert class_slots([64, 0, 16, 4], "square_root", 84).tolist() == [48, 0, 24, 12]
    assert class_slots([10000, 1, 1], "square_root", 10002).tolist() == [9806, 98, 98]
    assert class_slots([999, 1], "natural", 10).tolist() == [9, 1], "its share is 0.01 slots, but it gets one slot"
    assert class_slots([1, 1, 1], "balanced", 3).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="2 slots for 3 classes"):
        class_slots([1, 1, 1], "balanced", 2)


@settings(deadline=None)
@given(CLASS_COUNTS, SAMPLINGS, st.integers(0, 10**6), st.integers(0, 3))
def test_every_pass_has_the_slots_of_every_class(counts: list[int], sampling: str, index: int, seed: int) -> None:
    labels = labels_of(counts)
    places, _ = sampled_pass(seed, labels, sampling, index)
    seen = np.bincount(labels[places], minlength=len(counts))
    assert seen.tolist() == class_slots(counts, sampling, len(labels)).tolist()


@settings(deadline=None, max_examples=40)
@given(CLASS_COUNTS, SAMPLINGS, st.integers(0, 3), st.integers(1, 9))
def test_pictures_of_a_class_are_seen_within_one_of_each_other(
    counts: list[int], sampling: str, seed: int, passes: int
) -> None:
    labels = labels_of(counts)
    seen = np.zeros(len(labels), np.int64)
    for index in range(passes):
        seen += np.bincount(sampled_pass(seed, labels, sampling, index)[0], minlength=len(labels))
        for label in set(labels):
            assert np.ptp(seen[labels == label]) <= 1


@settings(deadline=None)
@given(CLASS_COUNTS, SAMPLINGS, st.integers(0, 50))
def test_views_count_how_often_a_place_came_in_its_pass(counts: list[int], sampling: str, index: int) -> None:
    places, views = sampled_pass(1, labels_of(counts), sampling, index)
    for place in set(places):
        of_it = sorted(views[places == place])
        assert of_it == list(range(len(of_it)))


def test_two_seeds_or_passes_never_share_a_sampled_order() -> None:
    labels = labels_of([40, 20, 5])
    orders = {
        tuple(sampled_pass(seed, labels, "balanced", index)[0].tolist()) for seed in range(20) for index in range(20)
    }
    assert len(orders) == 400


def test_a_class_with_few_slots_is_walked_to_its_end_and_then_in_a_new_order() -> None:
    labels = np.repeat(
        [0, 1, 2], [16, 4, 4]
    )  # balanced: 8 slots per class, so two passes use each image of class 0 once
    halves = [set(sampled_pass(0, labels, "balanced", index)[0].tolist()) & set(range(16)) for index in range(80)]
    assert all(
        len(a) == len(b) == 8 and a | b == set(range(16)) for a, b in zip(halves[::2], halves[1::2], strict=True)
    )
    assert len({tuple(sorted(half)) for half in halves[::2]}) > 35


def test_every_order_of_a_class_is_as_likely() -> None:
    """With 2 slots for 6 images, the 15 pairs that a permutation can start with are equally frequent."""
    labels = np.repeat([0, 1, 2, 3, 4, 5], [6, 1, 1, 1, 1, 2])
    pairs: dict[tuple[int, ...], int] = {}
    for cycle in range(900):
        places, _ = sampled_pass(5, labels, "balanced", 3 * cycle)
        pair = tuple(sorted(places[places < 6].tolist()))
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 15
    assert sum((count - 60) ** 2 / 60 for count in pairs.values()) < 36.1  # chi-squared, 14 degrees, p = 0.001


def test_classes_are_mixed_within_a_pass() -> None:
    places, _ = sampled_pass(0, np.repeat([0, 1], [900, 100]), "balanced", 3)
    thirds = [(part >= 900).mean() for part in np.array_split(places, 3)]
    assert all(abs(share - 0.5) < 0.1 for share in thirds)


def test_a_sampled_batch_is_the_same_whichever_step_comes_first() -> None:
    labels = labels_of([11, 30, 2])
    whole = [sampled_places(3, sampled_classes(labels, "square_root"), 4, 10, step) for step in range(15)]
    for step in reversed(range(15)):
        again = sampled_places(3, sampled_classes(labels, "square_root"), 4, 10, step)
        assert all(np.array_equal(a, b) for a, b in zip(again, whole[step], strict=True))
    assert whole[4][1].tolist() == [4] * 3 + [5] * 7, "positions 40 to 49, in passes of 43"


def test_a_batch_larger_than_a_pass_spans_several() -> None:
    places, passes, views = sampled_places(0, sampled_classes([0, 0, 0, 1], "balanced"), 2, 10, 0)
    assert passes.tolist() == [2] * 4 + [3] * 4 + [4] * 2
    assert len(set(zip(places.tolist(), passes.tolist(), views.tolist(), strict=True))) == 10


def test_a_sampled_pass_is_made_once_and_cannot_be_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: list[int] = []
    original = rng.permutation
    monkeypatch.setattr(rng, "permutation", lambda at, n: sorts.append(n) or original(at, n))
    classes = sampled_classes(np.repeat([0, 1], [60, 4]), "balanced")
    before = [sampled_places(0, classes, 0, 8, step)[0] for step in range(16)]
    expected = [places.copy() for places in before]
    for places in before:
        places[:] = 0
    assert np.array_equal([sampled_places(0, classes, 0, 8, step)[0] for step in range(16)], expected)
    assert sorts == [64, 64]


def test_first_sampled_places_stay_what_they_were() -> None:
    classes = sampled_classes(np.repeat([0, 1, 2], [70, 25, 5]), "square_root")
    assert [column.tolist() for column in sampled_places(0, classes, 9, 8, 0)] == GOLDEN_SAMPLED


GOLDEN_SEED_0 = [51, 18, 56, 84, 5, 93, 95, 8]
GOLDEN_SEED_1 = [71, 46, 60, 79, 66, 83, 65, 93]
GOLDEN_SAMPLED = [[22, 44, 3, 12, 9, 95, 6, 72], [9, 9, 9, 9, 9, 9, 9, 9], [0, 0, 0, 0, 1, 1, 0, 0]]
