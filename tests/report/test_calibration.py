"""The calibration error, against a plain loop, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.report.calibration import calibration_error

SHARES = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(SHARES, st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_it_is_the_weighted_distance_of_each_bin(answers: list[tuple[float, bool]], bins: int) -> None:
    total = 0.0
    edges = [at / bins for at in range(bins + 1)]
    for at in range(bins):
        mine = [(p, right) for p, right in answers if edges[at] < p <= edges[at + 1] or (at == 0 and p == 0)]
        if any(abs(p - edge) < 1e-12 and edge not in (0, 1) for p, _ in answers for edge in edges):
            return  # on an edge of two bins, rounding decides
        if mine:
            total += abs(sum(right for _, right in mine) - sum(p for p, _ in mine))
    found = calibration_error(np.array([p for p, _ in answers]), np.array([right for _, right in answers]), bins)
    assert found == pytest.approx(100 * total / len(answers), abs=1e-9)


def test_known_values() -> None:
    right = np.array([True] * 8 + [False] * 2)
    assert calibration_error(np.full(10, 0.8), right) == pytest.approx(0)
    assert calibration_error(np.full(10, 1.0), right) == pytest.approx(20)
    assert calibration_error(np.array([0.9, 0.6]), np.array([False, True])) == pytest.approx(65), "bins do not cancel"
    assert calibration_error(np.empty(0), np.empty(0, bool)) is None
    with pytest.raises(ValueError, match="do not belong together"):
        calibration_error(np.ones(2), np.ones(3, bool))
