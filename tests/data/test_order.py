from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright import rng
from stagewright.data.order import batch_places, subset
from stagewright.plan import subset_size

CLASS_COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)
FRACTIONS = st.floats(0.001, 1.0)


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
    # There is one share t of which every class keeps its part to within a picture (never less than one picture).
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


GOLDEN_SEED_0 = [51, 18, 56, 84, 5, 93, 95, 8]
GOLDEN_SEED_1 = [71, 46, 60, 79, 66, 83, 65, 93]
