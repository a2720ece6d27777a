"""What is measured of a store: a latency that hides how fast it is tells no rate, and a full link does."""

from __future__ import annotations

import pytest

from stagewright.data.remote.pace import Pace


def test_nothing_is_known_before_a_block_has_come() -> None:
    pace = Pace()
    pace.stepped(0)
    pace.stepped(2)
    assert pace.step_seconds > 0 and not pace.is_known


def test_requests_that_each_take_the_latency_bring_more_together() -> None:
    pace = Pace()
    for _ in range(50):
        pace.fetched(1000, 0.05, together=2)
    assert pace.latency == pytest.approx(0.05)
    assert pace.bytes_per_second(1) == pytest.approx(20_000)
    assert pace.bytes_per_second(32) == pytest.approx(640_000)


def test_a_full_link_brings_no_more_with_more_requests() -> None:
    pace = Pace()
    for together in [1, 4, 8, 16] * 50:
        pace.fetched(1000, 0.05 + together * 1000 / 1e5, together)
    assert pace.bytes_per_second(64) == pytest.approx(1e5, rel=0.25)
    assert pace.bytes_per_second(1) < 2e4
