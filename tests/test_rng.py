from __future__ import annotations

import itertools

import numpy as np
import pytest

from stagewright import rng
from stagewright.rng import Stream


def test_keys_of_different_words_differ() -> None:
    """Every pair of neighbouring seeds, passes and samples; adding instead of mixing would make most of these collide."""
    grid = rng.keys(
        np.arange(30)[:, None, None], np.arange(30)[None, :, None], np.arange(300)[None, None, :]
    )  # seed, pass, sample
    assert len(np.unique(grid)) == grid.size


def test_order_of_words_and_their_number_matter() -> None:
    assert rng.key(1, 2) != rng.key(2, 1)
    assert rng.key(1) != rng.key(1, 0) != rng.key(1, 0, 0)
    assert rng.key(0, 5) != rng.key(1, 4), "seed + epoch would be equal"


def test_scalars_and_arrays_give_the_same_keys() -> None:
    many = rng.keys(3, int(Stream.ORDER), np.arange(50))
    assert [rng.key(3, Stream.ORDER, i) for i in range(50)] == many.tolist()
    assert np.array_equal(rng.uniform(many, 4)[7], rng.uniform(rng.key(3, Stream.ORDER, 7), 4))


def test_values_never_change() -> None:
    """A change here changes every run of every user: golden values."""
    assert rng.key(0, Stream.ORDER, 0) == 7501351922745577155
    assert rng.permutation(rng.key(0, Stream.ORDER, 0), 10).tolist() == [5, 8, 1, 9, 3, 7, 6, 4, 2, 0]


def test_uniform_is_uniform_and_uncorrelated() -> None:
    draws = rng.uniform(rng.keys(np.arange(4), np.arange(20_000)[:, None]), 3).reshape(20_000, -1)
    assert draws.min() >= 0 and draws.max() < 1
    histogram = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T])
    chi2 = ((histogram - 1000) ** 2 / 1000).sum(axis=1)
    assert chi2.max() < 50, "19 degrees of freedom: 50 is about 1 in 10,000"
    assert np.abs(np.corrcoef(draws.T) - np.eye(draws.shape[1])).max() < 0.04


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_permutation_is_one(n: int) -> None:
    assert sorted(rng.permutation(rng.key(9, n), n).tolist()) == list(range(n))


def test_two_seeds_share_no_order() -> None:
    orders = {
        seed: [rng.permutation(rng.key(seed, Stream.ORDER, p), 64).tolist() for p in range(20)] for seed in range(8)
    }
    for a, b in itertools.combinations(orders, 2):
        assert not any(x == y for x in orders[a] for y in orders[b])


def test_floats_are_no_keys() -> None:
    with pytest.raises(TypeError, match="integers"):
        rng.keys(0.5)
