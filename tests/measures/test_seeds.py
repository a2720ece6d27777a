"""Comparison of recipes by several seeds on the same pictures: its formulas, and how often its statements are true."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from simulated_answers import Bools, Model, mean_for

from stagewright.measures.intervals import paired_interval, wilson
from stagewright.measures.seeds import Seeds, best_of


def drawn(seed: int, *shapes: tuple[int, int], share: float = 0.7) -> list[Bools]:
    random = np.random.default_rng(seed)
    difficulty = random.uniform(size=shapes[0][1])
    return [random.uniform(size=shape) < share * (0.3 + difficulty) for shape in shapes]


def freedom(seeds: list[int], excess: list[float]) -> float:
    """Degrees of freedom of the mean of variances ``excess``: Satterthwaite's with two seeds, where the issue has sum(k - 1)."""
    if min(seeds) > 2:
        return sum(seeds) - len(seeds)
    return sum(excess) ** 2 / sum(r**2 / (k - 1) for k, r in zip(seeds, excess, strict=True))


def by_hand(
    right: list[Bools], pair: tuple[int, int], groups: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """The variance of a difference, its degrees of freedom and p, written out."""
    n = right[0].shape[1]
    parts = []
    for one in right:
        k = len(one)
        b = np.var([row.mean() for row in one], ddof=1) / k
        c = np.mean([np.var(one[:, i], ddof=1) for i in range(n)]) / (n * k)
        parts.append((k, b, c))
    r0 = np.mean([b / c for _, b, c in parts])
    df = freedom([k for k, _, _ in parts], [b / c for _, b, c in parts])
    d = right[pair[0]].mean(0) - right[pair[1]].mean(0)
    if groups is None:
        a, units = np.var(d, ddof=1) / n, n
    else:
        names = np.unique(groups)
        units = len(names)
        a = units / (units - 1) * sum((d[groups == g] - d.mean()).sum() ** 2 for g in names) / n**2
    seed_part = sum(parts[i][2] * max(parts[i][1] / parts[i][2], r0) for i in pair)
    flips = sum(parts[i][2] for i in pair)
    v = a + (seed_part if min(parts[i][0] for i in pair) == 2 else max(0.0, seed_part - flips))
    nu = max(df, v**2 / (a**2 / (units - 1) + seed_part**2 / df))
    p = 2 * float(t.sf(abs(d.mean()) / np.sqrt(v), nu))
    return float(v), float(nu), p, float(d.mean())


@pytest.mark.parametrize("shapes", [[(2, 60)] * 3, [(3, 60)] * 2, [(5, 90), (3, 90), (2, 90), (4, 90)]])
@pytest.mark.parametrize("grouped", [False, True])
def test_differences_are_those_of_the_formula(shapes: list[tuple[int, int]], grouped: bool) -> None:
    right = drawn(3, *shapes)
    groups = np.arange(shapes[0][1]) // 6 if grouped else None
    found = Seeds(right, groups)
    ps = {}
    for pair in combinations(range(len(shapes)), 2):
        v, nu, p, difference = by_hand(right, pair, groups)
        own = found.contrast(*pair)
        half = t.ppf(0.975, nu) * np.sqrt(v)
        assert (own.value, own.low, own.high) == pytest.approx(
            (difference, difference - half, difference + half), abs=1e-12
        )
        assert own.p == pytest.approx(p, abs=1e-12)
        ps[pair] = own.p
        beyond = t.ppf(1 - 0.025 / len(list(combinations(shapes, 2))), nu)
        assert own.smallest == pytest.approx((beyond + t.ppf(0.8, nu)) * np.sqrt(v), abs=1e-12)
        back = found.contrast(*reversed(pair))
        assert (back.value, back.low, back.high, back.p) == (-own.value, -own.high, -own.low, own.p)
    worst = 0.0
    for at, pair in enumerate(sorted(ps, key=ps.__getitem__)):  # Holm's steps
        worst = max(worst, min(1.0, ps[pair] * (len(ps) - at)))
        assert found.contrast(*pair).adjusted == pytest.approx(worst)


def test_an_accuracy_has_the_interval_of_its_own_parts() -> None:
    right = drawn(5, (3, 80), (3, 80))
    found = Seeds(right)
    one = right[0]
    b, c = np.var(one.mean(1), ddof=1) / 3, np.var(one, axis=0, ddof=1).mean() / 240
    a = np.var(one.mean(0), ddof=1) / 80
    part = c * max(b / c, found.excess)
    v = a + max(0.0, part - c)
    half = t.ppf(0.975, max(4, v**2 / (a**2 / 79 + part**2 / 4))) * np.sqrt(v)
    own = found.accuracy(0)
    assert (own.value, own.low, own.high) == pytest.approx(
        (one.mean(), one.mean() - half, one.mean() + half), abs=1e-12
    )
    assert found.spread(0) == pytest.approx(np.std(one.mean(1), ddof=1)) and found.freedom == 4


def test_two_seeds_of_one_unlike_recipe_have_one_degree_of_freedom() -> None:
    even = np.arange(40) % 2 == 0
    calm = np.array([even, ~even])  # as many right with both seeds
    wild = np.array([even, even & (np.arange(40) < 20)])
    assert Seeds([wild, calm, calm]).freedom == pytest.approx(1.0)
    assert Seeds([wild, wild, wild]).freedom == pytest.approx(3.0)
    assert Seeds([np.repeat(one, 2, 0) for one in (wild, calm, calm)]).freedom == 9.0


def test_single_runs_are_compared_as_models() -> None:
    right = drawn(7, (1, 300), (1, 300), (1, 300))
    found = Seeds(right)
    assert found.single and np.isnan(found.spread(0)) and np.isnan(found.excess)
    own = found.accuracy(1)
    assert (own.low, own.high) == pytest.approx(wilson(int(right[1].sum()), 300, 1.959963984540054))
    gained, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    contrast = found.contrast(0, 1)
    assert contrast.p == pytest.approx(binomtest(gained, gained + lost).pvalue) and contrast.smallest is None
    assert (contrast.low, contrast.high) == pytest.approx(paired_interval(gained, lost, 300))
    grouped = Seeds(right, np.arange(300) // 30)
    assert grouped.accuracy(0).low != found.accuracy(0).low and grouped.contrast(0, 1).p != contrast.p


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_same_answers_under_two_names_are_never_ranked(seeds: int, grouped: bool) -> None:
    one = drawn(1, (seeds, 4000))[0]
    found = Seeds([one, one, one], np.arange(4000) // 100 if grouped else None)
    contrast = found.contrast(0, 1)
    assert contrast.value == 0 and contrast.p == 1.0 and not contrast.differs and contrast.low < 0 < contrast.high
    assert [found.ranks(at) for at in range(3)] == [(1, 3)] * 3


def test_nothing_and_everything_right_leave_room() -> None:
    right = [np.ones((3, 50), np.bool_), np.ones((3, 50), np.bool_), np.zeros((3, 50), np.bool_)]
    found = Seeds(right)
    assert 0.85 < found.accuracy(0).low < 1 and found.accuracy(0).high == 1.0 and found.accuracy(2).low == 0.0
    assert found.ranks(2) == (3, 3) and found.ranks(0) == (1, 2) and np.isnan(found.excess)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 5), st.booleans())
def test_neither_the_order_of_pictures_nor_of_recipes_matters(seed: int, k: int, v: int, grouped: bool) -> None:
    right = drawn(seed, *[(k, 40)] * v)
    groups = np.arange(40) % 7 if grouped else None
    order, turned = np.random.default_rng(seed).permutation(40), list(reversed(range(v)))
    one = Seeds(right, groups)
    other = Seeds([right[at][:, order] for at in turned], None if groups is None else groups[order])
    for at in range(v):
        assert one.ranks(at) == other.ranks(turned[at])
        assert one.accuracy(at).low == pytest.approx(other.accuracy(turned[at]).low, abs=1e-12)
        low, high = one.ranks(at)
        assert 1 <= low <= high <= v


def test_more_seeds_are_asked_for_than_there_are_until_pictures_are_too_few() -> None:
    right, _ = Model((1.0, 1.05), seeds=3, excess=4).draw(np.random.default_rng(0))
    found = Seeds(right)
    many, few = found.seeds_for(0, 1, 0.03), found.seeds_for(0, 1, 0.05)
    assert many is not None and few is not None and 2 <= few < many
    assert found.seeds_for(0, 1, 0.001) is None
    seen = found.contrast(0, 1).smallest
    assert seen is not None and found.seeds_for(0, 1, seen * 1.0001) in (2, 3)


def test_bad_answers_are_refused() -> None:
    one, two = drawn(0, (1, 20), (2, 20))
    for wrong in ([], [one, two[:, :5]], [one, two], [np.empty((2, 0), np.bool_)], [np.empty((0, 3), np.bool_)]):
        with pytest.raises(ValueError):
            Seeds(wrong)
    with pytest.raises(ValueError, match="one group"):
        Seeds([two, two], np.zeros(20, np.int64))
    with pytest.raises(ValueError, match="groups of shape"):
        Seeds([two, two], np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="level"):
        Seeds([two, two], level=1.0)


def test_the_best_of_equals_lies_above_their_mean() -> None:
    assert (
        best_of(1) == 0.0
        and best_of(2) == pytest.approx(1 / np.sqrt(np.pi))
        and best_of(10) == pytest.approx(1.53875, abs=1e-4)
    )


@dataclass
class Truths:
    """How often statements are true, as shares of the repetitions."""

    accuracies: float
    """Intervals of accuracies that contain the truth."""
    differences: float
    false: float
    """Repetitions in which anything at all is falsely called better."""
    ranks: float
    """Repetitions in which all rank intervals contain the true ranks."""
    spread: float
    """Standard deviation of the difference between the first two recipes."""
    found: float
    """Repetitions in which the first recipe is called better than the second."""


def stated(model: Model, repetitions: int, seed: int = 0) -> Truths:
    random, truth = np.random.default_rng(seed), model.truth()
    size = len(truth)
    true_ranks = [(1 + int((truth > own + 1e-12).sum()), size - int((truth < own - 1e-12).sum())) for own in truth]
    counts = np.zeros(5)
    values = []
    for _ in range(repetitions):
        found = Seeds(*model.draw(random))
        own = [found.accuracy(at) for at in range(size)]
        counts[0] += np.mean([one.low <= true <= one.high for one, true in zip(own, truth, strict=True)])
        gaps = {pair: truth[pair[0]] - truth[pair[1]] for pair in found.contrasts}
        counts[1] += np.mean([one.low <= gaps[pair] <= one.high for pair, one in found.contrasts.items()])
        wrong = [one.differs and not one.value * gaps[pair] > 1e-15 for pair, one in found.contrasts.items()]
        counts[2] += any(wrong)
        ranks = [found.ranks(at) for at in range(size)]
        counts[3] += all(
            low <= first and last <= high for (low, high), (first, last) in zip(ranks, true_ranks, strict=True)
        )
        counts[4] += found.contrast(0, 1).differs and found.contrast(0, 1).value > 0
        values.append(found.contrast(0, 1).value)
    shares = (counts / repetitions).tolist()
    return Truths(shares[0], shares[1], shares[2], shares[3], float(np.std(values)), shares[4])


def check(model: Model, repetitions: int, slack: float) -> None:
    """The bounds of the issue, with ``slack`` standard errors of so many repetitions."""
    own = stated(model, repetitions)

    def room(share: float) -> float:
        return slack * float(np.sqrt(share * (1 - share) / repetitions))

    most_false = 0.075 if model.wild else 0.055
    for share in (own.accuracies, own.differences):
        assert 0.94 - room(0.94) <= share <= 0.995 + room(0.995), (model, own)
    assert own.false <= most_false + room(most_false), (model, own)
    assert own.ranks >= 0.94 - room(0.94), (model, own)


CASES = [
    Model((1.0,) * recipes, seeds, excess, groups=groups, wild=wild)
    for recipes in (4, 6)
    for seeds in (2, 3, 5)
    for excess in (0.0, 1.0, 4.0, 20.0)
    for groups, wild in ((0, False), (0, True), (20, False))
]


@pytest.mark.parametrize("model", [CASES[0], CASES[10], CASES[17], CASES[23], CASES[40]], ids=repr)
def test_statements_are_as_often_true_as_they_say(model: Model) -> None:
    check(model, 200, slack=3.0)


@pytest.mark.long
@pytest.mark.parametrize("model", CASES, ids=repr)
def test_statements_are_as_often_true_as_they_say_in_all_cases(model: Model) -> None:
    check(model, 2000, slack=0.0)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("excess", [0.0, 4.0])
def test_true_differences_do_not_make_false_ones(seeds: int, excess: float) -> None:
    check(Model((1.3, 1.0, 1.0, 0.8), seeds, excess), 2000, slack=0.0)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("excess", [0.0, 4.0])
def test_a_difference_of_six_standard_errors_is_found(seeds: int, excess: float) -> None:
    equal = Model((1.0,) * 4, seeds, excess)
    error = stated(equal, 150).spread
    better = replace(equal, means=(mean_for(equal, float(equal.truth()[0]) + 6 * error), 1.0, 1.0, 1.0))
    assert stated(better, 150, seed=1).found >= 0.9


def test_usual_shortcuts_fail_the_same_test() -> None:
    """A bootstrap over three seeds is too narrow, and McNemar's test on pooled answers calls equals different."""
    model, random = Model((1.0, 1.0), 3, 4.0), np.random.default_rng(0)
    truth, inside, false = float(model.truth()[0]), 0, 0
    for _ in range(200):
        (one, other), _ = model.draw(random)
        means = one.mean(1)[random.integers(0, 3, (500, 3))].mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
        inside += low <= truth <= high
        gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
        false += binomtest(gained, gained + lost).pvalue < 0.05
    assert inside / 200 < 0.85 and false / 200 > 0.15
