"""The interval of a paired difference: against the formula's own example, its coverage, and the edges."""

from __future__ import annotations

import numpy as np
import pytest

from stagewright.training.paired import paired_difference


def answers(gained: int, lost: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Both wrong, but for the images that only one of the two has right."""
    first, second = np.zeros(total, bool), np.zeros(total, bool)
    first[:gained] = True
    second[gained : gained + lost] = True
    return first, second


def test_it_counts_pairs_and_not_shares() -> None:
    found = paired_difference(*answers(12, 4, 200))
    assert found is not None and (found.gained, found.lost, found.images) == (12, 4, 200)
    assert found.points == pytest.approx(4.0)
    more, less = 13 / 202, 5 / 202
    half = 1.959963984540054 * np.sqrt((more + less - (more - less) ** 2) / 202)
    assert (found.low, found.high) == pytest.approx((100 * (more - less - half), 100 * (more - less + half)))


def test_it_is_symmetric_and_bounded() -> None:
    for gained, lost, total in ((0, 0, 1), (1, 0, 1), (5, 0, 300), (0, 3, 3), (20, 20, 40)):
        one, other = (paired_difference(*answers(a, b, total)) for a, b in ((gained, lost), (lost, gained)))
        assert one is not None and other is not None
        assert -100 <= one.low < one.high <= 100 and one.low <= one.points <= one.high
        assert (one.points, one.low, one.high) == pytest.approx((-other.points, -other.high, -other.low))


def test_few_images_that_differ_are_not_told_apart() -> None:
    """The sign test's limit of 6, which decides whether a head suffices, is this interval's too."""
    for total in (50, 300, 1000, 10_000):
        five, six = (paired_difference(*answers(count, 0, total)) for count in (5, 6))
        assert five is not None and six is not None and five.low < 0 < six.low


@pytest.mark.parametrize(("more", "less", "total"), [(0.05, 0.03, 300), (0.02, 0.0, 150), (0.1, 0.1, 100)])
def test_it_covers_the_truth(more: float, less: float, total: int) -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        drawn = random.random(total)
        found = paired_difference(drawn < more, (drawn >= more) & (drawn < more + less))
        assert found is not None
        hits += found.low <= 100 * (more - less) <= found.high
    assert hits / 2000 > 0.935


def test_what_cannot_be_paired() -> None:
    assert paired_difference(np.zeros(0, bool), np.zeros(0, bool)) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(np.zeros(2, bool), np.zeros(3, bool))
