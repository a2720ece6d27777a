"""The guard's decisions for synthetic losses: what it detects, what it ignores, and where it goes back to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from stagewright.engine.guard_state import GuardState, LrReduction
from stagewright.plan.plan import DatasetInfo, Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes
from stagewright.training.guard import Fault, Guard, Row

INFO = DatasetInfo(num_train=1000, num_val=100, num_test=0, classes=tuple("0123456789"), digest="d")
NAN, INF = math.nan, math.inf


def plan(**fields: Any) -> Plan:
    plain = {
        "stages": [{"epochs": "200st"}],
        "batch_size": 10,
        "eval": {"every": "50st"},
        "checkpoints": {"every": "50st"},
    }
    return resolve(recipes.from_dict({**plain, **fields}), INFO)


def feed(plan: Plan, losses: list[float], norms: list[float] | None = None) -> tuple[Fault | None, GuardState, int]:
    """Checks ``losses`` step by step, as a run does; returns the first fault, the guard's state and the step of detection."""
    guard, record = Guard(plan), GuardState()
    rows: list[Row] = []
    for step in range(1, len(losses) + 1):
        rows.append((step, losses[step - 1], norms[step - 1] if norms else 1.0))
        if guard.is_due(step):
            fault = guard.check(record, step, rows)
            window = plan.recipe.guard.window
            rows = [row for row in rows if row[0] > step // window * window]
            if fault is not None:
                return fault, record, step
    return None, record, len(losses)


@pytest.mark.parametrize("at", [1, 16, 17, 40, 49, 50, 51, 199, 200])
@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_what_is_not_finite_is_found_before_anything_is_saved(at: int, number: float) -> None:
    losses = [2.0] * 200
    losses[at - 1] = number
    fault, _, found = feed(plan(), losses)
    assert fault is not None and fault.kind == "not finite" and fault.update == at - 1
    assert at <= found <= -(-at // 50) * 50 and found - at < 16  # 50, 100, ... are saved
    assert fault.back_to == max(at - 2, 0) // 16 * 16, "before the update that may have corrupted the weights"
    norms = [1.0] * 200
    norms[at - 1] = number
    assert feed(plan(), [2.0] * 200, norms)[0] == Fault(
        at - 1, fault.back_to, "not finite", f"loss 2, gradient norm {number:.4g}", max(at - 2, 0)
    )


def test_the_loss_scaler_may_leave_out_updates_but_not_for_ever() -> None:
    norms = [INF if step % 7 == 0 else 1.0 for step in range(200)]
    half = plan(precision="fp16")
    assert feed(half, [2.0] * 200, norms)[0] is None
    fault, _, found = feed(half, [2.0] * 200, [1.0] * 60 + [INF] * 140)
    assert fault is not None and fault.update == 60 + 50 - 1
    # The weights have not changed since update 59, which is the one that may have spoilt them: 96 would be spoilt too.
    assert (fault.culprit, fault.back_to) == (59, 48)
    assert Guard(half).oldest_restorable_step(found) <= 48


def test_a_lasting_rise_is_a_spike_and_a_short_one_is_not() -> None:
    rising = [2.0 - step / 100 for step in range(96)]  # down to 1.04
    fault, record, found = feed(plan(), [*rising, *[4.0] * 104])
    assert fault is not None and fault.kind == "spike"
    assert (found, fault.update, fault.back_to) == (128, 96, 80)
    assert "the median loss of 16 steps is 4" in fault.reason and record.high_since == 96
    assert feed(plan(), [*rising, *[9.0] * 16, *[1.1] * 88])[0] is None
    assert feed(plan(), [*rising, *[1.04 + 0.5 * math.log(10) - 0.01] * 104])[0] is None
    assert feed(plan(guard={"spike": 0.2}), [*rising, *[1.04 + 0.3 * math.log(10)] * 104])[0] is not None


def test_single_wild_losses_and_a_new_stage_are_no_spike() -> None:
    random = np.random.default_rng(0)
    wild = [9.0 if random.random() < 0.3 else 1.0 for _ in range(200)]
    assert feed(plan(), wild)[0] is None
    two = plan(stages=[{"epochs": "90st"}, {"epochs": "110st", "image_size": 96}])
    assert feed(two, [*[0.1] * 90, *[3.0] * 110])[0] is None  # mixing begins, pictures grow, layers unfreeze
    assert feed(plan(), [*[0.1] * 90, *[3.0] * 110])[0] is not None


def test_updates_that_are_left_out_are_not_looked_at() -> None:
    guard, record = Guard(plan()), GuardState(left_out=[4])
    assert guard.check(record, 16, [(step, NAN if step == 5 else 1.0, 1.0) for step in range(1, 17)]) is None


def test_an_update_that_was_left_out_spoils_nothing() -> None:
    """Update 15 spoils the weights, 16 and 17 are left out, 18 shows it: so the state after 16 updates is spoilt."""
    guard, record = Guard(plan()), GuardState(left_out=[16, 17], checked=16)
    fault = guard.check(record, 32, [(step, NAN if step > 16 else 1.0, 1.0) for step in range(17, 33)])
    assert fault is not None and (fault.update, fault.culprit, fault.back_to) == (18, 15, 0)
    assert guard.fault_at_evaluation(record, 18, "not finite").culprit == 15


def test_the_record_goes_into_json_and_back_and_keeps_its_remedies() -> None:
    record = GuardState(
        2,
        [5],
        [17],
        [LrReduction(3, 9, 0.2), LrReduction(6, 9, 0.5)],
        (5, 0, 4),
        8,
        [{"step": 4}],
        2,
        32,
        1,
        0.5,
        16,
        3,
    )
    assert GuardState.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert [record.lr_factor(update) for update in (2, 3, 6, 8, 9)] == [1.0, 0.2, 0.1, 0.1, 1.0]
    back = record.rewound(GuardState(checked=16, stage=0, lowest=0.9))
    assert back == GuardState(2, [5], [17], record.lr_reductions, (5, 0, 4), 8, [{"step": 4}], 2, 16, 0, 0.9, None, 0)


def test_the_horizon_covers_what_a_spike_may_go_back_to() -> None:
    guard = Guard(plan())
    for step in range(1, 201):
        assert guard.oldest_restorable_step(step) <= max(0, step - 3 * 16)
        assert guard.oldest_restorable_step(step) % 16 == 0
