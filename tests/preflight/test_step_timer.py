"""How the probe times steps, with a clock that is set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from stagewright.preflight.step_timer import StepTimer


class Machine:
    """Updates that take the seconds of ``durations`` in turn, the last one again and again."""

    def __init__(self, *durations: float) -> None:
        self.durations, self.time, self.updates = list(durations), 100.0, 0
        self.stop = SimpleNamespace(requested=False)

    def update(self) -> None:
        self.time += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]
        self.updates += 1


def measured(machine: Machine, limit: float) -> StepTimer:
    rhythm = StepTimer(cast(Any, machine.stop), limit, now=lambda: machine.time)
    while not machine.stop.requested:
        machine.update()
        rhythm.after_update(cast(Any, None), cast(Any, machine.updates))
        assert machine.updates < 100_000
    return rhythm


def test_even_steps() -> None:
    machine = Machine(0.01)
    rhythm = measured(machine, 2.0)
    assert rhythm.step_seconds == pytest.approx(0.01) and rhythm.lead_seconds == pytest.approx(0.0, abs=1e-9)
    assert 1.7 < machine.time - 100.0 < 2.2
    assert rhythm.batch is not None


def test_the_first_steps_are_charged_to_the_beginning() -> None:
    machine = Machine(5.0, 0.5, 0.01)
    rhythm = measured(machine, 2.0)
    assert rhythm.step_seconds == pytest.approx(0.01)
    assert rhythm.lead_seconds == pytest.approx(5.5 - 2 * 0.01)


def test_what_disturbs_a_few_blocks_does_not_count() -> None:
    machine = Machine(*[0.01] * 6, *[0.5] * 3, *[0.01] * 400)
    assert measured(machine, 4.0).step_seconds == pytest.approx(0.01)


def test_steps_that_take_longer_than_the_limit_are_seen_once() -> None:
    machine = Machine(9.0)
    rhythm = measured(machine, 2.0)
    assert machine.updates == 3 and rhythm.step_seconds == 9.0


def test_slow_steps_are_seen_a_few_times() -> None:
    machine = Machine(1.0)
    measured(machine, 2.0)
    assert machine.updates == 2 + 3
